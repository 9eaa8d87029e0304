//! A file that appears under its name when it is whole, or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file being written beside its final place. Dropped before [`PartFile::finish`], it is removed.
#[derive(Debug)]
pub(super) struct PartFile {
    file: File,
    part: PathBuf,
    path: PathBuf,
    failed: bool,
}

impl PartFile {
    /// Starts the file that shall be `path`, whose folder must exist.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        name.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(name);
        Ok(Self {
            file: OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&part)?,
            part,
            path: path.into(),
            failed: false,
        })
    }

    /// Appends `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(bytes);
        self.failed |= written.is_err();
        written
    }

    /// Gives the file its name, in place of any older one. Errs where a part of it could not be written.
    pub(super) fn finish(self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("a part of it could not be written"));
        }
        self.file.sync_all()?;
        std::fs::rename(&self.part, &self.path)
        // Dropped now, when there is nothing left to remove.
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // What is left behind is a hidden file; there is nobody to tell.
        let _ = std::fs::remove_file(&self.part);
    }
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

        let mut given_up = PartFile::create(&path).unwrap();
        given_up.write(b"half").unwrap();
        drop(given_up);
        assert_eq!(
            (std::fs::read(&path).unwrap(), count()),
            (b"old".to_vec(), 1)
        );

        let mut whole = PartFile::create(&path).unwrap();
        whole.write(b"ne").unwrap();
        whole.write(b"w").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        whole.finish().unwrap();
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
            PartFile::create(&path).expect_err("no file can be there");
        }
    }
}
