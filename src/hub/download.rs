//! One file from the hub: continued where it broke off, and compared with its hash before it
//! counts.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::connection::{Connection, NoAnswer};
use super::denied::RequestContext;
use super::{HubError, HubSettings, RemoteFile};

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Fetches the file of `context` into `blob`, by way of a file `blob.incomplete`, which a later
/// call continues. `progress` is told the bytes that are there.
pub(super) fn fetch(
    connection: &Connection,
    settings: &HubSettings,
    context: RequestContext,
    file: &RemoteFile,
    blob: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), HubError> {
    let mut path = blob.as_os_str().to_owned();
    path.push(".incomplete");
    let mut download = Download {
        connection,
        settings,
        context,
        size: file.size,
        path: path.into(),
        progress,
    };
    download.run()?;
    let path = download.path;
    verify(&path, context.url, file)?;
    std::fs::rename(&path, blob).map_err(HubError::cache(blob))
}

struct Download<'a> {
    connection: &'a Connection,
    settings: &'a HubSettings,
    context: RequestContext<'a>,
    size: u64,
    path: PathBuf,
    progress: &'a mut dyn FnMut(u64),
}

/// How one request ended.
enum End {
    /// All bytes are there.
    Whole,
    /// The connection broke, for this reason.
    Broken(String),
    /// The hub has no more, though it lists more.
    Short,
}

impl Download<'_> {
    /// Requests what is missing until it is there. Only requests that gain nothing count against
    /// the patience; to get again what was there before is no gain.
    fn run(&mut self) -> Result<(), HubError> {
        let mut failures = 0;
        let mut most = self.length();
        loop {
            let end = self.request()?;
            if matches!(end, End::Whole) {
                return Ok(());
            }
            let length = self.length();
            failures = if length > most { 0 } else { failures + 1 };
            most = most.max(length);
            // What the hub has not will hardly come with more patience.
            let patience = match end {
                End::Short => self.settings.retries.min(2),
                _ => self.settings.retries,
            };
            if failures > patience {
                let url = self.context.url.into();
                return Err(match end {
                    End::Broken(problem) => HubError::Connection { url, problem },
                    End::Short | End::Whole => HubError::Short {
                        url,
                        got: most,
                        listed: self.size,
                    },
                });
            }
            std::thread::sleep(self.settings.retry_after * 2u32.saturating_pow(failures.min(6)));
        }
    }

    /// Bytes that are there.
    fn length(&self) -> u64 {
        self.path.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Asks for what is missing and appends what comes.
    fn request(&mut self) -> Result<End, HubError> {
        let mut have = self.length();
        if have > self.size {
            std::fs::remove_file(&self.path).map_err(HubError::cache(&self.path))?;
            have = 0;
        }
        if have == self.size {
            self.open(self.size)?; // an empty file must be made
            return Ok(End::Whole);
        }
        let token = self.settings.token.as_deref();
        let mut answer = match self.connection.get(self.context.url, token, have) {
            Ok(answer) => answer,
            Err(NoAnswer::Setting(error)) => return Err(error),
            Err(NoAnswer::Broken(problem)) => return Ok(End::Broken(problem)),
        };
        match answer.status().as_u16() {
            206 if starts_at(&answer, have) => {}
            // The whole file, though a part was asked for: begin again.
            200 => have = 0,
            // Not the part that was asked for: the next request is for all of it.
            206 => {
                self.open(0)?;
                return Ok(End::Broken("the hub cannot continue the download".into()));
            }
            416 => {
                self.open(0)?;
                return Ok(End::Short);
            }
            status @ (408 | 429 | 500..) => {
                return Ok(End::Broken(format!("the hub answers {status}")));
            }
            _ => return Err(self.context.denied(&answer)),
        }
        let mut target = self.open(have)?;
        self.receive(answer.body_mut().as_reader(), &mut target, have)
    }

    /// Opens the file to append after its first `length` bytes.
    fn open(&self, length: u64) -> Result<File, HubError> {
        let opened = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path);
        let file = opened.map_err(HubError::cache(&self.path))?;
        file.set_len(length).map_err(HubError::cache(&self.path))?;
        Ok(file)
    }

    fn receive(
        &mut self,
        mut body: impl Read,
        target: &mut File,
        mut have: u64,
    ) -> Result<End, HubError> {
        let mut chunk = vec![0; CHUNK];
        while have < self.size {
            let count = match body.read(&mut chunk) {
                Ok(0) => return Ok(End::Short),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Ok(End::Broken(error.to_string())),
            };
            // More than was listed is no part of the file; what is there is then compared with its
            // hash.
            let room = usize::try_from(self.size - have).unwrap_or(usize::MAX);
            let bytes = &chunk[..count.min(room)];
            target
                .write_all(bytes)
                .map_err(HubError::cache(&self.path))?;
            have += bytes.len() as u64;
            (self.progress)(have);
        }
        target.sync_all().map_err(HubError::cache(&self.path))?;
        Ok(End::Whole)
    }
}

/// Whether a partial answer begins at byte `start`.
fn starts_at(answer: &ureq::http::Response<ureq::Body>, start: u64) -> bool {
    let range = answer
        .headers()
        .get("content-range")
        .and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

/// Compares a whole file with what the hub lists; one that differs is removed.
fn verify(path: &Path, url: &str, file: &RemoteFile) -> Result<(), HubError> {
    let mut content = File::open(path).map_err(HubError::cache(path))?;
    let found = if file.hash.len() == SHA256_DIGITS {
        digest(Sha256::new(), &mut content)
    } else {
        // Git's name of a file: a header, then the content.
        let header = format!("blob {}\0", file.size);
        digest(Sha1::new_with_prefix(header), &mut content)
    };
    let found = found.map_err(HubError::cache(path))?;
    if found == file.hash {
        return Ok(());
    }
    std::fs::remove_file(path).map_err(HubError::cache(path))?;
    Err(HubError::Corrupt {
        url: url.into(),
        expected: file.hash.clone(),
        found,
    })
}

fn digest(mut hasher: impl Digest, content: &mut File) -> std::io::Result<String> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = content.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        hasher.update(&chunk[..count]);
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
