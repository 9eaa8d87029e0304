//! A file of lines that a run appends to, and that a later run goes on with after a kill at any
//! moment.
//!
//! A log is only ever appended to, a whole line at a time, so that whatever ends a run leaves whole
//! lines and at most one torn one behind them, which the next run drops.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use crate::platform::Instant;

/// How much of a file is whole lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Bytes of its whole lines.
    pub whole: u64,
    /// Bytes behind the last whole line.
    pub torn: u64,
}

impl Extent {
    /// Reads all lines. A newline between double quotes ends none where they are `quoted`, as in
    /// comma-separated values.
    pub(crate) fn of(mut bytes: impl BufRead, quoted: bool) -> io::Result<Self> {
        let (mut whole, mut length, mut inside) = (0, 0, false);
        loop {
            let buffer = bytes.fill_buf()?;
            if buffer.is_empty() {
                let torn = length - whole;
                return Ok(Self { whole, torn });
            }
            for &byte in buffer {
                length += 1;
                match byte {
                    b'"' if quoted => inside = !inside,
                    b'\n' if !inside => whole = length,
                    _ => {}
                }
            }
            let read = buffer.len();
            bytes.consume(read);
        }
    }
}

/// An open log.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    synced: Instant,
}

impl Log {
    /// Goes on with the file `path` after its first `whole` bytes; what stands behind them goes.
    pub(crate) fn resume(path: &Path, whole: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.set_len(whole)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            synced: Instant::now(),
        })
    }

    /// Adds whole lines by one write: a kill tears at most the last of them, and readers see each
    /// as a whole.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.file.write_all(lines)
    }

    /// Sees to it that all lines are on the disk.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.synced = Instant::now();
        self.file.sync_data()
    }

    /// The same where the last time is `interval` ago: what a power cut may cost. (A killed process
    /// loses nothing that it has written.)
    pub(crate) fn sync_every(&mut self, interval: Duration) -> io::Result<()> {
        if self.synced.elapsed() < interval {
            return Ok(());
        }
        self.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_up_to_their_newline() {
        let extent = |text: &str, quoted| Extent::of(text.as_bytes(), quoted).unwrap();
        for (text, quoted, whole, torn) in [
            ("", false, 0, 0),
            ("a\nb\n", false, 4, 0),
            ("a\nb", false, 2, 1),
            ("a,\"x\ny\"\nb", true, 8, 1),
            ("a,\"x\ny\"\nb", false, 8, 1),
            ("a,\"x\ny", true, 0, 6),
        ] {
            assert_eq!(extent(text, quoted), Extent { whole, torn }, "{text:?}");
        }
    }

    #[test]
    fn a_resumed_log_drops_what_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "one\ntw").unwrap();
        let mut log = Log::resume(&path, 4).unwrap();
        log.append(b"two\n").unwrap();
        log.sync().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
