//! Reading the small files of checkpoints.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};

use crate::files::bounded::{self, MAX_SMALL_BYTES};
use crate::files::text;

use super::error::ConvertError;

/// The JSON object in a file.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_object(file: &Path) -> Result<Map<String, Value>, ConvertError> {
    let bytes = read(file)?;
    text::json(&bytes).map_err(|error| {
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
    match bounded::read(file, MAX_SMALL_BYTES) {
        Ok(content) => Ok(content),
        Err(error) if error.kind() == ErrorKind::FileTooLarge => Err(ConvertError::refused(
            file,
            error.to_string(),
            "give the file that was published",
        )),
        Err(error) => Err(ConvertError::refused(
            file,
            format!("cannot be read ({error})"),
            "check the path; a checkpoint's folder needs this file",
        )),
    }
}
