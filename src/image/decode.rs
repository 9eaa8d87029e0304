//! File bytes → 8-bit RGB, as Pillow's `Image.open(file).convert("RGB")` gives it.
//!
//! The `image` crate does the decoding proper; what differs between it and Pillow (16-bit samples,
//! transparent colours, first frames, orientation) is settled here and in the sibling modules. The
//! pixels are then equal to Pillow 13.0's, with these known exceptions:
//!
//! - JPEG, and JPEG within TIFF: libjpeg-turbo and zune-jpeg round the inverse DCT and the chroma
//!   upsampling differently. Over 50 files the largest difference is 5 levels of 255; the mean is at
//!   most 0.02 without chroma subsampling and at most 0.31 with 4:2:0 (0.4 below 100 pixels). At
//!   224×224 the normalised tensor differs by at most 0.08, 0.006 in the mean.
//! - PNM with comments among its numbers, PFM, DIB without the file's header and OS/2's BMP with a
//!   header of 64 bytes: refused.
//! - GIF and PNG with indices and without a palette: refused here; Pillow makes greys of them.
//! - A GIF whose first frame hangs over the canvas: cut off here; Pillow enlarges the canvas.
//! - TIFF that Pillow misreads is read as it is meant: big-endian BigTIFF; compressed floats in
//!   big-endian files; uncompressed 16-bit planes; a fax's last row that ends with the data. What
//!   Pillow reads in one byte order, order of bits or planar configuration is read in the others too.
//! - TIFF in CIELab, YCbCr that is subsampled otherwise than by JPEG or has coefficients of its own,
//!   grey with alpha in JPEG, and CCITT's word-aligned compression: refused, by these names. So is all that Pillow refuses.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::format::{self, HEAD_BYTES, format_name};
use super::pillow::{self, Pixels};
use super::{ImageError, Rgb8Image, bmp, gif, jpeg, orientation, png, pnm, read_file, tiff, webp};

/// The most pixels an image may have: 178 956 970, where Pillow too refuses an image as a
/// decompression bomb. The claim in the header is checked before anything of that size is allocated.
/// (While fuzzing far fewer: a run that fills them all should take no second.)
pub const MAX_PIXELS: u64 = match cfg!(feature = "fuzzing") {
    true => 1 << 20,
    false => 178_956_970,
};

/// Ceiling on a decoder's own buffers, bytes: 16-bit RGBA at [`MAX_PIXELS`], and as much for work.
const MAX_DECODER_BYTES: u64 = 16 * MAX_PIXELS;

/// What becomes of the alpha channel, and of transparent palette entries and transparent colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlphaPolicy {
    /// Lay the image over white, with Pillow's `alpha_composite` rounding.
    OnWhite,
    /// Forget the alpha channel and keep the colours stored under it.
    Drop,
}

/// The choices in which the systems that run BLIP-2 differ when they open an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodePolicy {
    /// Turn the image upright as its EXIF (or XMP) orientation says. TIFF images are always turned:
    /// Pillow does so while loading them, whatever the caller wants.
    pub apply_orientation: bool,
    /// What becomes of transparency.
    pub alpha: AlphaPolicy,
}

impl DecodePolicy {
    /// transformers 5: files are turned upright (its `load_image`); transparency is laid over white (its
    /// image processor, given an opened image). No single call of transformers 5.23 does both: given a
    /// path, it turns the image and drops the alpha, as [`mmpretrain`](Self::mmpretrain) here; given an
    /// opened image, it keeps the stored orientation. For images without either, all agree.
    pub const fn hf() -> Self {
        Self {
            apply_orientation: true,
            alpha: AlphaPolicy::OnWhite,
        }
    }

    /// LAVIS: a plain `convert("RGB")`: stored orientation, alpha dropped.
    pub const fn lavis() -> Self {
        Self {
            apply_orientation: false,
            alpha: AlphaPolicy::Drop,
        }
    }

    /// mmpretrain (OpenCV's colour reading): turned upright, alpha dropped.
    pub const fn mmpretrain() -> Self {
        Self {
            apply_orientation: true,
            alpha: AlphaPolicy::Drop,
        }
    }
}

impl Default for DecodePolicy {
    fn default() -> Self {
        Self::hf()
    }
}

/// Reads and decodes the image file at `path`.
///
/// # Errors
/// Everything that [`read_file`] and [`decode`] report.
pub fn decode_file(path: &Path, policy: DecodePolicy) -> Result<Rgb8Image, ImageError> {
    let name = path.display().to_string();
    decode(&read_file(path, &name)?, &name, policy)
}

/// Decodes the first frame of an image file's `bytes`; `name` stands for it in errors.
///
/// # Errors
/// An empty, unknown, truncated, damaged, unsupported or too large image; see [`ImageError`].
pub fn decode(bytes: &[u8], name: &str, policy: DecodePolicy) -> Result<Rgb8Image, ImageError> {
    let file = File { bytes, name };
    let format = format::recognise(bytes.get(..HEAD_BYTES).unwrap_or(bytes), name)?;
    if format == ImageFormat::Tiff {
        let pixels = tiff::decode(bytes).map_err(|failure| file.failed(failure))?;
        return file.finish(pixels, format, policy);
    }
    let complete = match format {
        ImageFormat::Jpeg => jpeg::check_complete(bytes),
        ImageFormat::WebP => webp::check_complete(bytes),
        _ => Ok(()), // the decoders notice by themselves
    };
    complete.map_err(|reason| file.truncated(format, reason))?;
    let altered = match format {
        ImageFormat::Jpeg => jpeg::with_libjpeg_colours(bytes),
        ImageFormat::Png => png::without_surplus_transparency(bytes),
        ImageFormat::WebP => webp::without_first_blend(bytes),
        _ => bytes.into(),
    };
    let decoder = file.open(format, &altered)?;
    let image = DynamicImage::from_decoder(decoder).map_err(|error| file.explain(format, error))?;
    file.finish(file.to_pixels(format, image)?, format, policy)
}

/// The bytes being decoded and what to call them.
struct File<'a> {
    bytes: &'a [u8],
    name: &'a str,
}

impl File<'_> {
    /// Reads the header and refuses what is too large.
    fn open<'b>(
        &self,
        format: ImageFormat,
        bytes: &'b [u8],
    ) -> Result<impl ImageDecoder + use<'b>, ImageError> {
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(MAX_DECODER_BYTES);
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.limits(limits);
        let decoder = reader
            .into_decoder()
            .map_err(|error| self.explain(format, error))?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(self.too_large(width, height));
        }
        Ok(decoder)
    }

    /// Brings any sample layout to 8 bits as Pillow does.
    fn to_pixels(&self, format: ImageFormat, image: DynamicImage) -> Result<Pixels, ImageError> {
        let size = (image.width(), image.height());
        let png = (format == ImageFormat::Png).then(|| png::Header::read(self.bytes));
        // Grey with a transparent colour reaches us as grey + alpha, yet for Pillow it is mode "I;16".
        let grey_only = png.as_ref().is_some_and(png::Header::is_grey);
        let mut pixels = match image {
            DynamicImage::ImageLuma8(image) => Pixels::from_grey(size, &image),
            DynamicImage::ImageLumaA8(image) => Pixels::from_grey_alpha(size, &image),
            DynamicImage::ImageRgb8(image) => Pixels::from_rgb(size, image.into_raw()),
            DynamicImage::ImageRgba8(image) => Pixels::from_rgba(size, &image),
            DynamicImage::ImageLuma16(image) if format == ImageFormat::Pnm => {
                let largest = pnm::largest_value(self.bytes).unwrap_or(65535);
                let scale = |&sample: &u16| pnm::rescale(sample.into(), 65535, largest, 65535);
                Pixels::from_grey(size, &image.iter().map(scale).collect::<Vec<u8>>())
            }
            DynamicImage::ImageLuma16(image) => Pixels::from_grey(size, &pillow::clip16(&image)),
            DynamicImage::ImageLumaA16(image) if grey_only => {
                Pixels::from_grey_alpha(size, &pillow::clip16(&image))
            }
            DynamicImage::ImageLumaA16(image) => {
                Pixels::from_grey_alpha(size, &pillow::high_byte(&image))
            }
            DynamicImage::ImageRgb16(image) if format == ImageFormat::Pnm => {
                let largest = pnm::largest_value(self.bytes).unwrap_or(65535);
                let scale = |&sample: &u16| pnm::rescale(sample.into(), 65535, largest, 255);
                Pixels::from_rgb(size, image.iter().map(scale).collect())
            }
            DynamicImage::ImageRgb16(image) => Pixels::from_rgb(size, pillow::high_byte(&image)),
            DynamicImage::ImageRgba16(image) => Pixels::from_rgba(size, &pillow::high_byte(&image)),
            other => {
                let reason = format!("{:?} samples", other.color());
                return Err(self.unsupported(format, reason));
            }
        };
        if let Some(transparent) = png.and_then(|header| header.transparent_colour) {
            pixels.make_transparent(transparent);
        }
        match format {
            ImageFormat::Gif => gif::fill_around_first_frame(self.bytes, &mut pixels),
            ImageFormat::Bmp => bmp::round_down(self.bytes, &mut pixels),
            ImageFormat::Pnm => {
                if let Some(largest @ ..255) = pnm::largest_value(self.bytes) {
                    for sample in &mut pixels.rgb {
                        *sample = pnm::rescale((*sample).into(), 255, largest, 255);
                    }
                }
            }
            _ => {}
        }
        Ok(pixels)
    }

    /// Settles transparency and orientation.
    fn finish(
        &self,
        mut pixels: Pixels,
        format: ImageFormat,
        policy: DecodePolicy,
    ) -> Result<Rgb8Image, ImageError> {
        if policy.alpha == AlphaPolicy::OnWhite {
            pixels.composite_on_white();
        }
        let Some(rgb) = pixels.into_rgb() else {
            return Err(self.unsupported(format, "it has no pixels".into()));
        };
        let is_turned = policy.apply_orientation || format == ImageFormat::Tiff;
        Ok(match is_turned {
            true => orientation::apply(rgb, orientation::read(self.bytes, format)),
            false => rgb,
        })
    }

    fn failed(&self, failure: tiff::Failure) -> ImageError {
        let format = ImageFormat::Tiff;
        match failure {
            tiff::Failure::Truncated(reason) => self.truncated(format, one_line(&reason)),
            tiff::Failure::Unsupported(reason) => self.unsupported(format, one_line(&reason)),
            tiff::Failure::Damaged(reason) => self.damaged(format, one_line(&reason)),
            tiff::Failure::TooLarge(width, height) => self.too_large(width, height),
        }
    }

    fn damaged(&self, format: ImageFormat, reason: String) -> ImageError {
        ImageError::Damaged {
            name: self.name.into(),
            format: format_name(format).unwrap_or("image"),
            reason,
        }
    }

    fn too_large(&self, width: u32, height: u32) -> ImageError {
        ImageError::TooLarge {
            name: self.name.into(),
            width,
            height,
        }
    }

    fn truncated(&self, format: ImageFormat, reason: String) -> ImageError {
        ImageError::Truncated {
            name: self.name.into(),
            format: format_name(format).unwrap_or("image"),
            reason,
        }
    }

    fn unsupported(&self, format: ImageFormat, reason: String) -> ImageError {
        ImageError::Unsupported {
            name: self.name.into(),
            format: format_name(format).unwrap_or("image"),
            reason,
        }
    }

    /// Sorts the decoder's error into ours.
    fn explain(&self, format: ImageFormat, error: image::ImageError) -> ImageError {
        let reason = one_line(&error.to_string());
        match error {
            image::ImageError::Unsupported(_) => self.unsupported(format, reason),
            error if ends_early(&error) => self.truncated(format, reason),
            _ => self.damaged(format, reason),
        }
    }
}

/// Whether the decoder gave up because the bytes ran out, by the I/O error at the root or, where a
/// decoder keeps that to itself, by its words.
fn ends_early(error: &image::ImageError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        let io = current.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::UnexpectedEof) {
            return true;
        }
        cause = current.source();
    }
    let text = error.to_string().to_lowercase();
    [
        "unexpected end",
        "end of file",
        "eof",
        "not enough data",
        "failed to fill",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// Decoders may explain over several lines; an error here is one.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images/files");
        std::fs::read(folder.join(name)).unwrap()
    }

    fn error(bytes: &[u8]) -> ImageError {
        let error = decode(bytes, "photo", DecodePolicy::hf()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("photo: ") && !text.contains('\n'),
            "{text}"
        );
        error
    }

    #[test]
    fn not_images() {
        assert!(matches!(error(b""), ImageError::Empty { .. }));
        for bytes in [&b"BLIP-2 reads images\n"[..], b"\x89PN", &[0; 99]] {
            assert!(matches!(error(bytes), ImageError::UnknownFormat { .. }));
        }
        for bytes in [&b"\0\0\x01\0icon"[..], b"{}"] {
            assert!(matches!(error(bytes), ImageError::Foreign { .. }));
        }
        let missing = decode_file(Path::new("no/such.png"), DecodePolicy::hf());
        assert!(matches!(missing, Err(ImageError::Read { .. })));
    }

    #[test]
    fn truncated_files() {
        for name in [
            "progressive.jpg",
            "cmyk.jpg",
            "rgba.png",
            "palette.png",
            "rgba.webp",
            "animation.webp",
            "frame.gif",
            "rgb.bmp",
            "bit.bmp",
            "rgb.tif",
            "grey16.tif",
            "rgb.qoi",
            "rgb.ppm",
            "bit.pbm",
        ] {
            let file = fixture(name);
            decode(&file, name, DecodePolicy::hf()).unwrap();
            // The last bytes may be an end marker, a checksum or metadata that Pillow does without too.
            for length in [file.len() / 4, file.len() / 2, file.len() * 3 / 4] {
                let error = error(&file[..length]);
                assert!(
                    matches!(error, ImageError::Truncated { .. }),
                    "{name} cut to {length}: {error}"
                );
            }
        }
    }

    #[test]
    fn no_byte_flip_is_a_panic() {
        for name in [
            "progressive.jpg",
            "palette_alpha.png",
            "rgba.webp",
            "frame.gif",
            "rgba.bmp",
            "rgb.tif",
            "rgb.qoi",
        ] {
            let mut file = fixture(name);
            for position in 0..file.len().min(120) {
                file[position] ^= 0x55;
                let _ = decode(&file, name, DecodePolicy::lavis());
                file[position] ^= 0x55;
            }
        }
    }

    /// A header alone, claiming 60000 × 60000 pixels.
    #[test]
    fn claims_are_checked_before_memory_is_taken() {
        let side = 60000u16;
        let mut png = fixture("rgba.png");
        png[16..20].copy_from_slice(&u32::from(side).to_be_bytes());
        png[20..24].copy_from_slice(&u32::from(side).to_be_bytes());
        let checksum = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        let mut bmp = fixture("rgb.bmp");
        bmp[18..22].copy_from_slice(&u32::from(side).to_le_bytes());
        bmp[22..26].copy_from_slice(&u32::from(side).to_le_bytes());
        let mut gif = fixture("frame.gif");
        gif[6..8].copy_from_slice(&side.to_le_bytes());
        gif[8..10].copy_from_slice(&side.to_le_bytes());
        let mut jpeg = fixture("grey.jpg");
        let frame = jpeg
            .windows(2)
            .position(|pair| pair == [0xFF, 0xC0])
            .unwrap();
        jpeg[frame + 5..frame + 7].copy_from_slice(&side.to_be_bytes());
        jpeg[frame + 7..frame + 9].copy_from_slice(&side.to_be_bytes());
        let pnm = b"P6 60000 60000 255\n".to_vec();
        for file in [png, bmp, gif, jpeg, pnm] {
            match error(&file) {
                ImageError::TooLarge { width, height, .. } => {
                    assert_eq!((width, height), (60000, 60000))
                }
                other => panic!("{other}"),
            }
        }
    }

    /// The checksum of a PNG chunk.
    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32, byte: &u8| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xEDB8_8320 * (crc & 1))
            })
        };
        !bytes.iter().fold(!0, step)
    }

    #[test]
    fn extreme_shapes() {
        for (width, height) in [(20000, 10), (10, 20000), (1, 1), (65535, 1)] {
            let header = format!("P6 {width} {height} 255\n");
            let file = [header.as_bytes(), &vec![77; width * height * 3]].concat();
            let image = decode(&file, "strip", DecodePolicy::hf()).unwrap();
            assert_eq!(
                (image.width() as usize, image.height() as usize),
                (width, height)
            );
            let tensor = crate::image::Preprocessor::blip2(224)
                .unwrap()
                .apply(&image)
                .unwrap();
            assert_eq!(tensor.len(), 3 * 224 * 224);
        }
    }

    #[test]
    fn policies() {
        assert_eq!(DecodePolicy::default(), DecodePolicy::hf());
        let file = fixture("orientation_5.jpg");
        let turned = decode(&file, "", DecodePolicy::mmpretrain()).unwrap();
        let stored = decode(&file, "", DecodePolicy::lavis()).unwrap();
        assert_eq!(
            (turned.width(), turned.height()),
            (stored.height(), stored.width())
        );
    }
}
