//! Rows of f32 to a file that other programs read: safetensors or NumPy's npy. Written beside its
//! place row by row, and renamed when it is whole.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::atomic::{self, AtomicFile};
use super::npy;

/// What a features file looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArrayFormat {
    /// One tensor `features`, its names in the metadata.
    Safetensors,
    /// NumPy; the names are in a JSON list beside it.
    Npy,
}

impl ArrayFormat {
    /// The format that a file's name asks for.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "safetensors" => Some(Self::Safetensors),
            "npy" => Some(Self::Npy),
            _ => None,
        }
    }
}

/// A features file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be written ({cause}); check the folder, its permissions and the space there", file.display())]
pub(crate) struct ArrayError {
    file: PathBuf,
    cause: std::io::Error,
}

/// An array `[rows, shape…]` that grows by rows.
#[derive(Debug)]
pub(crate) struct ArrayWriter {
    path: PathBuf,
    format: ArrayFormat,
    file: BufWriter<AtomicFile>,
    header_room: u64,
    rows: usize,
}

impl ArrayWriter {
    /// Begins a file with room for these names in its header.
    pub(crate) fn new<'n>(
        path: &Path,
        format: ArrayFormat,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<Self, ArrayError> {
        let header_room = match format {
            ArrayFormat::Npy => npy::HEADER,
            ArrayFormat::Safetensors => {
                // A name is escaped twice: JSON within JSON. An escaped control character has seven
                // bytes there.
                let names: usize = names.map(|name| 7 * name.len() + 8).sum();
                8 + (names as u64 + 1024).next_multiple_of(8)
            }
        };
        let opened = AtomicFile::create(path).map(BufWriter::new);
        let sought = opened.and_then(|mut file| {
            file.seek(SeekFrom::Start(header_room))?;
            Ok(file)
        });
        let file = sought.map_err(|cause| ArrayError {
            file: path.into(),
            cause,
        })?;
        Ok(Self {
            path: path.into(),
            format,
            file,
            header_room,
            rows: 0,
        })
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, values: &[f32]) -> Result<(), ArrayError> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.rows += 1;
        let written = self.file.write_all(&bytes);
        written.map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: std::io::Error) -> ArrayError {
        ArrayError {
            file: self.path.clone(),
            cause,
        }
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Writes the header for rows of `shape` with these names and `metadata`, and puts the file
    /// into its place.
    pub(crate) fn finish(
        self,
        shape: &[usize],
        names: &[&str],
        metadata: &[(&str, &str)],
    ) -> Result<(), ArrayError> {
        let shape: Vec<usize> = [&[self.rows], shape].concat();
        let header = match self.format {
            ArrayFormat::Npy => npy::header(&shape),
            ArrayFormat::Safetensors => {
                safetensors_header(&shape, names, metadata, self.header_room)
            }
        };
        let file = self.path.clone();
        let written = self.put(&header, names);
        written.map_err(|cause| ArrayError { file, cause })
    }

    fn put(mut self, header: &[u8], names: &[&str]) -> std::io::Result<()> {
        if header.len() as u64 != self.header_room {
            return Err(std::io::Error::other(
                "the names are too long for its header",
            ));
        }
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(header)?;
        let file = self.file.into_inner()?;
        if self.format == ArrayFormat::Npy {
            let list = serde_json::json!(names).to_string();
            atomic::write(&names_file(&self.path), (list + "\n").as_bytes())?;
        }
        file.finish()
    }
}

/// Where the names of an npy file's rows are: `x.npy` has `x.names.json`.
pub(crate) fn names_file(path: &Path) -> PathBuf {
    path.with_extension("names.json")
}

fn safetensors_header(
    shape: &[usize],
    names: &[&str],
    metadata: &[(&str, &str)],
    room: u64,
) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    entries.insert("names".into(), serde_json::json!(names).to_string().into());
    for (key, value) in metadata {
        entries.insert((*key).into(), (*value).into());
    }
    let bytes = shape.iter().product::<usize>() * 4;
    let json = serde_json::json!({
        "__metadata__": entries,
        "features": {"dtype": "F32", "shape": shape, "data_offsets": [0, bytes]},
    });
    let length = room - 8;
    let mut header = length.to_le_bytes().to_vec();
    header.extend(json.to_string().bytes());
    // Spaces up to the room, counted in bytes: names need not be ASCII.
    header.resize(header.len().max(room as usize), b' ');
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["a \"b\"", "ü\n"];

    fn write(path: &Path) {
        let format = ArrayFormat::of(path).unwrap();
        let mut writer = ArrayWriter::new(path, format, NAMES.into_iter()).unwrap();
        writer.add(&[1.0, 2.0, 3.0]).unwrap();
        writer.add(&[4.0, -5.5, 6.0]).unwrap();
        assert!(!path.exists());
        writer.finish(&[3], &NAMES, &[("kind", "itc")]).unwrap();
    }

    #[test]
    fn safetensors_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        write(&path);
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("features").unwrap();
        assert_eq!(tensor.shape(), [2, 3]);
        assert_eq!(tensor.data()[16..20], (-5.5_f32).to_le_bytes());
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        let names: Vec<String> = serde_json::from_str(&metadata["names"]).unwrap();
        assert_eq!(names, NAMES);
        assert_eq!(metadata["kind"], "itc");
    }

    #[test]
    fn npy_is_laid_out_as_numpy_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        write(&path);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        assert_eq!(bytes.len(), 128 + 24);
        let header = std::str::from_utf8(&bytes[10..128]).unwrap();
        assert!(
            header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, ), }")
        );
        assert!(header.ends_with(" \n"));
        let names = std::fs::read_to_string(folder.path().join("x.names.json")).unwrap();
        assert_eq!(serde_json::from_str::<Vec<String>>(&names).unwrap(), NAMES);
    }

    #[test]
    fn half_a_file_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        let mut writer = ArrayWriter::new(&path, ArrayFormat::Npy, [].into_iter()).unwrap();
        writer.add(&[1.0]).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
