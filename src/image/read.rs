//! The bytes of image files, from where strangers put them.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use super::ImageError;
use super::format::{HEAD_BYTES, recognise};
use crate::files::bounded;

/// The most bytes that are read of an image file, a pipe or a device: 1 GiB. An image of
/// [`MAX_PIXELS`](super::MAX_PIXELS) in 8-bit RGB takes half of it.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// Reads the image file at `path`; `name` stands for it in errors. Of what is no image, by its first kilobyte, no more is read.
///
/// # Errors
/// A file that cannot be read, is empty, is no image or has more than [`MAX_FILE_BYTES`].
pub fn read_file(path: &Path, name: &str) -> Result<Vec<u8>, ImageError> {
    let file = File::open(path).map_err(|source| failed(name, source))?;
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    read(file, size, name)
}

/// Reads an image from a pipe; `name` stands for it in errors. See [`read_file`].
#[cfg(feature = "cli")]
pub(crate) fn read_from(source: impl Read, name: &str) -> Result<Vec<u8>, ImageError> {
    read(source, 0, name)
}

/// `size` is what is known beforehand, 0 where nothing is.
fn read(mut source: impl Read, size: u64, name: &str) -> Result<Vec<u8>, ImageError> {
    let mut head = Vec::new();
    let start = source.by_ref().take(HEAD_BYTES as u64);
    { start }
        .read_to_end(&mut head)
        .map_err(|source| failed(name, source))?;
    recognise(&head, name)?;
    if size > MAX_FILE_BYTES {
        return Err(ImageError::TooManyBytes { name: name.into() });
    }
    bounded::read_rest(source, head, MAX_FILE_BYTES).map_err(|source| failed(name, source))
}

fn failed(name: &str, source: io::Error) -> ImageError {
    let name = name.into();
    match source.kind() {
        ErrorKind::FileTooLarge => ImageError::TooManyBytes { name },
        _ => ImageError::Read { name, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file of 3 GiB, all but its start a hole.
    fn sparse(start: &[u8]) -> ImageError {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("movie.jpg");
        let mut file = File::create(&path).unwrap();
        file.write_all(start).unwrap();
        file.set_len(3 << 30).unwrap();
        read_file(&path, "movie.jpg").unwrap_err()
    }

    #[test]
    fn the_first_kilobyte_decides() {
        assert!(matches!(sparse(b""), ImageError::UnknownFormat { .. }));
        let movie = sparse(b"\0\0\0\x18ftypmp42");
        assert!(matches!(movie, ImageError::Foreign { .. }), "{movie}");
        let image = sparse(b"\xFF\xD8\xFF\xE0").to_string();
        assert!(image.contains("more than 1024 MiB"), "{image}");
        assert!(image.contains("scale it down"), "{image}");
    }

    /// Counts what is taken from it.
    struct Counted<R>(R, u64);

    impl<R: Read> Read for Counted<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1 += read as u64;
            Ok(read)
        }
    }

    #[test]
    fn no_more_is_taken_from_a_pipe_of_no_image() {
        let mut pipe = Counted(io::repeat(b'x'), 0);
        let error = read(&mut pipe, 0, "-").unwrap_err();
        assert!(matches!(error, ImageError::UnknownFormat { .. }));
        assert_eq!(pipe.1, HEAD_BYTES as u64);
        assert!(matches!(
            read(io::empty(), 0, "-"),
            Err(ImageError::Empty { .. })
        ));
    }

    /// A pipe may give a byte at a time.
    #[test]
    fn slow_pipes_are_read_whole() {
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let few = buffer.len().min(1);
                self.0.read(&mut buffer[..few])
            }
        }
        let bytes = [b"P6 ".as_slice(), &[9; 5000]].concat();
        assert_eq!(read(Slow(&bytes), 0, "-").unwrap(), bytes);
    }

    #[cfg(unix)]
    #[test]
    fn folders_devices_and_pipes_given_as_files() {
        let folder = tempfile::tempdir().unwrap();
        let error = read_file(folder.path(), "folder").unwrap_err();
        assert!(matches!(error, ImageError::Read { .. }), "{error}");
        for (device, expected) in [("/dev/zero", "not an image"), ("/dev/null", "is empty")] {
            let error = read_file(Path::new(device), device)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let writer = {
            let pipe = pipe.clone();
            std::thread::spawn(move || std::fs::write(pipe, b"P6 1 1 255\nRGB"))
        };
        assert_eq!(read_file(&pipe, "pipe").unwrap(), b"P6 1 1 255\nRGB");
        writer.join().unwrap().unwrap();
    }
}
