//! Pillow's rounding of BMP images with 5 or 6 bits a colour.

use super::pillow::Pixels;

/// Pillow scales the 5 or 6 bits of a colour to 8 and rounds down, the `image` crate to the nearest.
pub(super) fn round_down(file: &[u8], pixels: &mut Pixels) {
    const BITS_PER_PIXEL: usize = 28;
    const COMPRESSION: usize = 30;
    const GREEN_MASK: usize = 58;
    const BIT_FIELDS: [u8; 4] = [3, 0, 0, 0];
    if file.get(BITS_PER_PIXEL..COMPRESSION) != Some(&[16, 0]) {
        return;
    }
    let has_masks = file.get(COMPRESSION..COMPRESSION + 4) == Some(&BIT_FIELDS);
    let green = match file.get(GREEN_MASK..GREEN_MASK + 4) {
        Some([0xE0, 0x07, 0, 0]) if has_masks => 63,
        Some([0xE0, 0x03, 0, 0]) if has_masks => 31,
        _ if has_masks => return, // Pillow does not read other masks
        _ => 31,
    };
    for pixel in pixels.rgb.chunks_exact_mut(3) {
        for (sample, largest) in pixel.iter_mut().zip([31, green, 31]) {
            let stored = (u32::from(*sample) * largest + 127) / 255;
            *sample = (stored * 255 / largest) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_and_six_bits() {
        let mut file = vec![0; 66];
        file[28] = 16;
        file[30] = 3;
        for (high, expected) in [(7, [74, 72, 74]), (3, [74, 74, 74])] {
            file[58..60].copy_from_slice(&[0xE0, high]);
            let mut pixels = Pixels::from_rgb((1, 1), vec![74, 74, 74]);
            round_down(&file, &mut pixels);
            assert_eq!(pixels.rgb, expected);
        }
        round_down(&file[..40], &mut Pixels::from_rgb((1, 1), vec![1, 2, 3]));
    }
}
