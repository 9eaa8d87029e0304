//! What can go wrong between here and the hub, each as one line with what to do.

use std::path::PathBuf;

use crate::files::environment::VariableError;

use super::RepoName;

/// A failed request, download or use of the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name is none of a repository.
    #[error("{name:?} is no repository's name; give OWNER/NAME, such as Salesforce/blip2-opt-2.7b")]
    Name {
        /// What was given.
        name: String,
    },
    /// The user wants no network, and the cache does not have it.
    #[error(
        "{repo}: is not in the cache, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; unset it to fetch the checkpoint"
    )]
    Offline {
        /// The repository.
        repo: RepoName,
    },
    /// The user wants no network, and the cache has it in part.
    #[error(
        "{repo}: the cache has only a part of it ({lacks} is missing), and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; unset it and run `blip2-wgpu pull {repo}`"
    )]
    OfflinePart {
        /// The repository.
        repo: RepoName,
        /// What is missing.
        lacks: &'static str,
    },
    /// An environment variable that cannot be used.
    #[error("{variable}: {problem}")]
    Setting {
        /// The variable.
        variable: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The hub sends less than it lists, each time.
    #[error(
        "{url}: the hub sends {got} bytes where it lists {listed}; its file is damaged or was changed just now: try again later"
    )]
    Short {
        /// What was asked for.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that should have come.
        listed: u64,
    },
    /// The hub does not give it.
    #[error("{url}: the hub answers {status}: {problem}; {remedy}")]
    Denied {
        /// What was asked for.
        url: String,
        /// HTTP's status.
        status: u16,
        /// What it means.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The hub cannot be reached, or breaks off each time.
    #[error(
        "{url}: {problem}; check the connection and run it again: what has come so far is kept"
    )]
    Connection {
        /// What was asked for.
        url: String,
        /// The problem.
        problem: String,
    },
    /// The answer makes no sense.
    #[error("{url}: {problem}; is HF_ENDPOINT a hub's address?")]
    Answer {
        /// What was asked for.
        url: String,
        /// The problem.
        problem: String,
    },
    /// There is nothing in the repository that this program reads.
    #[error(
        "{repo}: holds no checkpoint ({problem}); give a model's repository, such as Salesforce/blip2-opt-2.7b"
    )]
    NoCheckpoint {
        /// The repository.
        repo: RepoName,
        /// What is missing.
        problem: &'static str,
    },
    /// The repository's list of its shards is wrong.
    #[error(
        "{url}: {problem}; the repository is not whole: tell its owner, or pull another revision (`revision`)"
    )]
    Shards {
        /// The index.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file came whole but is another than the hub lists.
    #[error(
        "{url}: has {found} where the hub lists {expected}; it was removed, run the command again"
    )]
    Corrupt {
        /// Where it came from.
        url: String,
        /// Size or hash listed.
        expected: String,
        /// Size or hash found.
        found: String,
    },
    /// A file of the cache cannot be read or written.
    #[error("{}: {cause}; check permissions and free space, or set HF_HUB_CACHE to another folder", file.display())]
    Cache {
        /// The file or folder.
        file: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
}

impl HubError {
    pub(super) fn cache(file: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.into();
        move |cause| Self::Cache { file, cause }
    }
}

impl From<VariableError> for HubError {
    fn from(VariableError { variable, problem }: VariableError) -> Self {
        Self::Setting { variable, problem }
    }
}
