//! What can go wrong in a conversion, each as one line that names the file and the remedy.

use std::path::{Path, PathBuf};

use crate::model::config::ConfigError;
use crate::text::TextError;
use crate::weights::WeightsError;

/// A conversion that cannot be done. The text is one line: the file, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A checkpoint's tensors.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The folder to write is there already.
    #[error("{}: exists already; name a folder that does not, or move this one away", out.display())]
    Exists {
        /// The folder asked for.
        out: PathBuf,
    },
    /// A part of the model is in none of the files.
    #[error("{}: lacks {what}, which {family} saves apart; pass {option}", file.display())]
    MissingPart {
        /// The checkpoint.
        file: PathBuf,
        /// The part.
        what: &'static str,
        /// The program that wrote the checkpoint.
        family: &'static str,
        /// The option that supplies it, with what to give.
        option: String,
    },
    /// A file cannot be written.
    #[error("{}: cannot be written: {cause}; check the folder's permissions and the free space", file.display())]
    Write {
        /// The file or folder.
        file: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// A file cannot be used for what it was given for.
    #[error("{}: {problem}; {remedy}", file.display())]
    Refused {
        /// The file or folder.
        file: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

impl ConvertError {
    pub(super) fn refused(
        file: &Path,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Refused {
            file: file.into(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    pub(super) fn write(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.into();
        move |cause| Self::Write { file, cause }
    }
}
