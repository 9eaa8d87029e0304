//! What Pillow takes from a PNG header beyond the pixels: the sample layout and the transparent colour.

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
