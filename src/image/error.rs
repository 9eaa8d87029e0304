//! What can go wrong between a file and a tensor.

use super::decode::MAX_PIXELS;
use super::read::MAX_FILE_BYTES;

/// Why an image, or the configuration of the preprocessing, cannot be used.
///
/// Every message is one line: the file (or the name the caller gave), what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file cannot be read.
    #[error("{name}: cannot be read ({source}); check the path and its permissions")]
    Read {
        /// The file.
        name: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The file holds no byte.
    #[error("{name}: the file is empty; copy or download it again")]
    Empty {
        /// The file.
        name: String,
    },
    /// The first bytes are not those of any format known here.
    #[error(
        "{name}: not an image this program knows; give a JPEG, PNG, WebP, GIF, BMP, TIFF, QOI or PNM file"
    )]
    UnknownFormat {
        /// The file.
        name: String,
    },
    /// Something known that is not read, such as AVIF, a video or a web page.
    #[error("{name}: {kind} is not read; {remedy}")]
    Foreign {
        /// The file.
        name: String,
        /// What it is, as in "AVIF".
        kind: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A file of more than [`MAX_FILE_BYTES`].
    #[error(
        "{name}: the file has more than {} MiB, the most that is read of an image; scale it down or save it compressed",
        MAX_FILE_BYTES >> 20
    )]
    TooManyBytes {
        /// The file.
        name: String,
    },
    /// The image ends before its last pixel.
    #[error("{name}: the {format} image is truncated ({reason}); copy or download it again")]
    Truncated {
        /// The file.
        name: String,
        /// The image format, as in "JPEG".
        format: &'static str,
        /// Where the data ended.
        reason: String,
    },
    /// The bytes contradict the format.
    #[error("{name}: the {format} image is damaged ({reason}); copy it again or re-save it as PNG")]
    Damaged {
        /// The file.
        name: String,
        /// The image format, as in "JPEG".
        format: &'static str,
        /// The decoder's explanation.
        reason: String,
    },
    /// A valid image of a kind the decoder does not implement.
    #[error(
        "{name}: this kind of {format} image is not supported ({reason}); convert it to 8-bit PNG or JPEG"
    )]
    Unsupported {
        /// The file.
        name: String,
        /// The image format, as in "TIFF".
        format: &'static str,
        /// What is not supported.
        reason: String,
    },
    /// The header claims more pixels than [`MAX_PIXELS`].
    #[error(
        "{name}: the image claims {width}x{height} pixels, more than the limit of {MAX_PIXELS}; scale it down first"
    )]
    TooLarge {
        /// The file.
        name: String,
        /// Claimed width in pixels.
        width: u32,
        /// Claimed height in pixels.
        height: u32,
    },
    /// The preprocessing configuration is not usable JSON.
    #[error(
        "{file}: not valid JSON ({source}); download the file again from the checkpoint's repository"
    )]
    ConfigJson {
        /// The configuration file.
        file: String,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// A field of the preprocessing configuration holds a value that cannot be honoured.
    #[error("{file}: field `{field}`: {problem}; {remedy}")]
    ConfigField {
        /// The configuration file.
        file: String,
        /// The field's name.
        field: &'static str,
        /// What is wrong with its value.
        problem: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// An image size the vision transformer could not be given.
    #[error(
        "image size {size} is not usable; give a number of pixels from 1 to 16384, such as 224"
    )]
    BadSize {
        /// The size asked for, in pixels.
        size: u32,
    },
}
