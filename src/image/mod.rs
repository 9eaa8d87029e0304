//! From an image file to the tensor the vision transformer reads.
//!
//! Three steps, each usable alone: [`decode`] turns a file's bytes into 8-bit RGB, [`resize_bicubic`]
//! scales it, and [`Preprocessor`] does both as a checkpoint's `preprocessor_config.json` asks and
//! normalises the result to `[3, height, width]`. The yardstick is Pillow 13 as transformers 5 uses it.

mod bmp;
mod decode;
mod error;
mod format;
mod gif;
mod ifd;
mod jpeg;
mod orientation;
mod pillow;
mod png;
mod pnm;
mod preprocess;
mod read;
#[cfg(test)]
mod reference_tests;
mod resize;
mod tiff;
mod webp;

pub use decode::{AlphaPolicy, DecodePolicy, MAX_PIXELS, decode, decode_file};
pub use error::ImageError;
pub use preprocess::Preprocessor;
#[cfg(feature = "convert")]
pub(crate) use preprocess::{CLIP_MEAN, CLIP_STD};
#[cfg(feature = "cli")]
pub(crate) use read::read_from;
pub use read::{MAX_FILE_BYTES, read_file};
pub use resize::resize_bicubic;

/// An 8-bit RGB image: rows from the top, `data` is `[height, width, 3]` without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb8Image {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl Rgb8Image {
    /// Wraps pixels `[height, width, 3]`.
    ///
    /// Returns `None` when a side is zero or `data` does not hold exactly `height * width * 3` bytes.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Option<Self> {
        let expected = (width as usize)
            .checked_mul(height as usize)?
            .checked_mul(3)?;
        (expected > 0 && data.len() == expected).then_some(Self {
            width,
            height,
            data,
        })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The pixels, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

/// The whole groups of `N` neighbouring samples, such as the pixels of a row.
fn groups<T, const N: usize>(samples: &[T]) -> &[[T; N]]
where
    T: bytemuck::Pod,
    [T; N]: bytemuck::Pod,
{
    bytemuck::cast_slice(&samples[..samples.len() / N * N])
}

/// Everything that reads a file's head and metadata without its pixels, whatever the file's first bytes say.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz_headers(file: &[u8]) {
    use ::image::ImageFormat;
    let _ = format::recognise(file.get(..format::HEAD_BYTES).unwrap_or(file), "fuzz");
    for format in [
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Tiff,
    ] {
        let _ = orientation::read(file, format);
    }
    let _ = jpeg::check_complete(file);
    let _ = webp::check_complete(file);
    let _ = jpeg::with_libjpeg_colours(file);
    let _ = png::without_surplus_transparency(file);
    let _ = webp::without_first_blend(file);
    let _ = png::Header::read(file);
    let _ = pnm::largest_value(file);
    let mut pixels = pillow::Pixels::from_rgb((4, 4), vec![7; 48]);
    gif::fill_around_first_frame(file, &mut pixels);
    bmp::round_down(file, &mut pixels);
}
