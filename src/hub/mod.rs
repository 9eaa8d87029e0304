//! Checkpoints from the Hugging Face Hub: listed, fetched into the cache that Python's
//! `huggingface_hub` uses too, verified.
//!
//! The protocol is small: a JSON listing of a repository at a revision, and a file a URL, which may
//! lead to another host and can be fetched from any byte on. `ureq` speaks HTTP. Blocking: for a
//! program, or a thread of its own.

mod cache;
mod certificates;
mod connection;
mod denied;
mod download;
mod error;
mod listing;
mod proxy;
mod settings;

use std::path::{Path, PathBuf};

use cache::Cache;
pub use cache::CacheState;
use connection::Connection;
use denied::RequestContext;
pub use error::HubError;
#[cfg(feature = "fuzzing")]
pub use listing::fuzz;
pub use listing::{Listing, RemoteFile, RepoName};
pub use settings::HubSettings;

/// The revision that is meant where none is named.
pub const MAIN: &str = "main";

/// A way to the hub and to its cache.
#[derive(Debug)]
pub struct Hub {
    settings: HubSettings,
    cache: Cache,
}

impl Hub {
    /// A hub of these settings. Connects to nothing yet.
    pub fn new(settings: HubSettings) -> Self {
        Self {
            cache: Cache::new(settings.cache.clone()),
            settings,
        }
    }

    /// The settings.
    pub fn settings(&self) -> &HubSettings {
        &self.settings
    }

    /// What the cache has of a checkpoint at a revision; no network is used.
    pub fn state(&self, repo: &RepoName, revision: &str) -> CacheState {
        self.cache.state(repo, revision)
    }

    /// The files of a checkpoint at a revision that this program has use for.
    ///
    /// # Errors
    /// Offline, no such repository or revision, no permission, no connection, no checkpoint in it.
    pub fn list(&self, repo: &RepoName, revision: &str) -> Result<Listing, HubError> {
        if self.settings.offline {
            let repo = repo.clone();
            return Err(match self.state(&repo, revision) {
                CacheState::Part { lacks, .. } => HubError::OfflinePart { repo, lacks },
                _ => HubError::Offline { repo },
            });
        }
        self.settings.check()?;
        listing::fetch(&Connection::new()?, &self.settings, repo, revision)
    }

    /// Fetches what the cache lacks of a listing and returns the checkpoint's folder. What is
    /// broken off stays and is continued by the next call; a file that another process is fetching
    /// is waited for. `progress` is told the bytes that are there, and all of them.
    ///
    /// # Errors
    /// As [`Hub::list`]; shards that the repository lacks; a file whose size or hash is another
    /// than the listing's; no room.
    pub fn pull(
        &self,
        listing: &Listing,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<PathBuf, HubError> {
        let mut connection = None;
        let total = listing.bytes();
        let (mut done, mut told) = (0, false);
        for file in &listing.files {
            let blob = self.cache.blob_path(&listing.repo, &file.hash);
            if !is_whole(&blob, file.size) || !self.cache.is_linked(listing, file) {
                let blob = self.cache.blob(&listing.repo, &file.hash)?;
                let lock = self.cache.lock(&listing.repo, file, &mut told)?;
                // While this one waited, another process may have fetched it.
                if !is_whole(&blob, file.size) {
                    let mut report = |bytes: u64| progress(done + bytes, total);
                    let connection = match &connection {
                        Some(connection) => connection,
                        None => connection.insert(self.connect(listing)?),
                    };
                    self.download(connection, listing, file, &blob, &mut report)?;
                }
                self.cache.link(listing, file)?;
                drop(lock);
            }
            if file.is_index() {
                self.check_shards(listing, file, &blob)?;
            }
            done += file.size;
            progress(done, total);
        }
        self.cache.name(listing)
    }

    /// Refuses a listing that lacks shards which its `index`, fetched first, names.
    fn check_shards(
        &self,
        listing: &Listing,
        index: &RemoteFile,
        blob: &Path,
    ) -> Result<(), HubError> {
        let text = std::fs::read(blob).map_err(HubError::cache(blob))?;
        let checked = listing.check_shards(&text);
        checked.map_err(|problem| HubError::Shards {
            url: self.url(listing, index),
            problem,
        })
    }

    fn url(&self, listing: &Listing, file: &RemoteFile) -> String {
        let page = self.settings.page(&listing.repo);
        format!("{page}/resolve/{}/{}", listing.commit, file.name)
    }

    /// What the files of a listing are requested with.
    fn connect(&self, listing: &Listing) -> Result<Connection, HubError> {
        if self.settings.offline {
            return Err(HubError::Offline {
                repo: listing.repo.clone(),
            });
        }
        self.settings.check()?;
        Connection::new()
    }

    fn download(
        &self,
        connection: &Connection,
        listing: &Listing,
        file: &RemoteFile,
        blob: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let context = RequestContext {
            url: &self.url(listing, file),
            page: &self.settings.page(&listing.repo),
            with_token: self.settings.token.is_some(),
            file: true,
        };
        download::fetch(connection, &self.settings, context, file, blob, progress)
    }

    /// Bytes of a listing that the cache lacks.
    pub fn missing_bytes(&self, listing: &Listing) -> u64 {
        let missing = listing.files.iter().filter(|file| {
            let blob = self.cache.blob_path(&listing.repo, &file.hash);
            !is_whole(&blob, file.size)
        });
        missing.map(|file| file.size).sum()
    }
}

/// Whether a file of the cache is there. Its hash was checked when it came.
fn is_whole(blob: &Path, size: u64) -> bool {
    blob.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}
