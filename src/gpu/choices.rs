//! What was found out about a device's kernels, such as which of them is fastest where: kept between runs.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Findings by name. What they mean is the kernels' business; here they are words.
///
/// A file is for one adapter, driver and version of this crate; a finding about a kernel has the kernel's text in its
/// name (as a hash), so that an edited kernel is looked at anew.
#[derive(Debug, Default)]
pub struct Choices {
    found: Mutex<BTreeMap<String, String>>,
    file: Option<PathBuf>,
    grown: AtomicBool,
    /// Time that measuring took since the start.
    spent: Mutex<Duration>,
}

impl Choices {
    /// Those in `file`, if it is there and readable. A damaged file holds nothing: it is written anew.
    pub(super) fn open(file: Option<PathBuf>) -> Self {
        let found = file
            .as_deref()
            .and_then(|file| std::fs::read(file).ok())
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        Self {
            found: Mutex::new(found),
            file,
            grown: AtomicBool::new(false),
            spent: Mutex::default(),
        }
    }

    /// What was found under `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        self.lock().get(name).cloned()
    }

    /// Remembers `value` under `name`.
    pub fn set(&self, name: String, value: String) {
        self.lock().insert(name, value);
        self.grown.store(true, Ordering::Relaxed);
    }

    /// Writes the file if anything is new, beside its place and then renamed: a reader never sees half of it. One that
    /// cannot be written only costs the next start the same work: logged, not an error.
    pub fn save(&self) {
        let Some(file) = &self.file else { return };
        if !self.grown.swap(false, Ordering::Relaxed) {
            return;
        }
        let text = serde_json::to_vec_pretty(&*self.lock());
        let written = text
            .map_err(std::io::Error::from)
            .and_then(|text| write_whole(file, &text));
        if let Err(error) = written {
            log::debug!("choice of kernels {} not written: {error}", file.display());
        }
    }

    /// Notes that finding something out took so long.
    pub fn spend(&self, time: Duration) {
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner) += time;
    }

    /// How long it has taken since the device was opened.
    #[must_use]
    pub fn spent(&self) -> Duration {
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that this process is about to find things out, until the result is dropped.
    #[must_use]
    pub fn claim(&self) -> Claim {
        let lock = self.file.as_deref().and_then(|file| {
            let lock = file.with_extension("lock");
            std::fs::create_dir_all(lock.parent()?).ok()?;
            File::create(lock).ok()
        });
        // Where nothing is kept, or files have no locks, no other process is known of.
        let others = lock.as_ref().map(File::try_lock);
        Claim {
            is_first: !matches!(others, Some(Err(TryLockError::WouldBlock))),
            _lock: lock,
        }
    }

    /// The file that keeps the findings, if one does.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process's word that it is finding things out: see [`Choices::claim`]. It ends with the process, however that ends.
#[derive(Debug)]
pub struct Claim {
    is_first: bool,
    _lock: Option<File>,
}

impl Claim {
    /// Whether no other process had claimed the same before. What is unfinished in the file was then left by one that died.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.is_first
    }
}

/// Writes `file` whole, in a folder that is made where there is none.
pub(super) fn write_whole(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    crate::files::atomic::write(file, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_outlive_the_process_and_a_damaged_file_does_not_matter() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("below").join("choices.json");
        let choices = Choices::open(Some(file.clone()));
        assert_eq!(choices.get("a"), None);
        choices.set("a".into(), "tile".into());
        choices.save();
        assert_eq!(
            Choices::open(Some(file.clone())).get("a").as_deref(),
            Some("tile")
        );

        std::fs::write(&file, "{\"a\": ").expect("writable");
        let damaged = Choices::open(Some(file.clone()));
        assert_eq!(damaged.get("a"), None);
        damaged.set("b".into(), "register".into());
        damaged.save();
        assert_eq!(
            Choices::open(Some(file)).get("b").as_deref(),
            Some("register")
        );
    }

    #[test]
    fn only_one_at_a_time_is_first() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("choices.json");
        let (one, other) = (Choices::open(Some(file.clone())), Choices::open(Some(file)));
        let claim = one.claim();
        assert!(claim.is_first());
        assert!(!other.claim().is_first());
        drop(claim);
        assert!(other.claim().is_first());
        assert!(Choices::default().claim().is_first());
    }
}
