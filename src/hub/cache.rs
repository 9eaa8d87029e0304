//! The cache that `huggingface_hub` shares between programs: `blobs/HASH` holds a file, `snapshots/COMMIT/NAME` is a
//! link to it, `refs/REVISION` holds the commit.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::convert::has_weights;

use super::{HubError, Listing, RemoteFile, RepoName};

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

    /// Waits until no other process works on the file of a hash, and keeps others waiting until the lock is dropped. The
    /// file is where `huggingface_hub` has its own lock, so that Python's programs wait, too.
    pub(super) fn lock(&self, repo: &RepoName, hash: &str) -> Result<File, HubError> {
        let folder = self.folder.join(".locks").join(repo.folder());
        std::fs::create_dir_all(&folder).map_err(HubError::cache(&folder))?;
        let path = folder.join(format!("{hash}.lock"));
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = opened.map_err(HubError::cache(&path))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            log::warn!("{repo}: another process is fetching it; waiting for that to end");
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
        // Where links are not allowed (Windows without developer mode) Python keeps the file itself there.
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
            std::fs::create_dir_all(folder).map_err(HubError::cache(folder))?;
            std::fs::write(&file, &listing.commit).map_err(HubError::cache(&file))?;
        }
        Ok(repo.join("snapshots").join(&listing.commit))
    }

    /// The folder of a revision's snapshot, if all of its weights are there.
    pub(super) fn snapshot(&self, repo: &RepoName, revision: &str) -> Option<PathBuf> {
        let repo = self.repo(repo);
        let commit = std::fs::read_to_string(repo.join("refs").join(revision));
        let commit = commit.unwrap_or_else(|_| revision.to_owned());
        let commit = commit.trim();
        if commit.is_empty() || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let folder = repo.join("snapshots").join(commit);
        let whole = folder.join("config.json").is_file() && has_weights(&folder);
        whole.then_some(folder)
    }
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
