//! The image arguments of the command line: files, folders, globs, and `-` for standard input.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::image::{DecodePolicy, ImageError, Rgb8Image, decode, decode_file, read_from};
use crate::task;

use super::output::Output;

/// File name extensions, in lower case, that mark an image in a folder. A file that is named itself
/// is taken whatever it is called.
pub const EXTENSIONS: [&str; 16] = [
    "bmp", "dib", "gif", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "qoi",
    "tif", "tiff", "webp",
];

/// The name standard input goes by in results and errors.
pub const STDIN_NAME: &str = "-";

/// One image to work on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInput {
    /// What results and errors call it: the path as text (bytes that are not UTF-8 replaced), or
    /// `-`.
    pub name: String,
    /// Where its bytes are.
    pub source: ImageSource,
}

impl ImageInput {
    /// What the model runs it from.
    pub fn to_source(&self) -> task::ImageSource {
        match &self.source {
            ImageSource::Path(path) => task::ImageSource::File(path.clone()),
            ImageSource::Bytes(bytes) => task::ImageSource::Bytes {
                name: self.name.clone(),
                bytes: bytes.as_slice().into(),
            },
        }
    }

    /// Reads the image as `policy` has it.
    ///
    /// # Errors
    /// A file that is missing, unreadable or no image.
    pub fn decode(&self, policy: DecodePolicy) -> Result<Rgb8Image, ImageError> {
        match &self.source {
            ImageSource::Path(path) => decode_file(path, policy),
            ImageSource::Bytes(bytes) => decode(bytes, &self.name, policy),
        }
    }
}

/// Where an image's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// In a file, not yet read.
    Path(PathBuf),
    /// Already read, from standard input.
    Bytes(Vec<u8>),
}

/// Why an argument gives no image, or not all of its images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// Neither a file nor a folder, and not a pattern either.
    #[error("{name}: no such file or folder; check the path")]
    Missing {
        /// The argument.
        name: String,
    },
    /// A file or folder that cannot be looked at.
    #[error("{name}: cannot be read ({source}); check its permissions")]
    Unreadable {
        /// The file or folder.
        name: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A folder that has no image in it, nor in the folders below.
    #[error("{name}: the folder has no images; images are the files ending in {}", EXTENSIONS.join(", "))]
    NoImages {
        /// The folder.
        name: String,
    },
    /// A pattern that matches nothing.
    #[error("{name}: no image matches the pattern; check it, and quote it against the shell")]
    NoMatch {
        /// The pattern.
        name: String,
    },
    /// A pattern that is none.
    #[error("{name}: not a valid pattern ({source}); write a literal `[` as `[[]`")]
    BadPattern {
        /// The pattern.
        name: String,
        /// What is wrong with it.
        source: glob::PatternError,
    },
    /// `-` given twice: the bytes are gone after the first.
    #[error("-: standard input can be read only once; give `-` a single time")]
    StdinTwice,
    /// Standard input failed, or is no image.
    #[error(transparent)]
    Stdin(#[from] ImageError),
}

/// The images that the arguments stand for, in the order of the arguments.
///
/// Folders give their images at any depth, sorted by path; patterns give their matches sorted,
/// folders among them expanded. The same image given twice is there twice.
///
/// Those that failed are reported, and how many they are is returned.
pub fn images_of(arguments: &[OsString], output: &Output) -> (Vec<ImageInput>, usize) {
    let (images, errors) = expand_with(arguments, &mut io::stdin().lock());
    errors.iter().for_each(|error| output.error(error));
    (images, errors.len())
}

fn expand_with(arguments: &[OsString], stdin: &mut dyn Read) -> (Vec<ImageInput>, Vec<InputError>) {
    let mut found = Found::default();
    let mut stdin = Some(stdin);
    for argument in arguments {
        if argument == STDIN_NAME {
            match stdin.take().map(|stdin| read_from(stdin, STDIN_NAME)) {
                Some(Ok(bytes)) => found.images.push(ImageInput {
                    name: STDIN_NAME.into(),
                    source: ImageSource::Bytes(bytes),
                }),
                Some(Err(error)) => found.errors.push(error.into()),
                None => found.errors.push(InputError::StdinTwice),
            }
        } else {
            found.add_argument(argument);
        }
    }
    (found.images, found.errors)
}

fn name_of(path: &Path) -> String {
    path.display().to_string()
}

#[derive(Default)]
struct Found {
    images: Vec<ImageInput>,
    errors: Vec<InputError>,
}

impl Found {
    fn add_argument(&mut self, argument: &OsStr) {
        let path = Path::new(argument);
        // What exists is never taken for a pattern: file names may hold brackets.
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => self.add_folder(path),
            Ok(_) => self.add_file(path.to_path_buf()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.add_unreadable(path, error);
            }
            Err(_) => match argument
                .to_str()
                .filter(|text| text.contains(['*', '?', '[']))
            {
                Some(pattern) => self.add_pattern(pattern),
                None => self.errors.push(InputError::Missing {
                    name: name_of(path),
                }),
            },
        }
    }

    fn add_file(&mut self, path: PathBuf) {
        self.images.push(ImageInput {
            name: name_of(&path),
            source: ImageSource::Path(path),
        });
    }

    fn add_unreadable(&mut self, path: &Path, source: io::Error) {
        self.errors.push(InputError::Unreadable {
            name: name_of(path),
            source,
        });
    }

    fn add_folder(&mut self, folder: &Path) {
        let before = (self.images.len(), self.errors.len());
        self.add_images_of(folder);
        if (self.images.len(), self.errors.len()) == before {
            self.errors.push(InputError::NoImages {
                name: name_of(folder),
            });
        }
    }

    fn add_images_of(&mut self, folder: &Path) {
        let mut files = Vec::new();
        self.collect_images(folder, &mut files);
        files.sort();
        files.into_iter().for_each(|file| self.add_file(file));
    }

    /// Walks a folder. Linked files count; linked folders are not entered, so that a link to a
    /// folder above cannot make the walk endless.
    fn collect_images(&mut self, folder: &Path, files: &mut Vec<PathBuf>) {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.add_unreadable(folder, error),
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))) {
                Ok((path, kind)) if kind.is_dir() => self.collect_images(&path, files),
                Ok((path, _)) if has_image_extension(&path) && path.is_file() => files.push(path),
                Ok(_) => {}
                Err(error) => self.add_unreadable(folder, error),
            }
        }
    }

    fn add_pattern(&mut self, pattern: &str) {
        let name = pattern.to_owned();
        let matches = match glob::glob(pattern) {
            Ok(matches) => matches,
            Err(source) => return self.errors.push(InputError::BadPattern { name, source }),
        };
        let (images_before, errors_before) = (self.images.len(), self.errors.len());
        for path in matches {
            match path {
                Ok(path) if path.is_dir() => self.add_images_of(&path),
                Ok(path) if has_image_extension(&path) => self.add_file(path),
                Ok(_) => {}
                Err(error) => {
                    let path = error.path().to_path_buf();
                    self.add_unreadable(&path, error.into());
                }
            }
        }
        if (self.images.len(), self.errors.len()) == (images_before, errors_before) {
            self.errors.push(InputError::NoMatch { name });
        }
    }
}

pub fn has_image_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| {
        EXTENSIONS
            .iter()
            .any(|known| known.eq_ignore_ascii_case(extension))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// b.png, a.JPG, notes.txt, sub/c.webp, sub/deep/d.gif, empty/readme.md, "odd[1].png"
    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["sub/deep", "empty"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for file in [
            "b.png",
            "a.JPG",
            "notes.txt",
            "sub/c.webp",
            "sub/deep/d.gif",
            "empty/readme.md",
            "odd[1].png",
        ] {
            std::fs::write(root.path().join(file), b"x").unwrap();
        }
        root
    }

    /// The images, relative to the root, and the errors as text.
    fn run(root: &Path, arguments: &[&str], stdin: &[u8]) -> (Vec<String>, Vec<String>) {
        let arguments: Vec<OsString> = arguments
            .iter()
            .map(|argument| match *argument {
                "-" => "-".into(),
                relative => root.join(relative).into_os_string(),
            })
            .collect();
        let (images, errors) = expand_with(&arguments, &mut { stdin });
        let prefix = format!("{}{}", root.display(), std::path::MAIN_SEPARATOR);
        let strip = |text: String| text.replace(&prefix, "").replace('\\', "/");
        (
            images.into_iter().map(|image| strip(image.name)).collect(),
            errors
                .iter()
                .map(|error| strip(error.to_string()))
                .collect(),
        )
    }

    #[test]
    fn folders_are_walked_and_sorted() {
        let root = tree();
        let (images, errors) = run(root.path(), &[""], b"");
        assert_eq!(
            images,
            [
                "a.JPG",
                "b.png",
                "odd[1].png",
                "sub/c.webp",
                "sub/deep/d.gif"
            ]
        );
        assert!(errors.is_empty());
    }

    #[test]
    fn the_order_of_the_arguments_stays() {
        let root = tree();
        let (images, errors) = run(root.path(), &["sub", "notes.txt", "b.png", "b.png"], b"");
        assert_eq!(
            images,
            [
                "sub/c.webp",
                "sub/deep/d.gif",
                "notes.txt",
                "b.png",
                "b.png"
            ]
        );
        assert!(errors.is_empty());
    }

    #[test]
    fn one_bad_argument_spares_the_others() {
        let root = tree();
        let arguments = ["gone.png", "a.JPG", "empty", "*.tif", "[", "b.png"];
        let (images, errors) = run(root.path(), &arguments, b"");
        assert_eq!(images, ["a.JPG", "b.png"]);
        assert_eq!(errors.len(), 4, "{errors:?}");
        for (error, start) in errors.iter().zip([
            "gone.png: no such file",
            "empty: the folder has no images",
            "*.tif: no image matches",
            "[: not a valid pattern",
        ]) {
            assert!(error.starts_with(start), "{error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn patterns() {
        let root = tree();
        assert_eq!(
            run(root.path(), &["*"], b"").0,
            [
                "a.JPG",
                "b.png",
                "odd[1].png",
                "sub/c.webp",
                "sub/deep/d.gif"
            ]
        );
        assert_eq!(run(root.path(), &["**/*.gif"], b"").0, ["sub/deep/d.gif"]);
        // An existing name wins over its reading as a pattern.
        assert_eq!(run(root.path(), &["odd[1].png"], b"").0, ["odd[1].png"]);
    }

    #[test]
    fn standard_input_once() {
        let root = tree();
        let (images, errors) = run(root.path(), &["-", "b.png", "-"], b"P1 1 1 0");
        assert_eq!(images, ["-", "b.png"]);
        assert_eq!(errors.len(), 1);
        let (images, _) = expand_with(&["-".into()], &mut &b"P1 1 1 0"[..]);
        assert_eq!(images[0].source, ImageSource::Bytes(b"P1 1 1 0".to_vec()));
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf8() {
        use std::os::unix::ffi::OsStrExt;
        let root = tree();
        let odd = root.path().join(OsStr::from_bytes(b"\xFF.png"));
        if std::fs::write(&odd, b"x").is_err() {
            return; // a file system that refuses such names
        }
        let gone = root.path().join(OsStr::from_bytes(b"\xFE*.png"));
        let arguments = [odd.clone().into(), gone.into(), root.path().into()];
        let (images, errors) = expand_with(&arguments, &mut io::empty());
        assert_eq!(images[0].source, ImageSource::Path(odd));
        assert_eq!((images.len(), errors.len()), (7, 1));
    }
}
