//! An index file: features and tokens of images, so that a later search need not encode them again.
//!
//! It is a safetensors file of `image_tokens` `[images, tokens, width]` and `image_features` `[images, queries, width]`
//! (f32: a search with an index gives the same scores as one without), whose metadata names model and images. It is
//! written beside its place and renamed when it is whole.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::{Deserialize, Serialize};

use crate::files::atomic::AtomicFile;
use crate::files::bounded;
use crate::files::checksum::Checksum;
use crate::image::MAX_FILE_BYTES;

/// Key of the metadata.
const KEY: &str = "blip2_wgpu_index";
const TOKENS: &str = "image_tokens";
const FEATURES: &str = "image_features";

/// Changes whenever older indexes cannot be read any more.
const VERSION: u32 = 1;

/// Largest header that is read: room for some 300,000 images.
const MAX_HEADER: u64 = 100_000_000;

/// What can be wrong with an index file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// It cannot be read or written.
    #[error("{}: the index cannot be {doing} ({cause}); check its folder, permissions and the space there", file.display())]
    Io {
        /// The index.
        file: PathBuf,
        /// "read" or "written".
        doing: &'static str,
        /// What the system answered.
        cause: std::io::Error,
    },
    /// It is no index, or a damaged one.
    #[error("{}: not a usable index ({problem}); delete it and it is made anew, or name another file", file.display())]
    Damaged {
        /// The index.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It holds the features of another model.
    #[error(
        "{}: the index was made with another model, image size or preset; use that one again, name another index file, or delete this one",
        file.display()
    )]
    OtherModel {
        /// The index.
        file: PathBuf,
    },
    /// An image is not what it was.
    #[error(
        "{}: {image} has changed since the index was made; delete the index and it is made anew, or name another file",
        file.display()
    )]
    ImageChanged {
        /// The index.
        file: PathBuf,
        /// The image.
        image: String,
    },
}

/// An image as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IndexedImage {
    /// Absolute path.
    pub path: String,
    /// Size of the file.
    bytes: u64,
    /// Time of its last change, nanoseconds since 1970.
    modified: u64,
    /// Sum of its bytes.
    hash: u64,
    /// Sums of its tokens and of its features in the index.
    values: [u64; 2],
}

#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    model: u64,
    images: Vec<IndexedImage>,
}

/// Rows and columns of an image's tokens, and of its features.
pub(super) type Shapes = [[usize; 2]; 2];

/// An index that is read.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    file: File,
    shapes: Shapes,
    /// Where the tokens and the features begin.
    starts: [u64; 2],
    pub images: Vec<IndexedImage>,
}

/// The absolute path that an image is known by, whatever folder the program runs in.
pub(super) fn known_path(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    absolute.display().to_string()
}

impl Index {
    /// Opens `path`, made with the model whose fingerprint is `model`; `None` where there is no such file.
    pub(super) fn open(
        path: &Path,
        model: u64,
        shapes: Shapes,
    ) -> Result<Option<Self>, IndexError> {
        let read = |cause| IndexError::Io {
            file: path.into(),
            doing: "read",
            cause,
        };
        let damaged = |problem: String| IndexError::Damaged {
            file: path.into(),
            problem,
        };
        let mut file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(read)?,
        };
        let total = file.metadata().map_err(read)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)
            .map_err(|_| damaged("it has no header".into()))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > total.saturating_sub(8) {
            return Err(damaged(
                "its header is cut off, or it is another file".into(),
            ));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(read)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;
        let description = header
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(KEY))
            .ok_or_else(|| damaged("it is another safetensors file".into()))?;
        let description: Description =
            serde_json::from_str(description).map_err(|error| damaged(error.to_string()))?;
        if description.version != VERSION {
            return Err(damaged(format!(
                "it is of version {}, this program writes {VERSION}",
                description.version
            )));
        }
        if description.model != model {
            return Err(IndexError::OtherModel { file: path.into() });
        }
        let mut starts = [0; 2];
        let mut end = 8 + length;
        let values = total - end;
        for ((name, [rows, columns]), start) in
            [TOKENS, FEATURES].into_iter().zip(shapes).zip(&mut starts)
        {
            let info = header.info(name);
            let shape = [description.images.len(), rows, columns];
            let Some(info) = info.filter(|info| info.shape == shape) else {
                return Err(damaged(format!("tensor {name} is not {shape:?}")));
            };
            let (first, last) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            let bytes = (4 * rows * columns * description.images.len()) as u64;
            if info.dtype != Dtype::F32 || last > values || last.checked_sub(first) != Some(bytes) {
                return Err(damaged(format!("tensor {name} lies elsewhere")));
            }
            *start = 8 + length + first;
            end = end.max(8 + length + last);
        }
        if end != total {
            return Err(damaged(format!("it has {total} bytes instead of {end}")));
        }
        Ok(Some(Self {
            path: path.into(),
            file,
            shapes,
            starts,
            images: description.images,
        }))
    }

    /// Errs if the image's file is not what it was: another size, or another time of change and other bytes.
    pub(super) fn check_unchanged(&self, image: &IndexedImage) -> Result<(), IndexError> {
        let path = Path::new(&image.path);
        let unchanged = match stamp(path) {
            Ok((bytes, modified)) if bytes == image.bytes => {
                modified == image.modified
                    || bounded::read(path, MAX_FILE_BYTES)
                        .is_ok_and(|bytes| Checksum::of(&bytes) == image.hash)
            }
            _ => false,
        };
        if unchanged {
            return Ok(());
        }
        Err(IndexError::ImageChanged {
            file: self.path.clone(),
            image: image.path.clone(),
        })
    }

    /// The image encoder's tokens of the image in `row`, checked.
    pub(super) fn tokens(&mut self, row: usize) -> Result<Vec<f32>, IndexError> {
        self.checked(row, 0)
    }

    /// The features of the image in `row`, checked.
    pub(super) fn features(&mut self, row: usize) -> Result<Vec<f32>, IndexError> {
        self.checked(row, 1)
    }

    fn checked(&mut self, row: usize, part: usize) -> Result<Vec<f32>, IndexError> {
        let values = self.read(row, part)?;
        if sum_of(&values) == self.images[row].values[part] {
            return Ok(values);
        }
        Err(IndexError::Damaged {
            file: self.path.clone(),
            problem: format!("the values of {} have changed", self.images[row].path),
        })
    }

    /// The tokens (`part` 0) or features (1) in `row`.
    fn read(&mut self, row: usize, part: usize) -> Result<Vec<f32>, IndexError> {
        let [rows, columns] = self.shapes[part];
        let mut values = vec![0.0_f32; rows * columns];
        let offset = self.starts[part] + (row * rows * columns * 4) as u64;
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.read_exact(bytemuck::cast_slice_mut(&mut values)))
            .map_err(|cause| IndexError::Io {
                file: self.path.clone(),
                doing: "read",
                cause,
            })?;
        values
            .iter_mut()
            .for_each(|value| *value = f32::from_bits(u32::from_le(value.to_bits())));
        Ok(values)
    }
}

/// Size and time of the last change.
fn stamp(path: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(path)?;
    // A system without such times, or a time before 1970, is as good as one that never changes: size and hash remain.
    let modified = metadata.modified().ok();
    let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = since.map_or(0, |since| since.as_nanos() as u64);
    Ok((metadata.len(), modified))
}

fn sum_of(values: &[f32]) -> u64 {
    Checksum::of(bytemuck::cast_slice(values))
}

/// An index that is written: beside its place until it is whole.
#[derive(Debug)]
pub(super) struct IndexWriter {
    path: PathBuf,
    file: BufWriter<AtomicFile>,
    model: u64,
    shapes: Shapes,
    header_room: u64,
    images: Vec<IndexedImage>,
    /// Features are few, and come after all tokens.
    features: Vec<f32>,
}

impl IndexWriter {
    /// Begins an index with room in its header for images of these paths.
    pub(super) fn new<'p>(
        path: &Path,
        model: u64,
        shapes: Shapes,
        paths: impl Iterator<Item = &'p str>,
    ) -> Result<Self, IndexError> {
        // Names may double in JSON within JSON, and more: an escape of a control character has seven bytes there.
        let room: usize = paths.map(|path| 7 * path.len() + 300).sum();
        let header_room = (room as u64 + 1024).next_multiple_of(8);
        let file = AtomicFile::create(path).map_err(|cause| IndexError::Io {
            file: path.into(),
            doing: "written",
            cause,
        })?;
        let mut writer = Self {
            file: BufWriter::new(file),
            path: path.into(),
            model,
            shapes,
            header_room,
            images: Vec::new(),
            features: Vec::new(),
        };
        writer.seek(8 + header_room)?;
        Ok(writer)
    }

    fn seek(&mut self, to: u64) -> Result<(), IndexError> {
        let sought = self.file.seek(SeekFrom::Start(to));
        sought.map(drop).map_err(|cause| self.failed(cause))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), IndexError> {
        let written = self.file.write_all(bytes);
        written.map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: std::io::Error) -> IndexError {
        IndexError::Io {
            file: self.path.clone(),
            doing: "written",
            cause,
        }
    }

    /// Adds an image that was just encoded from the file `path` of these `bytes`.
    pub(super) fn add(
        &mut self,
        path: &Path,
        bytes: &[u8],
        tokens: &[f32],
        features: &[f32],
    ) -> Result<(), IndexError> {
        let (_, modified) = stamp(path).map_err(|cause| self.failed(cause))?;
        let image = IndexedImage {
            path: known_path(path),
            bytes: bytes.len() as u64,
            modified,
            hash: Checksum::of(bytes),
            values: [0; 2],
        };
        self.add_known(image, tokens, features)
    }

    /// Adds an image of an older index.
    pub(super) fn add_known(
        &mut self,
        image: IndexedImage,
        tokens: &[f32],
        features: &[f32],
    ) -> Result<(), IndexError> {
        self.write(&little_endian(tokens))?;
        self.features.extend_from_slice(features);
        self.images.push(IndexedImage {
            values: [sum_of(tokens), sum_of(features)],
            ..image
        });
        Ok(())
    }

    /// Writes what is left and puts the file into its place.
    pub(super) fn finish(mut self) -> Result<(), IndexError> {
        let features = std::mem::take(&mut self.features);
        self.write(&little_endian(&features))?;
        let header = self.header();
        if header.len() as u64 > self.header_room {
            let problem = "its header is larger than was planned".into();
            return Err(IndexError::Damaged {
                file: self.path.clone(),
                problem,
            });
        }
        self.seek(0)?;
        let room = self.header_room;
        self.write(&room.to_le_bytes())?;
        self.write(header.as_bytes())?;
        self.write(&vec![b' '; room as usize - header.len()])?;
        let flushed = self.file.into_inner().map_err(std::io::Error::from);
        let finished = flushed.and_then(AtomicFile::sync_and_finish);
        finished.map_err(|cause| IndexError::Io {
            file: self.path,
            doing: "written",
            cause,
        })
    }

    /// The safetensors header.
    fn header(&mut self) -> String {
        let images = std::mem::take(&mut self.images);
        let count = images.len();
        let description = serde_json::json!(Description {
            version: VERSION,
            model: self.model,
            images,
        });
        let mut header = serde_json::Map::new();
        header.insert(
            "__metadata__".into(),
            serde_json::json!({KEY: description.to_string()}),
        );
        let mut start = 0;
        for (name, [rows, columns]) in [TOKENS, FEATURES].into_iter().zip(self.shapes) {
            let end = start + count * rows * columns * 4;
            let info = serde_json::json!({
                "dtype": "F32",
                "shape": [count, rows, columns],
                "data_offsets": [start, end],
            });
            header.insert(name.into(), info);
            start = end;
        }
        serde_json::Value::Object(header).to_string()
    }
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Opens the index at `path` of a model with the fingerprint 7, and reads the first of its images.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(path: &Path) -> Result<(), IndexError> {
    let Some(mut index) = Index::open(path, 7, [[2, 3], [1, 2]])? else {
        return Ok(());
    };
    if let Some(image) = index.images.first().cloned() {
        index.tokens(0)?;
        index.features(0)?;
        index.check_unchanged(&image)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: Shapes = [[3, 2], [2, 4]];

    fn image(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn values(seed: f32) -> (Vec<f32>, Vec<f32>) {
        let of = |count: usize| (0..count).map(|i| seed + i as f32).collect();
        (of(6), of(8))
    }

    /// An index of two images.
    fn write(folder: &Path) -> (PathBuf, [PathBuf; 2]) {
        let images = [
            image(folder, "a \"1\".png", b"aaa"),
            image(folder, "ü\n.png", b"bb"),
        ];
        let path = folder.join("x.index");
        let names = images.each_ref().map(|image| known_path(image));
        let names = names.iter().map(String::as_str);
        let mut writer = IndexWriter::new(&path, 7, SHAPES, names).unwrap();
        for (seed, image) in [1.0, 2.0].into_iter().zip(&images) {
            let (tokens, features) = values(seed);
            let bytes = std::fs::read(image).unwrap();
            writer.add(image, &bytes, &tokens, &features).unwrap();
        }
        assert!(!path.exists(), "half an index lay in its place");
        writer.finish().unwrap();
        (path, images)
    }

    fn names_in(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (path, images) = write(folder.path());
        assert_eq!(names_in(folder.path()), 3);
        let mut index = Index::open(&path, 7, SHAPES).unwrap().unwrap();
        for (row, seed) in [(1, 2.0), (0, 1.0)] {
            let (tokens, features) = values(seed);
            assert_eq!(index.tokens(row).unwrap(), tokens);
            assert_eq!(index.features(row).unwrap(), features);
            let known = index.images[row].clone();
            assert_eq!(known.path, known_path(&images[row]));
            index.check_unchanged(&known).unwrap();
        }
        // Other programs can read it as well.
        let bytes = std::fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor(TOKENS).unwrap().shape(), [2, 3, 2]);
        assert!(
            Index::open(&folder.path().join("none"), 7, SHAPES)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn an_image_counts_as_changed_by_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (path, images) = write(folder.path());
        let index = Index::open(&path, 7, SHAPES).unwrap().unwrap();
        let known = &index.images[0];
        // Written again, but the same.
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(9);
        let touched = File::options().write(true).open(&images[0]).unwrap();
        touched.set_modified(later).unwrap();
        index.check_unchanged(known).unwrap();
        std::fs::write(&images[0], b"aab").unwrap();
        let error = index.check_unchanged(known).unwrap_err().to_string();
        assert!(error.contains("has changed"), "{error}");
        std::fs::remove_file(&images[0]).unwrap();
        assert!(index.check_unchanged(known).is_err());
    }

    #[test]
    fn another_model_and_damage_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = write(folder.path());
        let whole = std::fs::read(&path).unwrap();
        let error = Index::open(&path, 8, SHAPES).unwrap_err().to_string();
        assert!(error.contains("another model"), "{error}");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            match Index::open(&path, 7, SHAPES) {
                Ok(_) => panic!("{} bytes were taken", bytes.len()),
                Err(error) => assert!(error.to_string().contains("not a usable index"), "{error}"),
            }
        };
        for length in [0, 7, 8, 100, whole.len() - 1] {
            refused(&whole[..length]);
        }
        refused(&[&whole[..], b"\0"].concat());
        refused(&[b'x'; 500]);
        let mut changed = whole.clone();
        changed[20] ^= 1;
        refused(&changed);
        // Places that are not in the file, one of which is no sum of 64 bits.
        let text = String::from_utf8_lossy(&whole).into_owned();
        let start = text.find("\"data_offsets\":[").expect("offsets") + 16;
        let end = start + text[start..].find(']').expect("their end");
        for offsets in ["0,1", "48,96", "48,0", "0,18446744073709551615"] {
            let header = [&whole[8..start], offsets.as_bytes(), &whole[end..]].concat();
            let length = u64::from_le_bytes(*whole.first_chunk().expect("a length"));
            let length = length + offsets.len() as u64 - (end - start) as u64;
            refused(&[&length.to_le_bytes()[..], &header].concat());
        }
        // A changed value is seen when it is read.
        let mut changed = whole.clone();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        std::fs::write(&path, changed).unwrap();
        let mut index = Index::open(&path, 7, SHAPES).unwrap().unwrap();
        index.features(0).unwrap();
        index.tokens(1).unwrap();
        assert!(index.features(1).is_err());
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.index");
        let writer = IndexWriter::new(&path, 7, SHAPES, std::iter::empty()).unwrap();
        assert_eq!(names_in(folder.path()), 1);
        drop(writer);
        assert_eq!(names_in(folder.path()), 0);
    }
}
