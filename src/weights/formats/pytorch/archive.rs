//! PyTorch's zip archives: `NAME/data.pkl`, `NAME/byteorder`, and a record `NAME/data/KEY` a
//! storage, all stored uncompressed. Layout as in PyTorch's `torch/serialization.py` and
//! `caffe2/serialize/inline_container.cc`.

use std::collections::HashMap;
use std::ops::Range;

use rawzip::{CompressionMethod, ZipArchive};

use super::pickle::{Node, Pickle};
use super::state_dict::{Storages, storage};
use super::{NOT_A_CHECKPOINT, Problem};

const SAVE_AGAIN: &str = "load it with PyTorch and save it again with torch.save";

/// More records than this are no checkpoint: the largest have some thousands.
const MAX_RECORDS: usize = 1 << 20;

/// An archive whose records are found.
#[derive(Debug)]
pub struct Archive<'a> {
    /// The record `data.pkl`.
    pub pickle: &'a [u8],
    /// The bytes of each storage in the file, by key.
    data: HashMap<String, Range<usize>>,
}

impl<'a> Archive<'a> {
    /// Finds the records.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Problem> {
        let records = records(bytes)?;
        let Some(folder) = records
            .keys()
            .filter_map(|name| name.strip_suffix("data.pkl"))
            .find(|folder| folder.is_empty() || folder.ends_with('/'))
        else {
            return Err(Problem::new(
                "is a zip archive without data.pkl, so not one of PyTorch's",
                NOT_A_CHECKPOINT,
            ));
        };
        let record = |name: &str| {
            let range = records.get(&format!("{folder}{name}"))?;
            bytes.get(range.clone())
        };
        if record("byteorder").is_some_and(|order| order == b"big") {
            return Err(Problem::new(
                "was saved on a big-endian machine",
                "load it with PyTorch on a little-endian one and save it again",
            ));
        }
        let data = records.iter().filter_map(|(name, range)| {
            let key = name.strip_prefix(folder)?.strip_prefix("data/")?;
            Some((key.to_owned(), range.clone()))
        });
        Ok(Self {
            pickle: record("data.pkl").unwrap_or_default(),
            data: data.collect(),
        })
    }

    /// Where the storages that `pickle` names lie; each must be there, and whole.
    pub fn storages(self, pickle: &Pickle) -> Result<Storages, Problem> {
        for node in pickle.nodes() {
            let Node::Persistent(description) = node else {
                continue;
            };
            let Some(storage) = storage(pickle, *description) else {
                continue; // an error only where a tensor needs it
            };
            let needed = storage.bytes(storage.elements);
            let Some(range) = self.data.get(storage.key) else {
                return Err(Problem::damaged(format!(
                    "lacks the record data/{} that its pickle names",
                    storage.key
                )));
            };
            if needed.is_none_or(|needed| needed > range.len()) {
                return Err(Problem::damaged(format!(
                    "has {} bytes in the record data/{} where its pickle says {} elements of {:?}",
                    range.len(),
                    storage.key,
                    storage.elements,
                    storage.dtype
                )));
            }
        }
        Ok(self.data)
    }
}

/// All records by name: where their bytes lie.
fn records(bytes: &[u8]) -> Result<HashMap<String, Range<usize>>, Problem> {
    let damaged = |error: rawzip::Error| {
        Problem::damaged(format!(
            "is a zip archive that is cut off or damaged ({error})"
        ))
    };
    let archive = ZipArchive::from_slice(bytes).map_err(damaged)?;
    let mut records = HashMap::new();
    let mut ranges = Vec::new();
    let mut entries = archive.entries();
    while let Some(entry) = entries.next_entry().map_err(damaged)? {
        let path = entry.file_path();
        let name = String::from_utf8_lossy(path.as_ref()).into_owned();
        if entry.is_dir() {
            continue;
        }
        if entry.compression_method() != CompressionMethod::STORE
            || entry.compressed_size_hint() != entry.uncompressed_size_hint()
        {
            return Err(Problem::new(
                format!(
                    "is a zip archive whose record {name:?} is compressed, which torch.save does not do"
                ),
                SAVE_AGAIN,
            ));
        }
        if records.len() == MAX_RECORDS {
            return Err(Problem::new(
                format!("is a zip archive of more than {MAX_RECORDS} records"),
                NOT_A_CHECKPOINT,
            ));
        }
        let record = archive.get_entry(entry.wayfinder()).map_err(damaged)?;
        let (start, end) = record.compressed_data_range();
        let range = usize::try_from(start).unwrap_or(usize::MAX)
            ..usize::try_from(end).unwrap_or(usize::MAX);
        ranges.push((range.start, range.end));
        if records.insert(name.clone(), range).is_some() {
            return Err(Problem::damaged(format!(
                "is a zip archive with two records {name:?}"
            )));
        }
    }
    ranges.sort_unstable();
    if ranges.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(Problem::damaged("is a zip archive whose records overlap"));
    }
    Ok(records)
}
