//! EXIF orientation, found where Pillow's `exif_transpose` looks for it.

use std::borrow::Cow;

use image::ImageFormat;
use image::metadata::Orientation;

use super::ifd::Directory;
use super::{Rgb8Image, groups, jpeg, png, webp};

const ORIENTATION: u16 = 274;
const XMP: u16 = 700;

/// Where a file may say how it is turned.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata<'a> {
    pub(super) exif: Option<Cow<'a, [u8]>>,
    pub(super) xmp: Option<Cow<'a, [u8]>>,
}

/// The orientation the file declares: the EXIF tag first, then `tiff:Orientation` of the XMP packet.
/// A tag that is there counts, be its value no orientation. Metadata that cannot be read counts as
/// absent (Pillow passes over most, and refuses the image for some).
pub(super) fn read(file: &[u8], format: ImageFormat) -> Orientation {
    let metadata = match format {
        ImageFormat::Jpeg => jpeg::metadata(file),
        ImageFormat::Png => png::metadata(file),
        ImageFormat::WebP => webp::metadata(file),
        ImageFormat::Tiff => Metadata {
            exif: Some(file.into()),
            xmp: Directory::read(file).and_then(|tags| Some(tags.raw(XMP)?.into())),
        },
        _ => Metadata::default(),
    };
    let exif = metadata.exif.as_deref().map(without_prefix);
    let number = match exif.and_then(Directory::read) {
        Some(tags) if tags.has(ORIENTATION) => tags.number(ORIENTATION),
        _ => metadata.xmp.as_deref().and_then(from_xmp),
    };
    number
        .and_then(|number| Orientation::from_exif(number.try_into().ok()?))
        .unwrap_or(Orientation::NoTransforms)
}

/// Some writers repeat the JPEG prefix "Exif\0\0" in PNG and WebP.
fn without_prefix(exif: &[u8]) -> &[u8] {
    const PREFIX: &[u8] = b"Exif\0\0";
    let once = exif.strip_prefix(PREFIX).unwrap_or(exif);
    once.strip_prefix(PREFIX).unwrap_or(once)
}

/// Finds `tiff:Orientation="6"` or `<tiff:Orientation>6</tiff:Orientation>`, the first.
fn from_xmp(packet: &[u8]) -> Option<u64> {
    const KEY: &[u8] = b"tiff:Orientation";
    let starts = (0..packet.len()).filter(|&start| packet[start..].starts_with(KEY));
    { starts }.find_map(|start| {
        let value = &packet[start + KEY.len()..];
        let value = value
            .strip_prefix(b"=\"")
            .or_else(|| value.strip_prefix(b">"))?;
        let digit = value.first().filter(|digit| digit.is_ascii_digit())?;
        Some(u64::from(digit - b'0'))
    })
}

/// Turns the image so that its stored orientation becomes upright.
pub(super) fn apply(image: Rgb8Image, orientation: Orientation) -> Rgb8Image {
    let (width, height) = (image.width as usize, image.height as usize);
    // Each arm gives the source pixel (x, y) of the target pixel (x, y).
    let (right, bottom) = (width - 1, height - 1);
    match orientation {
        Orientation::NoTransforms => image,
        Orientation::FlipHorizontal => remap(&image, width, height, |x, y| (right - x, y)),
        Orientation::Rotate180 => remap(&image, width, height, |x, y| (right - x, bottom - y)),
        Orientation::FlipVertical => remap(&image, width, height, |x, y| (x, bottom - y)),
        Orientation::Rotate90FlipH => remap(&image, height, width, |x, y| (y, x)),
        Orientation::Rotate90 => remap(&image, height, width, |x, y| (y, bottom - x)),
        Orientation::Rotate270FlipH => remap(&image, height, width, |x, y| (right - y, bottom - x)),
        Orientation::Rotate270 => remap(&image, height, width, |x, y| (right - y, x)),
    }
}

fn remap(
    image: &Rgb8Image,
    width: usize,
    height: usize,
    source: impl Fn(usize, usize) -> (usize, usize),
) -> Rgb8Image {
    let pixels = groups::<_, 3>(&image.data);
    let stride = image.width as usize;
    let mut data = Vec::with_capacity(image.data.len());
    for y in 0..height {
        for x in 0..width {
            let (source_x, source_y) = source(x, y);
            data.extend(pixels[source_y * stride + source_x]);
        }
    }
    Rgb8Image {
        width: width as u32,
        height: height as u32,
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[2, 3]` pixels numbered from 0, and their numbers after each turn, worked out by hand.
    #[test]
    fn eight_turns() {
        let expected: [(u8, u32, [u8; 6]); 8] = [
            (1, 3, [0, 1, 2, 3, 4, 5]),
            (2, 3, [2, 1, 0, 5, 4, 3]),
            (3, 3, [5, 4, 3, 2, 1, 0]),
            (4, 3, [3, 4, 5, 0, 1, 2]),
            (5, 2, [0, 3, 1, 4, 2, 5]),
            (6, 2, [3, 0, 4, 1, 5, 2]),
            (7, 2, [5, 2, 4, 1, 3, 0]),
            (8, 2, [2, 5, 1, 4, 0, 3]),
        ];
        for (tag, width, numbers) in expected {
            let image = Rgb8Image {
                width: 3,
                height: 2,
                data: (0..6).flat_map(|number| [number; 3]).collect(),
            };
            let turn = Orientation::from_exif(tag).unwrap_or(Orientation::NoTransforms);
            let turned = apply(image, turn);
            let data: Vec<u8> = numbers.iter().flat_map(|&number| [number; 3]).collect();
            assert_eq!(
                (turned.width, turned.data),
                (width, data),
                "orientation {tag}"
            );
        }
    }

    #[test]
    fn xmp() {
        assert_eq!(from_xmp(b"<x tiff:Orientation=\"6\"/>"), Some(6));
        assert_eq!(from_xmp(b"<tiff:Orientation>3</"), Some(3));
        assert_eq!(from_xmp(b"tiff:Orientation"), None);
        let second = b"tiff:Orientation=\"x\" tiff:Orientation=\"0\" tiff:Orientation>8";
        assert_eq!(from_xmp(second), Some(0));
    }

    #[test]
    fn the_prefix_twice_at_most() {
        assert_eq!(without_prefix(b"Exif\0\0Exif\0\0MM"), b"MM");
        assert_eq!(without_prefix(b"Exif\0\0Exif\0\0Exif\0\0"), b"Exif\0\0");
    }
}
