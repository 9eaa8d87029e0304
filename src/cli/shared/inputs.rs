//! The image arguments of the command line: files, folders, globs, and `-` for standard input.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::files::walk::{Met, identity, met_at, walk, walk_all};
use crate::image::{DecodePolicy, ImageError, Rgb8Image, decode, decode_file, read_from};
use crate::task;

use super::output::Output;

/// File name extensions, in lower case, that mark an image in a folder. A file that is named itself
/// is taken whatever it is called.
pub const EXTENSIONS: [&str; 16] = [
    "bmp", "dib", "gif", "jfif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "pnm", "ppm", "qoi",
    "tif", "tiff", "webp",
];

/// Extensions of pictures that this program does not read. In a folder they are left out with a warning.
const UNREAD_EXTENSIONS: [&str; 24] = [
    "arw", "avif", "cr2", "cr3", "dng", "exr", "heic", "heif", "hif", "ico", "j2k", "jp2", "jpx",
    "jxl", "jxr", "nef", "orf", "psd", "raf", "rw2", "svg", "svgz", "tga", "xcf",
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
    #[error("{name}: the folder has no images{has}; images are the files ending in {}", EXTENSIONS.join(", "))]
    NoImages {
        /// The folder.
        name: String,
        /// What it has, as in " (2 .avif, 1 .txt)"; empty where it has nothing.
        has: String,
    },
    /// A link that leads nowhere.
    #[error("{name}: the link leads to nothing ({source}); mend or remove it")]
    Dangling {
        /// The link.
        name: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A pipe or device among the files of a folder: to read it might wait for ever.
    #[error("{name}: no regular file; name it itself to read from it")]
    NoFile {
        /// What it is called.
        name: String,
    },
    /// A pattern that matches nothing.
    #[error(
        "{name}: no image matches the pattern; check it, and quote it against the shell{}",
        brackets(name)
    )]
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

/// Numbers of files by their ending, in words.
fn counted(files: &BTreeMap<String, usize>) -> String {
    let counts = files.iter().map(|(ending, count)| match &ending[..] {
        "" => format!("{count} without an ending"),
        ending => format!("{count} .{ending}"),
    });
    counts.collect::<Vec<_>>().join(", ")
}

/// More words for a pattern whose brackets may be meant as they are.
fn brackets(pattern: &str) -> &'static str {
    match pattern.contains('[') {
        true => {
            "; `[` and `]` stand for one of the characters between them: write `[[]` for a `[` in a name"
        }
        false => "",
    }
}

/// The images that the arguments stand for, in the order of the arguments.
///
/// Folders give their images at any depth, sorted by path; patterns give their matches sorted,
/// folders among them expanded. Linked folders are entered, each folder once. The same image given
/// twice is there twice.
///
/// Those that failed are reported, and how many they are is returned. A line says what folders and
/// patterns have that is no image.
pub fn images_of(arguments: &[OsString], output: &Output) -> (Vec<ImageInput>, usize) {
    let found = expand_with(arguments, &mut io::stdin().lock());
    found.errors.iter().for_each(|error| output.error(error));
    let (left_out, has_pictures) = found.left_out();
    match left_out {
        Some(line) if has_pictures => output.warning(&line),
        Some(line) => output.note(&line),
        None => {}
    }
    (found.images, found.errors.len())
}

fn expand_with(arguments: &[OsString], stdin: &mut dyn Read) -> Found {
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
    found
}

fn name_of(path: &Path) -> String {
    path.display().to_string()
}

#[derive(Default)]
struct Found {
    images: Vec<ImageInput>,
    errors: Vec<InputError>,
    /// How many files of folders and patterns are no images, by their ending.
    left_out: BTreeMap<String, usize>,
}

impl Found {
    /// What was left out, in a line, and whether pictures are among it.
    fn left_out(&self) -> (Option<String>, bool) {
        if self.left_out.is_empty() {
            return (None, false);
        }
        let counts = counted(&self.left_out);
        let is_picture = |ending: &String| UNREAD_EXTENSIONS.contains(&ending.as_str());
        let has_pictures = self.left_out.keys().any(is_picture);
        let remedy = match has_pictures {
            true => "to have all pictures, convert those of other formats to PNG or JPEG",
            false => "images are told by their endings; name a file itself to have it read",
        };
        (Some(format!("left out: {counts}; {remedy}")), has_pictures)
    }

    fn leave_out(&mut self, path: &Path) {
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        *self.left_out.entry(ending.to_lowercase()).or_default() += 1;
    }

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
        let left_out = std::mem::take(&mut self.left_out);
        self.add_images_of(folder);
        let here = std::mem::replace(&mut self.left_out, left_out);
        if (self.images.len(), self.errors.len()) == before {
            let has = match here.is_empty() {
                true => String::new(),
                false => format!(" ({})", counted(&here)),
            };
            let name = name_of(folder);
            self.errors.push(InputError::NoImages { name, has });
        } else {
            for (ending, count) in here {
                *self.left_out.entry(ending).or_default() += count;
            }
        }
    }

    fn add_images_of(&mut self, folder: &Path) {
        for (path, what) in walk(folder) {
            self.add_met(path, what);
        }
    }

    /// What lies in a folder. What would be no image anyway is left out, whatever it is.
    fn add_met(&mut self, path: PathBuf, what: Met) {
        let name = name_of(&path);
        let is_image = has_image_extension(&path);
        match what {
            Met::File if is_image => self.add_file(path),
            Met::Unread(source) if !path.is_symlink() => self.add_unreadable(&path, source),
            Met::Unread(source) if is_image || path.extension().is_none() => {
                self.errors.push(InputError::Dangling { name, source });
            }
            Met::Other if is_image => self.errors.push(InputError::NoFile { name }),
            Met::File | Met::Unread(_) | Met::Other => self.leave_out(&path),
        }
    }

    fn add_pattern(&mut self, pattern: &str) {
        let name = pattern.to_owned();
        let matches = match glob::glob(pattern) {
            Ok(matches) => matches,
            Err(source) => return self.errors.push(InputError::BadPattern { name, source }),
        };
        let (images_before, errors_before) = (self.images.len(), self.errors.len());
        let (mut met, mut folders) = (Vec::new(), Vec::new());
        for path in matches {
            match path {
                // `.*` stands for the folder itself and the one above as well.
                Ok(path)
                    if [".", ".."].iter().any(|it| path.ends_with(it)) || ends_in_dot(&path) => {}
                Ok(path) if path.is_dir() => folders.push(path),
                Ok(path) => met.push(met_at(path)),
                Err(error) => met.push((error.path().to_path_buf(), Met::Unread(error.into()))),
            }
        }
        met.extend(walk_all(folders));
        met.sort_by(|a, b| a.0.cmp(&b.0));
        for (path, what) in each_once(met) {
            self.add_met(path, what);
        }
        if (self.images.len(), self.errors.len()) == (images_before, errors_before) {
            self.errors.push(InputError::NoMatch { name });
        }
    }
}

/// Whether a path as it is written ends in `/.`, which its components do not show.
fn ends_in_dot(path: &Path) -> bool {
    path.as_os_str().to_string_lossy().ends_with("/.")
}

/// What a pattern met, each once: `**` goes through links, and so comes by one folder under many names. The
/// shortest name stays.
fn each_once(met: Vec<(PathBuf, Met)>) -> Vec<(PathBuf, Met)> {
    let depth = |index: &usize| met[*index].0.components().count();
    let mut order: Vec<usize> = (0..met.len()).collect();
    order.sort_by_key(depth);
    let (mut folders, mut seen) = (HashMap::new(), HashSet::new());
    let mut is_new = vec![true; met.len()];
    for index in order {
        let path = &met[index].0;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = folders.entry(parent.to_path_buf());
        let folder = folder.or_insert_with(|| identity(parent).ok());
        // A file is its name in its folder.
        if let (Some(folder), Some(name)) = (folder.clone(), path.file_name()) {
            is_new[index] = seen.insert((folder, name.to_owned()));
        }
    }
    let met = met.into_iter().zip(is_new);
    met.filter_map(|(met, is_new)| is_new.then_some(met))
        .collect()
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
        let Found { images, errors, .. } = expand_with(&arguments, &mut { stdin });
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
    fn what_is_no_image_is_counted() {
        let root = tree();
        for name in ["photo.AVIF", "sub/photo.avif", "photo.heic"] {
            std::fs::write(root.path().join(name), b"x").unwrap();
        }
        let left_out = |argument: &str| {
            let argument = root.path().join(argument).into_os_string();
            expand_with(&[argument], &mut io::empty()).left_out()
        };
        let (line, has_pictures) = left_out("");
        assert!(
            line.unwrap()
                .starts_with("left out: 2 .avif, 1 .heic, 1 .md, 1 .txt; ")
        );
        assert!(has_pictures);
        let (line, has_pictures) = left_out("*.txt");
        assert!(line.unwrap().starts_with("left out: 1 .txt; "));
        assert!(!has_pictures);
        assert_eq!(left_out("sub/c.webp"), (None, false));
        assert_eq!(left_out("photo.heic"), (None, false)); // named itself, it is read
    }

    #[test]
    fn brackets_are_named_where_nothing_matches() {
        let root = tree();
        std::fs::create_dir(root.path().join("[artist] set")).unwrap();
        std::fs::write(root.path().join("[artist] set/e.png"), b"x").unwrap();
        let (images, errors) = run(root.path(), &["[artist] set/*.png"], b"");
        assert!(images.is_empty());
        assert!(errors[0].contains("write `[[]` for a `[`"), "{errors:?}");
        let (images, _) = run(root.path(), &["[[]artist] set/*.png"], b"");
        assert_eq!(images, ["[artist] set/e.png"]);
        assert!(!run(root.path(), &["*.tif"], b"").1[0].contains('['));
    }

    #[cfg(unix)]
    #[test]
    fn links() {
        use std::os::unix::fs::symlink;
        let root = tree();
        let at = |name: &str| root.path().join(name);
        let elsewhere = tree();
        symlink(elsewhere.path().join("sub"), at("linked")).unwrap();
        symlink(root.path(), at("sub/above")).unwrap();
        symlink(at("b.png"), at("sub/b again.png")).unwrap();
        symlink(at("gone"), at("gone.png")).unwrap();
        symlink(at("gone"), at("gone.txt")).unwrap();
        symlink(at("gone"), at("gone")).unwrap();
        let pipe = at("pipe.png");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let expected = [
            "a.JPG",
            "b.png",
            "linked/c.webp",
            "linked/deep/d.gif",
            "odd[1].png",
            "sub/b again.png",
            "sub/c.webp",
            "sub/deep/d.gif",
        ];
        let (images, errors) = run(root.path(), &[""], b"");
        assert_eq!(images, expected);
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors[2].starts_with("pipe.png: no regular file"));
        assert!(errors[0].starts_with("gone: the link leads to nothing"));
        assert!(errors[1].starts_with("gone.png: the link leads to nothing"));
        // A pattern comes by each as well, and once: however often the link above is passed.
        let (mut images, errors) = run(root.path(), &["**/*.*"], b"");
        images.sort();
        assert_eq!(images, expected);
        assert_eq!(errors.len(), 2, "{errors:?}");
        // Folders that a pattern names overlap, and `.*` would be the folder above as well.
        let (mut images, errors) = run(root.path(), &["**"], b"");
        images.sort();
        let mut expected = expected.map(str::to_owned);
        for name in ["a.JPG", "b.png", "odd[1].png"] {
            // The pattern meets folders alone, and the root by the link to it.
            let place = expected.iter_mut().find(|it| *it == name).unwrap();
            *place = format!("sub/above/{name}");
        }
        expected.sort();
        assert_eq!(images, expected);
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(run(root.path(), &["sub/.*"], b"").0.is_empty());
    }

    #[test]
    fn standard_input_once() {
        let root = tree();
        let (images, errors) = run(root.path(), &["-", "b.png", "-"], b"P1 1 1 0");
        assert_eq!(images, ["-", "b.png"]);
        assert_eq!(errors.len(), 1);
        let found = expand_with(&["-".into()], &mut &b"P1 1 1 0"[..]);
        let bytes = ImageSource::Bytes(b"P1 1 1 0".to_vec());
        assert_eq!(found.images[0].source, bytes);
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
        let Found { images, errors, .. } = expand_with(&arguments, &mut io::empty());
        assert_eq!(images[0].source, ImageSource::Path(odd));
        assert_eq!((images.len(), errors.len()), (7, 1));
    }
}
