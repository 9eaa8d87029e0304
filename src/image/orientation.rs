//! EXIF orientation, found where Pillow's `exif_transpose` looks for it.

use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat};

use super::{Rgb8Image, groups};

/// The orientation the file declares: the EXIF tag first, then `tiff:Orientation` of the XMP packet.
/// Metadata that cannot be read counts as absent, as in Pillow.
pub(super) fn read(decoder: &mut impl ImageDecoder, format: ImageFormat) -> Orientation {
    if format == ImageFormat::Tiff {
        return decoder.orientation().unwrap_or(Orientation::NoTransforms);
    }
    let exif = decoder.exif_metadata().ok().flatten();
    exif.and_then(|exif| from_exif(&exif))
        .or_else(|| from_xmp(&decoder.xmp_metadata().ok().flatten()?))
        .unwrap_or(Orientation::NoTransforms)
}

/// Some writers repeat the JPEG prefix "Exif\0\0" in PNG and WebP.
fn from_exif(mut exif: &[u8]) -> Option<Orientation> {
    while let Some(rest) = exif.strip_prefix(b"Exif\0\0") {
        exif = rest;
    }
    Orientation::from_exif_chunk(exif)
}

/// Finds `tiff:Orientation="6"` or `<tiff:Orientation>6</tiff:Orientation>`.
fn from_xmp(packet: &[u8]) -> Option<Orientation> {
    const KEY: &[u8] = b"tiff:Orientation";
    packet
        .windows(KEY.len())
        .enumerate()
        .find_map(|(start, window)| {
            if window != KEY {
                return None;
            }
            let value = &packet[start + KEY.len()..];
            let value = value
                .strip_prefix(b"=\"")
                .or_else(|| value.strip_prefix(b">"))?;
            Orientation::from_exif(value.first()?.checked_sub(b'0')?)
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
        assert_eq!(
            from_xmp(b"<x tiff:Orientation=\"6\"/>"),
            Some(Orientation::Rotate90)
        );
        assert_eq!(
            from_xmp(b"<tiff:Orientation>3</"),
            Some(Orientation::Rotate180)
        );
        assert_eq!(from_xmp(b"tiff:Orientation"), None);
        assert_eq!(from_xmp(b"tiff:Orientation=\"x\""), None);
    }

    #[test]
    fn exif_with_a_repeated_prefix() {
        let exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0";
        assert_eq!(from_exif(exif), Some(Orientation::Rotate270));
    }
}
