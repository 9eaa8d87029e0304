//! What Pillow takes from a PNG file beyond the pixels: the sample layout, the transparent colour and
//! the metadata.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;

use super::orientation::Metadata;

/// The parts of IHDR and tRNS that decide how Pillow converts the pixels.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    bit_depth: u8,
    colour_type: u8,
    /// The colour that tRNS declares transparent, in 8-bit RGB; only for grey and RGB images.
    pub(super) transparent_colour: Option<[u8; 3]>,
}

const SIGNATURE_BYTES: usize = 8;
const GREY: u8 = 0;
const RGB: u8 = 2;

impl Header {
    /// Reads the chunks before the image data; a header cut short gives what was there.
    pub(super) fn read(file: &[u8]) -> Self {
        let mut header = Self::default();
        let mut rest = file.get(SIGNATURE_BYTES..).unwrap_or_default();
        while let Some((kind, data, next)) = split_chunk(rest) {
            match &kind {
                b"IHDR" if data.len() > 9 => {
                    header.bit_depth = data[8];
                    header.colour_type = data[9];
                }
                b"tRNS" => header.transparent_colour = header.transparent_colour(data),
                b"IDAT" => break,
                _ => {}
            }
            rest = next;
        }
        header
    }

    fn has_palette(&self) -> bool {
        const PALETTE: u8 = 3;
        self.colour_type == PALETTE
    }

    /// Whether the image is grey without an alpha channel of its own.
    pub(super) fn is_grey(&self) -> bool {
        self.colour_type == GREY
    }

    /// Pillow compares the low byte of each tRNS value with the 8-bit pixel, even where the image has
    /// 2, 4 or 16 bits a sample (`convert_transparent` in its Convert.c); only 1-bit greys are scaled.
    fn transparent_colour(&self, data: &[u8]) -> Option<[u8; 3]> {
        match (self.colour_type, data) {
            (GREY, &[high, low, ..]) if self.bit_depth == 1 => {
                Some([if high | low == 0 { 0 } else { 255 }; 3])
            }
            (GREY, &[_, low, ..]) => Some([low; 3]),
            (RGB, &[_, red, _, green, _, blue, ..]) => Some([red, green, blue]),
            _ => None,
        }
    }
}

/// A palette's transparency may have more entries than the palette. Pillow takes those it needs, the
/// `png` crate none; it gets a copy without the surplus.
pub(super) fn without_surplus_transparency(file: &[u8]) -> Cow<'_, [u8]> {
    let mut palette = None;
    let mut rest = file.get(SIGNATURE_BYTES..).unwrap_or_default();
    while let Some((kind, data, next)) = split_chunk(rest) {
        match (&kind, palette) {
            (b"IDAT", _) => break,
            (b"PLTE", _) => palette = Some(data.len() / 3),
            (b"tRNS", Some(colours)) if data.len() > colours => {
                if !Header::read(file).has_palette() {
                    break;
                }
                let mut chunk = kind.to_vec();
                chunk.extend(&data[..colours]);
                let mut checksum = flate2::Crc::new();
                checksum.update(&chunk);
                let before = &file[..file.len() - rest.len()];
                let length = (colours as u32).to_be_bytes();
                let checksum = checksum.sum().to_be_bytes();
                return [before, &length, &chunk, &checksum, next].concat().into();
            }
            _ => {}
        }
        rest = next;
    }
    file.into()
}

/// The metadata of the first frame, whether it comes before the pixels or after them: the last eXIf
/// chunk, else what ImageMagick and older programs write as a text, "Raw profile type exif".
pub(super) fn metadata(file: &[u8]) -> Metadata<'_> {
    let mut exif = None;
    let mut profile = None;
    let mut xmp = None;
    let mut pixels_began = false;
    let mut rest = file.get(SIGNATURE_BYTES..).unwrap_or_default();
    while let Some((kind, data, next)) = split_chunk(rest) {
        rest = next;
        let text = match &kind {
            b"IDAT" => {
                pixels_began = true;
                continue;
            }
            b"IEND" => break,
            b"fcTL" if pixels_began => break, // what follows belongs to the next frame
            b"eXIf" => {
                exif = Some(data.into());
                continue;
            }
            b"tEXt" => plain_text(data),
            b"zTXt" => compressed_text(data),
            b"iTXt" => international_text(data),
            _ => continue,
        };
        match text {
            Some((b"exif", value)) if kind == *b"tEXt" => exif = Some(value),
            Some((b"Raw profile type exif", value)) => profile = Some(value),
            Some((b"XML:com.adobe.xmp", value)) => xmp = Some(value),
            _ => {}
        }
    }
    Metadata {
        exif: exif.or_else(|| Some(from_hexadecimal(&profile?)?.into())),
        xmp,
    }
}

/// A keyword and its text.
type Text<'a> = Option<(&'a [u8], Cow<'a, [u8]>)>;

fn plain_text(data: &[u8]) -> Text<'_> {
    let (keyword, text) = split_at_zero(data)?;
    Some((keyword, text.into()))
}

fn compressed_text(data: &[u8]) -> Text<'_> {
    let (keyword, rest) = split_at_zero(data)?;
    let (&0, packed) = rest.split_first()? else {
        return None;
    };
    Some((keyword, inflate(packed)?.into()))
}

/// After the keyword: whether it is compressed and how, the language, the keyword translated.
fn international_text(data: &[u8]) -> Text<'_> {
    let (keyword, rest) = split_at_zero(data)?;
    let (&[is_compressed, method], rest) = rest.split_first_chunk::<2>()?;
    let (_, rest) = split_at_zero(rest)?;
    let (_, text) = split_at_zero(rest)?;
    match (is_compressed, method) {
        (0, _) => Some((keyword, text.into())),
        (_, 0) => Some((keyword, inflate(text)?.into())),
        _ => None,
    }
}

fn split_at_zero(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let zero = data.iter().position(|&byte| byte == 0)?;
    Some((&data[..zero], &data[zero + 1..]))
}

/// Unpacks a text; `None` where it is damaged or longer than Pillow takes.
fn inflate(packed: &[u8]) -> Option<Vec<u8>> {
    const MAX_TEXT_BYTES: u64 = 1 << 20;
    let mut text = Vec::new();
    let mut unpacked = ZlibDecoder::new(packed).take(MAX_TEXT_BYTES + 1);
    unpacked.read_to_end(&mut text).ok()?;
    (text.len() as u64 <= MAX_TEXT_BYTES).then_some(text)
}

/// The bytes of a raw profile: an empty line, its name, its length, then hexadecimal lines.
fn from_hexadecimal(profile: &[u8]) -> Option<Vec<u8>> {
    let lines = profile.split(|&byte| byte == b'\n').skip(3);
    let digits = { lines }
        .flatten()
        .filter(|byte| !byte.is_ascii_whitespace());
    let digits = digits.map(|&byte| char::from(byte).to_digit(16));
    let digits = digits.collect::<Option<Vec<u32>>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| (high << 4 | low) as u8);
    rest.is_empty().then(|| bytes.collect())
}

/// Splits off one chunk: its kind, its data, and what follows its checksum.
fn split_chunk(bytes: &[u8]) -> Option<([u8; 4], &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    let data = rest.get(..length)?;
    let next = rest.get(length.checked_add(4)?..)?;
    Some((*kind, data, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(bit_depth: u8, colour_type: u8, trns: &[u8]) -> Vec<u8> {
        let mut file = vec![0; SIGNATURE_BYTES];
        let ihdr = [0, 0, 0, 1, 0, 0, 0, 1, bit_depth, colour_type, 0, 0, 0];
        for (kind, data) in [(b"IHDR", &ihdr[..]), (b"tRNS", trns), (b"IDAT", &[])] {
            file.extend((data.len() as u32).to_be_bytes());
            file.extend(kind);
            file.extend(data);
            file.extend([0; 4]);
        }
        file
    }

    #[test]
    fn transparent_colours() {
        let colour =
            |depth, kind, trns: &[u8]| Header::read(&png(depth, kind, trns)).transparent_colour;
        assert_eq!(colour(1, GREY, &[0, 1]), Some([255; 3]));
        assert_eq!(colour(4, GREY, &[0, 3]), Some([3; 3]));
        assert_eq!(colour(16, GREY, &[3, 232]), Some([232; 3]));
        assert_eq!(colour(8, RGB, &[0, 1, 0, 2, 0, 3]), Some([1, 2, 3]));
        assert_eq!(colour(8, 3, &[0, 1, 0, 2, 0, 3]), None);
        assert_eq!(colour(8, RGB, &[0, 1]), None);
    }

    #[test]
    fn a_cut_header_is_not_a_panic() {
        let file = png(16, GREY, &[0, 1]);
        for length in 0..file.len() {
            Header::read(&file[..length]);
        }
        assert!(Header::read(&file).is_grey());
    }
}
