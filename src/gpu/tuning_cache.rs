//! The file that keeps what was found out about a device's kernels between runs. What it says is the
//! kernels' business.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Such a file, or none: it is for one adapter, driver and version of this crate.
#[derive(Debug)]
pub(crate) struct TuningCache {
    file: Option<PathBuf>,
}

impl TuningCache {
    pub(super) fn new(file: Option<PathBuf>) -> Self {
        Self { file }
    }

    /// What the file holds. One that is not there, is damaged or of another make holds nothing: it is
    /// written anew.
    pub(crate) fn read<T: Default + DeserializeOwned>(&self) -> T {
        self.file
            .as_deref()
            .and_then(|file| std::fs::read(file).ok())
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Writes the file, whole or not at all. One that cannot be written only costs the next start the
    /// same work: logged, not an error.
    pub(crate) fn write(&self, found: &impl Serialize) {
        let Some(file) = &self.file else { return };
        let text = serde_json::to_vec_pretty(found);
        let written = text
            .map_err(std::io::Error::from)
            .and_then(|text| write_whole(file, &text));
        if let Err(error) = written {
            log::debug!("choice of kernels {} not written: {error}", file.display());
        }
    }

    /// Says to other processes that this one is finding things out, until the result is dropped.
    pub(crate) fn lock(&self) -> FileLock {
        let lock = self.file.as_deref().and_then(|file| {
            let lock = file.with_extension("lock");
            std::fs::create_dir_all(lock.parent()?).ok()?;
            File::create(lock).ok()
        });
        // Where nothing is kept, or files have no locks, no other process is known of.
        let others = lock.as_ref().map(File::try_lock);
        FileLock {
            is_first: !matches!(others, Some(Err(TryLockError::WouldBlock))),
            _lock: lock,
        }
    }

    /// The file, if one keeps anything.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

/// A process's word that it is finding things out: see [`TuningCache::lock`]. It ends with the
/// process, however that ends.
#[derive(Debug)]
pub(crate) struct FileLock {
    is_first: bool,
    _lock: Option<File>,
}

impl FileLock {
    /// Whether no other process was at it. What is unfinished in the file was then left by one that
    /// died.
    pub(crate) fn is_first(&self) -> bool {
        self.is_first
    }
}

/// Writes `file` whole, after its folder.
pub(super) fn write_whole(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
    folder.and_then(|()| crate::files::atomic::write(file, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_outlives_the_process_and_a_damaged_file_does_not_matter() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("below").join("found.json");
        let cache = TuningCache::new(Some(file.clone()));
        assert!(cache.read::<Vec<u32>>().is_empty());
        cache.write(&[7, 9]);
        let again = TuningCache::new(Some(file.clone()));
        assert_eq!(again.read::<Vec<u32>>(), [7, 9]);

        std::fs::write(&file, "[7, ").expect("writable");
        assert!(again.read::<Vec<u32>>().is_empty());
        again.write(&[8]);
        assert_eq!(cache.read::<Vec<u32>>(), [8]);
    }

    #[test]
    fn only_one_at_a_time_is_first() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("found.json");
        let [one, other] = [(); 2].map(|()| TuningCache::new(Some(file.clone())));
        let lock = one.lock();
        assert!(lock.is_first());
        assert!(!other.lock().is_first());
        drop(lock);
        assert!(other.lock().is_first());
        assert!(TuningCache::new(None).lock().is_first());
    }
}
