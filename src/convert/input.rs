//! Reading the small files of checkpoints.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::ConvertError;

/// Tokenizers have a few MB, configurations a few KB. More than this is neither.
const MAX_BYTES: u64 = 64 << 20;

/// The JSON object in a file.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_object(file: &Path) -> Result<Map<String, Value>, ConvertError> {
    let text = read(file)?;
    serde_json::from_slice(&text).map_err(|error| {
        ConvertError::refused(
            file,
            format!("is no JSON object ({error})"),
            "download it again",
        )
    })
}

/// A small file.
///
/// # Errors
/// It cannot be read, or is too large to be one.
pub fn read(file: &Path) -> Result<Vec<u8>, ConvertError> {
    let mut content = Vec::new();
    let opened =
        File::open(file).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut content));
    match opened {
        Ok(length) if length as u64 <= MAX_BYTES => Ok(content),
        Ok(_) => Err(ConvertError::refused(
            file,
            format!("has more than {MAX_BYTES} bytes"),
            "give the file that was published",
        )),
        Err(error) => Err(ConvertError::refused(
            file,
            format!("cannot be read ({error})"),
            "check the path; a checkpoint's folder needs this file",
        )),
    }
}
