//! Reading what strangers hand over: never more of it than a bound, whatever it claims to be.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// The most that is read of a text: annotations, results, prompts. Those of the largest datasets have some
/// hundred megabytes.
#[cfg(any(feature = "cli", feature = "eval"))]
pub(crate) const MAX_TEXT_BYTES: u64 = 2 << 30;

/// The most that is read of a small file beside a model: configurations have some kilobytes, tokenizers some
/// megabytes.
pub(crate) const MAX_SMALL_BYTES: u64 = 64 << 20;

/// The most that is reserved before a byte has come: a file's size may be a claim.
const MOST_RESERVED: u64 = 64 << 20;

/// The bytes of the file at `path`, which may be a pipe or a device too.
///
/// # Errors
/// Whatever the system answers (for a folder, that it is one), and [`ErrorKind::FileTooLarge`] for
/// a file of more than `bound` bytes; of a file whose size is known, nothing is read then.
pub(crate) fn read(path: &Path, bound: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    match file.metadata()?.len() > bound {
        true => Err(too_large(bound)),
        false => read_rest(file, Vec::new(), bound),
    }
}

/// `start` and all that `source` has still to give.
///
/// # Errors
/// Those of the source, and [`ErrorKind::FileTooLarge`] where both are more than `bound` bytes. No
/// more memory is taken than the bound, and one byte.
pub(crate) fn read_rest(mut source: impl Read, start: Vec<u8>, bound: u64) -> io::Result<Vec<u8>> {
    let mut bytes = start;
    loop {
        let filled = bytes.len() as u64;
        if filled > bound {
            return Err(too_large(bound));
        }
        let wanted = filled.clamp(1 << 16, MOST_RESERVED).min(bound + 1 - filled);
        bytes.try_reserve_exact(wanted as usize)?;
        if source.by_ref().take(wanted).read_to_end(&mut bytes)? < wanted as usize {
            return Ok(bytes);
        }
    }
}

fn too_large(bound: u64) -> io::Error {
    let mebibytes = bound >> 20;
    let text = match bound % (1 << 20) {
        0 => format!("it holds more than {mebibytes} MiB, and no more is read of such a file"),
        _ => format!("it holds more than {bound} bytes, and no more is read of such a file"),
    };
    io::Error::new(ErrorKind::FileTooLarge, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives bytes without end, and counts them.
    struct Endless(u64);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 += buffer.len() as u64;
            buffer.fill(7);
            Ok(buffer.len())
        }
    }

    #[test]
    fn an_endless_source_is_read_up_to_the_bound() {
        for bound in [0, 1, 65_535, 65_536, 300_000] {
            let mut source = Endless(0);
            let error = read_rest(&mut source, Vec::new(), bound).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FileTooLarge);
            assert_eq!(source.0, bound + 1);
        }
    }

    #[test]
    fn what_fits_exactly_is_whole() {
        for length in [0, 1, 65_536, 200_000] {
            let bytes: Vec<u8> = (0..length).map(|index| index as u8).collect();
            let start = bytes[..length / 3].to_vec();
            let rest = &bytes[length / 3..];
            assert_eq!(read_rest(rest, start, length as u64).unwrap(), bytes);
        }
    }

    #[test]
    fn a_large_file_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        File::create(&path).unwrap().set_len(3 << 30).unwrap();
        let error = read(&path, 2 << 20).unwrap_err();
        assert!(error.to_string().contains("more than 2 MiB"), "{error}");
        assert!(read(folder.path(), 2 << 20).is_err(), "a folder");
    }

    #[cfg(unix)]
    #[test]
    fn devices_end_at_the_bound() {
        assert!(read(Path::new("/dev/null"), 9).unwrap().is_empty());
        let error = read(Path::new("/dev/zero"), 1 << 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
    }
}
