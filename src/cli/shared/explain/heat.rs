//! Attention as light: where it is little the picture darkens, where it is much the picture shows,
//! warmly tinted.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageResult};

use crate::image::{Rgb8Image, resize_bicubic};

/// What lies over the picture for weights 0, ½ and 1 of the map's largest: red, green, blue, and
/// how much of the picture it covers. Black alone would leave dark pictures without a map.
const COVER: [[f32; 4]; 3] = [
    [6.0, 4.0, 24.0, 0.84],
    [90.0, 30.0, 90.0, 0.52],
    [255.0, 200.0, 80.0, 0.20],
];

/// The cover of a weight from 0 to 1: RGB in 0..=255, alpha in 0..=1.
fn cover(weight: f32) -> [f32; 4] {
    let at = weight.clamp(0.0, 1.0) * 2.0;
    let (low, high) = if at < 1.0 { (0, 1) } else { (1, 2) };
    let share = at - low as f32;
    std::array::from_fn(|channel| {
        COVER[low][channel] * (1.0 - share) + COVER[high][channel] * share
    })
}

/// A map over the patches of an image, `[grid²]`, rows from the top, scaled so that the largest is
/// 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Heat {
    grid: usize,
    weights: Vec<f32>,
    /// The largest share over the even one: 1 is a map without any preference.
    pub peak: f32,
}

impl Heat {
    /// `patches` are shares `[grid²]` of any sum.
    pub fn new(grid: usize, patches: &[f32]) -> Self {
        let most = patches.iter().copied().fold(0.0, f32::max);
        let sum: f32 = patches.iter().sum();
        let scale = if most > 0.0 { 1.0 / most } else { 0.0 };
        Self {
            grid,
            weights: patches.iter().map(|share| share * scale).collect(),
            peak: if sum > 0.0 {
                most * patches.len() as f32 / sum
            } else {
                0.0
            },
        }
    }

    /// The cover as a PNG of one pixel a patch, for a browser to stretch over the picture.
    pub fn to_png(&self) -> ImageResult<Vec<u8>> {
        let pixels: Vec<u8> = self
            .weights
            .iter()
            .flat_map(|&weight| {
                let [red, green, blue, alpha] = cover(weight);
                [red, green, blue, alpha * 255.0].map(|value| value.round() as u8)
            })
            .collect();
        let side = self.grid as u32;
        let mut png = Vec::new();
        PngEncoder::new(&mut png).write_image(&pixels, side, side, ExtendedColorType::Rgba8)?;
        Ok(png)
    }

    /// The weight at a place of the image, `x` and `y` from 0 to 1, interpolated between the
    /// centres of patches.
    fn at(&self, x: f32, y: f32) -> f32 {
        let last = self.grid - 1;
        let place = |part: f32| {
            let patch = (part * self.grid as f32 - 0.5).clamp(0.0, last as f32);
            let low = (patch as usize).min(last);
            (low, (low + 1).min(last), patch - low as f32)
        };
        let ((left, right, across), (top, bottom, down)) = (place(x), place(y));
        let row = |y: usize| {
            let weights = &self.weights[y * self.grid..][..self.grid];
            weights[left] * (1.0 - across) + weights[right] * across
        };
        row(top) * (1.0 - down) + row(bottom) * down
    }

    /// `picture` under the cover, the square of patches stretched to its shape as the preprocessor squashed it.
    pub fn over(&self, picture: &Rgb8Image) -> Vec<u8> {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let mut pixels = picture.data().to_vec();
        for (index, pixel) in pixels.chunks_exact_mut(3).enumerate() {
            let x = ((index % width) as f32 + 0.5) / width as f32;
            let y = ((index / width) as f32 + 0.5) / height as f32;
            let [red, green, blue, alpha] = cover(self.at(x, y));
            for (value, over) in pixel.iter_mut().zip([red, green, blue]) {
                *value = (f32::from(*value) * (1.0 - alpha) + over * alpha).round() as u8;
            }
        }
        pixels
    }
}

/// For each map, by how much each patch's share is above its mean over all maps: what sets a word
/// apart.
pub fn above_mean(maps: &[&[f32]]) -> Vec<Vec<f32>> {
    let shares: Vec<Vec<f32>> = maps
        .iter()
        .map(|map| {
            let sum: f32 = map.iter().sum();
            map.iter()
                .map(|share| share / sum.max(f32::MIN_POSITIVE))
                .collect()
        })
        .collect();
    let mean =
        |patch: usize| shares.iter().map(|map| map[patch]).sum::<f32>() / shares.len() as f32;
    let means: Vec<f32> = (0..shares.first().map_or(0, Vec::len)).map(mean).collect();
    let above = |map: &Vec<f32>| {
        map.iter()
            .zip(&means)
            .map(|(share, mean)| (share - mean).max(0.0))
            .collect()
    };
    shares.iter().map(above).collect()
}

/// The picture made small enough for its longer side to be `most` pixels; never larger than it is.
pub fn shrink(picture: &Rgb8Image, most: u32) -> Rgb8Image {
    let longer = picture.width().max(picture.height());
    if longer <= most {
        return picture.clone();
    }
    fit(picture, most)
}

/// The picture resized for its longer side to be `side` pixels.
pub fn fit(picture: &Rgb8Image, side: u32) -> Rgb8Image {
    let longer = f64::from(picture.width().max(picture.height()));
    let scaled =
        |length: u32| ((f64::from(length) * f64::from(side) / longer).round() as u32).max(1);
    resize_bicubic(picture, scaled(picture.width()), scaled(picture.height()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_scaled_by_their_largest_share() {
        let heat = Heat::new(2, &[0.1, 0.2, 0.4, 0.1]);
        assert_eq!(heat.weights, [0.25, 0.5, 1.0, 0.25]);
        assert!((heat.peak - 2.0).abs() < 1e-6);
        assert_eq!(Heat::new(1, &[0.0]).peak, 0.0);
    }

    #[test]
    fn a_map_is_stretched_over_the_whole_picture() {
        // The lower right patch of a wide picture.
        let heat = Heat::new(2, &[0.0, 0.0, 0.0, 1.0]);
        let white = Rgb8Image::new(8, 4, vec![255; 8 * 4 * 3]).expect("its size");
        let pixels = heat.over(&white);
        let green = |x: usize, y: usize| pixels[(y * 8 + x) * 3 + 1];
        let [dark, bright] = [0.0, 1.0].map(|weight| {
            let [_, green, _, alpha] = cover(weight);
            (255.0 * (1.0 - alpha) + green * alpha).round() as u8
        });
        assert_eq!((green(0, 0), green(7, 3)), (dark, bright));
        assert_eq!((green(1, 3), green(7, 0)), (dark, dark));
        assert!(green(4, 2) > dark && green(4, 2) < bright);
        // One patch covers everything alike.
        let even = Heat::new(1, &[0.3]).over(&white);
        assert!(even.chunks(3).all(|pixel| pixel[1] == bright));
    }

    #[test]
    fn covers_go_from_dark_to_clear() {
        assert_eq!(cover(0.0), COVER[0]);
        assert_eq!(cover(0.5), COVER[1]);
        assert_eq!(cover(1.0), COVER[2]);
        assert_eq!(cover(7.0), COVER[2]);
        assert!(cover(0.3)[3] > cover(0.7)[3]);
    }

    #[test]
    fn what_all_words_share_does_not_set_them_apart() {
        let apart = above_mean(&[&[0.5, 0.3, 0.0], &[0.5, 0.0, 0.3]]);
        assert_eq!(apart[0][0], 0.0);
        assert!(apart[0][1] > 0.1 && apart[0][2] == 0.0);
        assert_eq!(above_mean(&[&[0.2, 0.8]]), [[0.0, 0.0]]);
        assert!(above_mean(&[]).is_empty());
    }

    #[test]
    fn pictures_keep_their_shape() {
        let picture = Rgb8Image::new(40, 10, vec![9; 1200]).expect("its size");
        let sizes = |picture: Rgb8Image| (picture.width(), picture.height());
        assert_eq!(sizes(shrink(&picture, 20)), (20, 5));
        assert_eq!(sizes(shrink(&picture, 400)), (40, 10));
        assert_eq!(sizes(fit(&picture, 400)), (400, 100));
        assert_eq!(sizes(fit(&picture, 2)), (2, 1));
    }
}
