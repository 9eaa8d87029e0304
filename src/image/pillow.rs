//! Pillow's integer arithmetic for colour and transparency.

use super::{Rgb8Image, groups};

/// An image on its way to RGB: colours `[height, width, 3]` and, where there is one, the alpha
/// channel `[height, width]`.
pub(super) struct Pixels {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) rgb: Vec<u8>,
    pub(super) alpha: Option<Vec<u8>>,
}

impl Pixels {
    pub(super) fn new((width, height): (u32, u32), rgb: Vec<u8>, alpha: Option<Vec<u8>>) -> Self {
        Self {
            width,
            height,
            rgb,
            alpha,
        }
    }

    /// From grey samples `[height, width]`.
    pub(super) fn from_grey(size: (u32, u32), samples: &[u8]) -> Self {
        let rgb = samples.iter().map(|&grey| [grey; 3]).collect::<Vec<_>>();
        let rgb = rgb.into_flattened();
        Self::new(size, rgb, None)
    }

    /// From grey and alpha samples `[height, width, 2]`.
    pub(super) fn from_grey_alpha(size: (u32, u32), samples: &[u8]) -> Self {
        let pairs = groups::<_, 2>(samples);
        let rgb = pairs.iter().map(|&[grey, _]| [grey; 3]).collect::<Vec<_>>();
        let rgb = rgb.into_flattened();
        let alpha = pairs.iter().map(|&[_, alpha]| alpha).collect();
        Self::new(size, rgb, Some(alpha))
    }

    /// From colour samples `[height, width, 3]`.
    pub(super) fn from_rgb(size: (u32, u32), samples: Vec<u8>) -> Self {
        Self::new(size, samples, None)
    }

    /// From colour and alpha samples `[height, width, 4]`.
    pub(super) fn from_rgba(size: (u32, u32), samples: &[u8]) -> Self {
        let quads = groups::<_, 4>(samples);
        let rgb = quads
            .iter()
            .map(|&[r, g, b, _]| [r, g, b])
            .collect::<Vec<_>>();
        let rgb = rgb.into_flattened();
        let alpha = quads.iter().map(|&[_, _, _, alpha]| alpha).collect();
        Self::new(size, rgb, Some(alpha))
    }

    /// Makes exactly the pixels of this colour fully transparent and all others opaque.
    pub(super) fn make_transparent(&mut self, colour: [u8; 3]) {
        let pixels = groups::<_, 3>(&self.rgb);
        let alpha = pixels
            .iter()
            .map(|pixel| if *pixel == colour { 0 } else { 255 });
        self.alpha = Some(alpha.collect());
    }

    /// Lays the image over opaque white and forgets the alpha channel.
    pub(super) fn composite_on_white(&mut self) {
        let Some(alpha) = self.alpha.take() else {
            return;
        };
        for (pixel, &alpha) in self.rgb.chunks_exact_mut(3).zip(&alpha) {
            for sample in pixel {
                *sample = over_white(*sample, alpha);
            }
        }
    }

    /// The colours alone. `None` only if the buffer does not fit the size.
    pub(super) fn into_rgb(self) -> Option<Rgb8Image> {
        Rgb8Image::new(self.width, self.height, self.rgb)
    }
}

/// One sample of Pillow's `alpha_composite` over opaque white (its AlphaComposite.c): the weights
/// carry 7 extra bits, and the division by 255 is two shifts and an addition.
fn over_white(sample: u8, alpha: u8) -> u8 {
    const EXTRA_BITS: u32 = 7;
    let source_weight = u32::from(alpha) << EXTRA_BITS;
    let white_weight = (255 << EXTRA_BITS) - source_weight;
    let sum = u32::from(sample) * source_weight + 255 * white_weight + (0x80 << EXTRA_BITS);
    ((((sum >> 8) + sum) >> 8) >> EXTRA_BITS) as u8
}

/// Divides premultiplied colours by their alpha, rounding down; what is fully transparent is black.
pub(super) fn divide_by_alpha(rgb: &mut [u8], alpha: &[u8]) {
    for (pixel, &alpha) in rgb.chunks_exact_mut(3).zip(alpha) {
        for sample in pixel {
            let divided = (u32::from(*sample) * 255).checked_div(u32::from(alpha));
            *sample = divided.unwrap_or(0).min(255) as u8;
        }
    }
}

/// Ink to light: each colour's share of what the black leaves.
pub(super) fn cmyk_to_rgb([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let left = 255 - u32::from(black);
    [cyan, magenta, yellow].map(|ink| {
        let product = u32::from(ink) * left + 128;
        left.saturating_sub((product + (product >> 8)) >> 8) as u8
    })
}

/// libtiff's conversion, which Pillow has for compressed TIFF images, with 16 bits behind the point.
pub(super) fn ycbcr_to_rgb_by_libtiff([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
    let offsets = [91_881 * cr, -22_553 * cb - 46_802 * cr, 116_130 * cb];
    offsets.map(|offset| (i32::from(y) + ((offset + HALF) >> 16)).clamp(0, 255) as u8)
}

/// Pillow's own conversion (its ConvertYCbCr.c), with six bits behind the point. JPEG images do not
/// come this way.
pub(super) fn ycbcr_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    const ONE: i32 = 100_000;
    let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
    // The coefficients times 64, in hundred-thousandths; the division rounds towards zero.
    let part = |colour: i32, coefficient: i32| (colour * coefficient + ONE / 2) / ONE;
    let red = part(cr, 8_972_800);
    let green = part(cb, -2_202_496) + part(cr, -4_570_496);
    let blue = part(cb, 11_340_800);
    [red, green, blue].map(|offset| (i32::from(y) + (offset >> 6)).clamp(0, 255) as u8)
}

/// 16-bit greys as Pillow turns mode "I;16" or "I" into RGB: clipped at 255, not scaled.
pub(super) fn clip16(samples: &[u16]) -> Vec<u8> {
    samples.iter().map(|&value| value.min(255) as u8).collect()
}

/// 16-bit colours as Pillow reads them: the high byte of each sample.
pub(super) fn high_byte(samples: &[u16]) -> Vec<u8> {
    samples.iter().map(|&value| (value >> 8) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_shows_through() {
        assert_eq!(over_white(10, 0), 255);
        assert_eq!(over_white(10, 255), 10);
        assert_eq!(over_white(0, 128), 127);
        assert_eq!(over_white(255, 77), 255);
    }

    #[test]
    fn sixteen_bits() {
        assert_eq!(clip16(&[0, 255, 256, 65535]), [0, 255, 255, 255]);
        assert_eq!(high_byte(&[0, 255, 256, 65535]), [0, 0, 1, 255]);
    }

    #[test]
    fn a_transparent_colour_is_exact() {
        let mut pixels = Pixels::from_rgb((2, 1), vec![1, 2, 3, 1, 2, 4]);
        pixels.make_transparent([1, 2, 3]);
        pixels.composite_on_white();
        assert_eq!(pixels.rgb, [255, 255, 255, 1, 2, 4]);
    }

    #[test]
    fn dropping_alpha_keeps_the_hidden_colour() {
        let pixels = Pixels::from_rgba((1, 1), &[9, 8, 7, 0]);
        assert_eq!(pixels.rgb, [9, 8, 7]);
        let pixels = Pixels::from_grey_alpha((1, 1), &[5, 0]);
        assert_eq!((pixels.rgb, pixels.alpha), (vec![5; 3], Some(vec![0])));
    }
}
