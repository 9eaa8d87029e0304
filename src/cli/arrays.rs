//! Rows of f32 to a file that other programs read: safetensors or NumPy's npy. Written beside its place row by row, and
//! renamed when it is whole.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What a features file looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArrayFormat {
    /// One tensor `features`, its names in the metadata.
    Safetensors,
    /// NumPy; the names are in a JSON list beside it.
    Npy,
}

impl ArrayFormat {
    /// The format that a file's name asks for.
    pub(super) fn of(path: &Path) -> Option<Self> {
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
pub(super) struct ArrayError {
    file: PathBuf,
    cause: std::io::Error,
}

/// An array `[rows, shape…]` that grows by rows.
#[derive(Debug)]
pub(super) struct ArrayWriter {
    path: PathBuf,
    temporary: PathBuf,
    format: ArrayFormat,
    file: BufWriter<File>,
    header_room: u64,
    rows: usize,
    finished: bool,
}

/// Bytes of an npy header: the least that the format's alignment of 64 allows for any shape of ours.
const NPY_HEADER: u64 = 128;

impl ArrayWriter {
    /// Begins a file with room for these names in its header.
    pub(super) fn new<'n>(
        path: &Path,
        format: ArrayFormat,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<Self, ArrayError> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".unfinished");
        let temporary = PathBuf::from(temporary);
        let header_room = match format {
            ArrayFormat::Npy => NPY_HEADER,
            ArrayFormat::Safetensors => {
                // A name is escaped twice: JSON within JSON. An escaped control character has seven bytes there.
                let names: usize = names.map(|name| 7 * name.len() + 8).sum();
                8 + (names as u64 + 1024).next_multiple_of(8)
            }
        };
        let opened = File::create(&temporary).map(BufWriter::new);
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
            temporary,
            format,
            file,
            header_room,
            rows: 0,
            finished: false,
        })
    }

    /// Adds a row.
    pub(super) fn add(&mut self, values: &[f32]) -> Result<(), ArrayError> {
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
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Writes the header for rows of `shape` with these names and `metadata`, and puts the file into its place.
    pub(super) fn finish(
        mut self,
        shape: &[usize],
        names: &[&str],
        metadata: &[(&str, &str)],
    ) -> Result<(), ArrayError> {
        let shape: Vec<usize> = [&[self.rows], shape].concat();
        let header = match self.format {
            ArrayFormat::Npy => npy_header(&shape),
            ArrayFormat::Safetensors => {
                safetensors_header(&shape, names, metadata, self.header_room)
            }
        };
        let written = self.put(&header, names);
        written.map_err(|cause| self.failed(cause))
    }

    fn put(&mut self, header: &[u8], names: &[&str]) -> std::io::Result<()> {
        if header.len() as u64 != self.header_room {
            return Err(std::io::Error::other(
                "the names are too long for its header",
            ));
        }
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(header)?;
        self.file.flush()?;
        if self.format == ArrayFormat::Npy {
            let list = serde_json::json!(names).to_string();
            std::fs::write(names_file(&self.path), list + "\n")?;
        }
        std::fs::rename(&self.temporary, &self.path)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for ArrayWriter {
    fn drop(&mut self) {
        if !self.finished {
            // There is nowhere to report that half a file stays.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Where the names of an npy file's rows are: `x.npy` has `x.names.json`.
pub(super) fn names_file(path: &Path) -> PathBuf {
    path.with_extension("names.json")
}

/// Version 1.0 of the format (numpy.lib.format), padded with spaces to a line of [`NPY_HEADER`] bytes.
fn npy_header(shape: &[usize]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sizes}), }}");
    let length = NPY_HEADER as usize - 10;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((length as u16).to_le_bytes());
    header.extend(format!("{text:<0$}\n", length - 1).bytes());
    header
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
