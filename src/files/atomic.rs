//! A file that appears under its name when it is whole, or not at all: written beside its place,
//! then renamed.

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file being written beside its final place. Dropped before it is finished, it is removed.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    part: tempfile::NamedTempFile,
    path: PathBuf,
    failed: bool,
}

impl AtomicFile {
    /// Starts the file that shall be `path`, whose folder must exist.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if path.file_name().is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Opened as any file is: with the permissions that the user's files get, and the system's
        // own errors.
        let open = |part: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).open(part)
        };
        let part = tempfile::Builder::new()
            .prefix(".blip2-wgpu-")
            .suffix(".part")
            .make_in(path.parent().unwrap_or(Path::new("")), open)?;
        Ok(Self {
            part,
            path: path.into(),
            failed: false,
        })
    }

    /// Gives the file its name, in place of any older one. Whatever ends the process, the old file
    /// or the new one is there; a power cut may cost both.
    ///
    /// # Errors
    /// A part of it could not be written, or it cannot be renamed.
    pub(crate) fn finish(self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("a part of it could not be written"));
        }
        let renamed = self.part.persist(&self.path);
        renamed.map(drop).map_err(|error| error.error)
    }

    /// The same once it is on the disk: a power cut costs nothing.
    pub(crate) fn sync_and_finish(self) -> io::Result<()> {
        self.part.as_file().sync_all()?;
        self.finish()
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.part.as_file_mut().write(bytes);
        self.failed |= written.is_err();
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.part.as_file_mut().flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.part.as_file_mut().seek(to)
    }
}

/// Writes `path` whole, as [`AtomicFile::finish`] puts it there.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.finish()
}

/// Writes `path` whole and sees to it that it is on the disk.
#[cfg(feature = "cli")]
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.sync_and_finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_file_stays_until_the_new_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.html");
        std::fs::write(&path, "old").unwrap();
        let count = || std::fs::read_dir(folder.path()).unwrap().count();

        let mut given_up = AtomicFile::create(&path).unwrap();
        given_up.write_all(b"half").unwrap();
        drop(given_up);
        assert_eq!(
            (std::fs::read(&path).unwrap(), count()),
            (b"old".to_vec(), 1)
        );

        let mut whole = AtomicFile::create(&path).unwrap();
        whole.write_all(b"ne").unwrap();
        whole.write_all(b"w").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        whole.sync_and_finish().unwrap();
        assert_eq!(
            (std::fs::read(&path).unwrap(), count()),
            (b"new".to_vec(), 1)
        );
    }

    #[test]
    fn places_that_cannot_be_written_are_known_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["", "gone/out.html", ".."] {
            let path = folder.path().join(path);
            AtomicFile::create(&path).expect_err("no file can be there");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_has_the_permissions_of_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| {
            let metadata = folder.path().join(name).metadata().unwrap();
            metadata.permissions().mode()
        };
        std::fs::write(folder.path().join("plain"), "x").unwrap();
        write(&folder.path().join("atomic"), b"x").unwrap();
        assert_eq!(mode("atomic"), mode("plain"));
    }
}
