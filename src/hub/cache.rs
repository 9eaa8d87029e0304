//! The cache that `huggingface_hub` shares between programs: `blobs/HASH` holds a file,
//! `snapshots/COMMIT/NAME` is a link to it, `refs/REVISION` holds the commit.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::weights::{Checkpoint, WeightsError};

use super::listing::SMALL;
use super::{HubError, Listing, RemoteFile, RepoName};

/// Where `huggingface_hub` notes, by empty files, which files a commit does not have.
const NOT_THERE: &str = ".no_exist";

/// The cache's folder.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache in a folder, which need not exist.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn repo(&self, repo: &RepoName) -> PathBuf {
        self.folder.join(repo.folder())
    }

    /// Where the file of a hash lies.
    pub fn blob_path(&self, repo: &RepoName, hash: &str) -> PathBuf {
        self.repo(repo).join("blobs").join(hash)
    }

    /// [`Cache::blob_path`], its folder made.
    pub(super) fn blob(&self, repo: &RepoName, hash: &str) -> Result<PathBuf, HubError> {
        let folder = self.repo(repo).join("blobs");
        std::fs::create_dir_all(&folder).map_err(HubError::cache(&folder))?;
        Ok(folder.join(hash))
    }

    /// Waits until no other process works on a file, and keeps others waiting until the lock is
    /// dropped. The lock is where `huggingface_hub` has its own, so that Python's programs wait,
    /// too. That it waits it says once in all calls with one `told`.
    pub(super) fn lock(
        &self,
        repo: &RepoName,
        wanted: &RemoteFile,
        told: &mut bool,
    ) -> Result<File, HubError> {
        let hash = &wanted.hash;
        let folder = self.folder.join(".locks").join(repo.folder());
        std::fs::create_dir_all(&folder).map_err(HubError::cache(&folder))?;
        let path = folder.join(format!("{hash}.lock"));
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = opened.map_err(HubError::cache(&path))?;
        if let (Err(TryLockError::WouldBlock), false) = (file.try_lock(), *told) {
            let name = &wanted.name;
            log::warn!(
                "{repo}: another process is fetching it; waiting until it has {name} and the other files"
            );
            *told = true;
        }
        match file.lock() {
            // Some network file systems have no locks: alone on the cache, none is needed.
            Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                Err(HubError::cache(&path)(error))
            }
            _ => Ok(file),
        }
    }

    /// Whether a snapshot's name leads to the file.
    pub(super) fn is_linked(&self, listing: &Listing, file: &RemoteFile) -> bool {
        let folder = self
            .repo(&listing.repo)
            .join("snapshots")
            .join(&listing.commit);
        let link = folder.join(&file.name).metadata();
        link.is_ok_and(|metadata| metadata.len() == file.size)
    }

    /// Lets a snapshot's name lead to the file. The caller holds its lock.
    pub(super) fn link(&self, listing: &Listing, file: &RemoteFile) -> Result<(), HubError> {
        let folder = self
            .repo(&listing.repo)
            .join("snapshots")
            .join(&listing.commit);
        std::fs::create_dir_all(&folder).map_err(HubError::cache(&folder))?;
        let link = folder.join(&file.name);
        if self.is_linked(listing, file) {
            return Ok(());
        }
        if link.symlink_metadata().is_ok() {
            std::fs::remove_file(&link).map_err(HubError::cache(&link))?;
        }
        let blob = self.blob_path(&listing.repo, &file.hash);
        let target = Path::new("../../blobs").join(&file.hash);
        // Where links are not allowed (Windows without developer mode) Python keeps the file itself
        // there.
        symlink(&target, &link)
            .or_else(|_| std::fs::hard_link(&blob, &link))
            .or_else(|_| std::fs::copy(&blob, &link).map(|_| ()))
            .map_err(HubError::cache(&link))
    }

    /// Notes which commit a revision is, and returns the snapshot's folder.
    pub(super) fn name(&self, listing: &Listing) -> Result<PathBuf, HubError> {
        let repo = self.repo(&listing.repo);
        if listing.revision != listing.commit {
            let file = repo.join("refs").join(&listing.revision);
            let folder = file.parent().unwrap_or(&repo);
            let known = std::fs::read_to_string(&file);
            // A whole cache may be one that nobody can write to.
            if !known.is_ok_and(|known| known.trim() == listing.commit) {
                std::fs::create_dir_all(folder).map_err(HubError::cache(folder))?;
                std::fs::write(&file, &listing.commit).map_err(HubError::cache(&file))?;
            }
        }
        self.note_absent(listing);
        Ok(repo.join("snapshots").join(&listing.commit))
    }

    /// Notes which of the files that a checkpoint may have this one has not, so that
    /// [`Self::state`] need not ask the hub.
    fn note_absent(&self, listing: &Listing) {
        let notes = self
            .repo(&listing.repo)
            .join(NOT_THERE)
            .join(&listing.commit);
        for name in SMALL {
            let note = notes.join(name);
            if listing.files.iter().any(|file| file.name == name) || note.exists() {
                continue;
            }
            let noted = std::fs::create_dir_all(&notes).and_then(|()| std::fs::write(&note, ""));
            if let Err(error) = noted {
                // Then the hub is asked the next time.
                log::debug!("{}: {error}", note.display());
                return;
            }
        }
    }

    /// What there is of a revision.
    pub(super) fn state(&self, repo: &RepoName, revision: &str) -> CacheState {
        let repo = self.repo(repo);
        let commit = std::fs::read_to_string(repo.join("refs").join(revision));
        let commit = commit.unwrap_or_else(|_| revision.to_owned());
        let commit = commit.trim().to_owned();
        if commit.is_empty() || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return CacheState::Nothing;
        }
        let folder = repo.join("snapshots").join(&commit);
        let has = |name: &str| folder.join(name).is_file();
        if !folder.is_dir() {
            return CacheState::Nothing;
        }
        let part = |lacks| CacheState::Part {
            commit: commit.clone(),
            lacks,
        };
        // Nothing that could be fetched makes it usable; opening it says why.
        let weights = Checkpoint::open(&folder);
        if let Err(WeightsError::Adapter { .. } | WeightsError::NotMerged { .. }) = weights {
            return CacheState::Whole { folder };
        }
        if !has("config.json") {
            return part("config.json");
        }
        if weights.is_err() {
            return part("a file of the weights");
        }
        let notes = repo.join(NOT_THERE).join(&commit);
        let unknown = SMALL
            .into_iter()
            .filter(|name| !has(name) && !notes.join(name).exists());
        let unknown: Vec<_> = unknown.collect();
        if unknown.is_empty() {
            return CacheState::Whole { folder };
        }
        let tokenizer =
            has("tokenizer.json") || has("vocab.txt") || has("vocab.json") && has("merges.txt");
        match tokenizer {
            true => CacheState::Usable {
                folder,
                commit,
                unknown,
            },
            false => part("the tokenizer"),
        }
    }
}

/// What the cache has of a checkpoint at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheState {
    /// No file.
    Nothing,
    /// Some files, but not all that any checkpoint needs.
    Part {
        /// The commit that the revision is.
        commit: String,
        /// A part that is missing.
        lacks: &'static str,
    },
    /// Configuration, weights and tokenizer, as another program fetched them. Whether the hub has
    /// more is not known.
    Usable {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The commit that the revision is.
        commit: String,
        /// Files that the hub may have.
        unknown: Vec<&'static str>,
    },
    /// All files.
    Whole {
        /// The checkpoint's folder.
        folder: PathBuf,
    },
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
