//! safetensors: eight bytes that hold the length of the header, the header as JSON, the tensors'
//! bytes.
//!
//! All that is read here is the file's beginning: the values may still be elsewhere.

use std::collections::BTreeMap;

use safetensors::tensor::Metadata;
use safetensors::{SafeTensorError, SafeTensors};
use serde_json::value::RawValue;

use super::super::error::WeightsError;
use super::super::files::{DOWNLOAD_AGAIN, File};
use super::Entry;

/// Bytes before the header: its length, a little-endian u64.
const LENGTH_BYTES: u64 = 8;

/// The longest header that the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The tensors of a safetensors file, checked to lie in it.
///
/// # Errors
/// A file that is cut off, or whose header is damaged.
pub(super) fn read(file: &File) -> Result<Vec<(String, Entry)>, WeightsError> {
    let bytes = file.bytes();
    let length = bytes.len() as u64;
    let entries = match data_start(bytes, length) {
        Ok(start) => entries(file.range(&(0..start)), length),
        Err(problem) => Err(problem),
    };
    entries.map_err(|problem| WeightsError::BadFile {
        file: file.path.clone(),
        problem,
        remedy: DOWNLOAD_AGAIN,
    })
}

/// Where the header ends and the tensors' bytes begin in a file of `length` bytes, of which `bytes`
/// are the first.
fn data_start(bytes: &[u8], length: u64) -> Result<u64, String> {
    let Some(length_bytes) = bytes.first_chunk::<{ LENGTH_BYTES as usize }>() else {
        return Err(format!(
            "is {length} bytes long, too short for a safetensors file"
        ));
    };
    let header_length = u64::from_le_bytes(*length_bytes);
    if header_length > MAX_HEADER_BYTES && header_length < length {
        return Err(format!(
            "claims a header of {header_length} bytes where the format allows {MAX_HEADER_BYTES}: damaged, or not a safetensors file"
        ));
    }
    match header_length.checked_add(LENGTH_BYTES) {
        Some(start) if start <= length => Ok(start),
        _ => Err(format!(
            "claims a header of {header_length} bytes but is {length} bytes long: truncated, or not a safetensors file"
        )),
    }
}

/// The tensors that `start` tells of: all of a file of `length` bytes up to the first tensor's
/// bytes.
fn entries(start: &[u8], length: u64) -> Result<Vec<(String, Entry)>, String> {
    let data_start = start.len() as u64;
    let header = &start[LENGTH_BYTES as usize..];
    check_offsets(header, length - data_start)?;
    let invalid = |cause: &dyn std::fmt::Display| {
        format!("its header is invalid: {}", one_line(&cause.to_string()))
    };
    match SafeTensors::read_metadata(start) {
        // Of the file this is but the beginning.
        Ok(_) | Err(SafeTensorError::MetadataIncompleteBuffer) => {}
        Err(cause) => return Err(invalid(&cause)),
    }
    let metadata: Metadata = serde_json::from_slice(header).map_err(|cause| invalid(&cause))?;
    if metadata.data_len() as u64 != length - data_start {
        return Err(invalid(&SafeTensorError::MetadataIncompleteBuffer));
    }
    let entries = metadata.tensors().into_iter().map(|(name, info)| {
        let (first, end) = info.data_offsets;
        let entry = Entry {
            dtype: info.dtype,
            shape: info.shape.clone(),
            strides: None,
            bytes: data_start + first as u64..data_start + end as u64,
        };
        (name, entry)
    });
    Ok(entries.collect())
}

/// Checks the tensors' offsets against the bytes there are for them: for a message that says which
/// of the two is short, and because `read_metadata` adds up offsets that it has not yet compared
/// with the length.
fn check_offsets(header: &[u8], data_bytes: u64) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Info {
        data_offsets: [u64; 2],
    }
    // Not as a tree of values, which takes some thirty times the text's bytes.
    let header: BTreeMap<String, &RawValue> = serde_json::from_slice(header).map_err(|cause| {
        format!("its header is not JSON ({cause}): damaged, or not a safetensors file")
    })?;
    for (name, info) in &header {
        let info: Option<Info> = serde_json::from_str(info.get()).ok();
        for offset in info.iter().flat_map(|info| info.data_offsets) {
            if offset > data_bytes {
                return Err(format!(
                    "tensor {name:?} reaches to byte {offset} of the data but the file has {data_bytes}: truncated or damaged"
                ));
            }
        }
    }
    Ok(())
}

/// Control characters (a tampered header's) would break the one line an error has.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
