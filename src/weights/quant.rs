//! Quantising weights: blocks of 32 values that share a scale.
//!
//! Both formats are symmetric: a value is an integer times its block's scale, so that zeros stay
//! zeros. Eight bits take the scale that puts the largest value at ±127. Four bits are few enough
//! for the choice to matter: several scales are tried, each improved to the one that fits its
//! integers best (least squares, `Σ w·q / Σ q²`), and the one that leaves the least squared error
//! is taken.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::gpu::{QUANT_BLOCK, WeightFormat};

/// Largest magnitude of a q8 value.
const Q8_MOST: f32 = 127.0;

/// Smallest and largest q4 value.
const Q4_RANGE: [f32; 2] = [-8.0, 7.0];

/// Where the value of largest magnitude may go in q4: on -8 where that is exact, inside the range
/// where the others gain by it, beyond it (and be cut) where they gain by that.
const Q4_TARGETS: [f32; 8] = [-8.0, -7.5, -7.0, -6.5, 7.0, 7.5, 8.0, -8.6];

/// Blocks converted to f32 at a time.
const TOGETHER: usize = 32;

/// Values that go through a loop's step side by side.
const LANES: usize = 8;

/// Quantises rows of `halves` (all finite, a multiple of 32 values) into `values` (`halves.len() *
/// bits / 8` bytes) and `scales` (one a block).
pub fn quantise(format: WeightFormat, halves: &[f16], values: &mut [u8], scales: &mut [f16]) {
    let block_bytes = format.row_bytes(QUANT_BLOCK);
    let mut floats = [0.0; TOGETHER * QUANT_BLOCK];
    let steps = halves.chunks(floats.len());
    let targets = values.chunks_mut(TOGETHER * block_bytes);
    for ((halves, values), scales) in steps.zip(targets).zip(scales.chunks_mut(TOGETHER)) {
        let floats = &mut floats[..halves.len()];
        halves.convert_to_f32_slice(floats);
        let (blocks, _) = floats.as_chunks::<QUANT_BLOCK>();
        let targets = values.chunks_exact_mut(block_bytes);
        for ((block, target), scale) in blocks.iter().zip(targets).zip(scales) {
            *scale = match format {
                WeightFormat::F16 => return,
                WeightFormat::Q8 => q8_block(block, target),
                WeightFormat::Q4 => q4_block(block, target),
            };
        }
    }
}

/// Quantises a block to `target`, 32 bytes; returns its scale.
fn q8_block(block: &[f32; QUANT_BLOCK], target: &mut [u8]) -> f16 {
    let scale = f16::from_f32(largest(block).abs() / Q8_MOST);
    let integers = round_block(block, inverse(scale), [-Q8_MOST, Q8_MOST]);
    target.copy_from_slice(&integers);
    scale
}

/// Quantises a block to `target`, 16 bytes; returns its scale.
fn q4_block(block: &[f32; QUANT_BLOCK], target: &mut [u8]) -> f16 {
    let scale = q4_scale(block);
    let integers = round_block(block, inverse(scale), Q4_RANGE);
    let (pairs, _) = integers.as_chunks::<2>();
    for (byte, [low, high]) in target.iter_mut().zip(pairs) {
        *byte = (low & 0xf) | (high << 4);
    }
    scale
}

/// The values of [`quantise`]'s result: the twin of what shaders read.
pub fn dequantise(format: WeightFormat, values: &[u8], scales: &[f16], out: &mut [f32]) {
    for (index, out) in out.iter_mut().enumerate() {
        let integer = match format {
            WeightFormat::F16 => continue,
            WeightFormat::Q8 => values[index] as i8,
            WeightFormat::Q4 => (values[index / 2] << (4 * (1 - index % 2))) as i8 >> 4,
        };
        *out = f32::from(integer) * scales[index / QUANT_BLOCK].to_f32();
    }
}

/// The value of largest magnitude.
fn largest(block: &[f32; QUANT_BLOCK]) -> f32 {
    let (mut most, mut least) = ([0.0; LANES], [0.0; LANES]);
    for values in block.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            most[lane] = larger(values[lane], most[lane]);
            least[lane] = smaller(values[lane], least[lane]);
        }
    }
    let most = most.into_iter().fold(0.0, larger);
    let least = least.into_iter().fold(0.0, smaller);
    if most >= -least { most } else { least }
}

/// `f32::max` without its rules for NaN, which are two more instructions.
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// What values are multiplied by to be multiples of `scale`; zero where it is too small to divide
/// by.
fn inverse(scale: f16) -> f32 {
    if scale.to_f32() == 0.0 {
        0.0
    } else {
        1.0 / scale.to_f32()
    }
}

/// 1.5 · 2²³: adding it to a small float rounds that to the nearest even integer, in vector
/// instructions of every machine. The sum's low bits are the integer's; taking it away again leaves
/// the integer as a float.
const ROUND: f32 = 12_582_912.0;

/// `value` cut to `range`.
fn cut(value: f32, [least, most]: [f32; 2]) -> f32 {
    smaller(larger(value, least), most)
}

/// `block · inverse` rounded to integers within `range`, the low byte of each.
fn round_block(block: &[f32; QUANT_BLOCK], inverse: f32, range: [f32; 2]) -> [u8; QUANT_BLOCK] {
    block.map(|value| (cut(value * inverse, range) + ROUND).to_bits() as u8)
}

/// The q4 scale of those tried that leaves the least squared error.
fn q4_scale(block: &[f32; QUANT_BLOCK]) -> f16 {
    let largest = largest(block);
    if largest == 0.0 {
        return f16::ZERO;
    }
    // All targets side by side, in the lanes of vectors.
    let inverses = Q4_TARGETS.map(|target| target / largest);
    let (mut products, mut squares) = ([0.0; Q4_TARGETS.len()], [0.0; Q4_TARGETS.len()]);
    for &value in block {
        let integers = inverses.map(|inverse| cut(value * inverse, Q4_RANGE) + ROUND - ROUND);
        for (product, integer) in products.iter_mut().zip(integers) {
            *product += value * integer;
        }
        for (square, integer) in squares.iter_mut().zip(integers) {
            *square += integer * integer;
        }
    }
    let (mut best, mut best_gain) = (0.0, -1.0);
    for (product, square) in products.into_iter().zip(squares) {
        // By the best scale for these integers, the squared error is Σ w² less this.
        let gain = product * product / square;
        if gain > best_gain {
            (best, best_gain) = (product / square, gain);
        }
    }
    f16::from_f32(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values with the spread of real weights: sums of three uniform ones, a few of them much
    /// larger.
    fn weights(count: usize) -> Vec<f16> {
        let mut random = crate::kernels::testing::Random(3);
        (0..count)
            .map(|index| {
                let value = random.next() + random.next() + random.next();
                let outlier = if index % 97 == 0 { 4.0 } else { 1.0 };
                f16::from_f32(value * outlier * 0.02)
            })
            .collect()
    }

    fn round_trip(format: WeightFormat, halves: &[f16]) -> (Vec<f32>, Vec<f16>) {
        let mut values = vec![0; format.row_bytes(halves.len())];
        let mut scales = vec![f16::ZERO; halves.len() / QUANT_BLOCK];
        quantise(format, halves, &mut values, &mut scales);
        let mut back = vec![0.0; halves.len()];
        dequantise(format, &values, &scales, &mut back);
        (back, scales)
    }

    fn relative_error(halves: &[f16], back: &[f32]) -> f64 {
        let pairs = halves.iter().zip(back);
        let error: f64 = pairs
            .map(|(a, b)| (a.to_f64() - f64::from(*b)).powi(2))
            .sum();
        let norm: f64 = halves.iter().map(|a| a.to_f64().powi(2)).sum();
        (error / norm).sqrt()
    }

    #[test]
    fn a_q8_value_is_off_by_half_a_step_at_most() {
        let halves = weights(32 * 100);
        let (back, scales) = round_trip(WeightFormat::Q8, &halves);
        for (index, (half, back)) in halves.iter().zip(&back).enumerate() {
            let step = scales[index / 32].to_f32();
            // The scale itself is rounded to f16: the largest value may lie a little beyond 127
            // steps.
            let bound = step * 0.5 + half.to_f32().abs() / 1024.0;
            assert!((half.to_f32() - back).abs() <= bound, "value {index}");
        }
        let error = relative_error(&halves, &back);
        assert!((0.002..0.008).contains(&error), "{error}");
    }

    #[test]
    fn q4_errs_less_than_by_the_largest_value_alone() {
        let halves = weights(32 * 100);
        let (back, _) = round_trip(WeightFormat::Q4, &halves);
        let mut plain = Vec::new();
        for block in halves.chunks(32) {
            let mut values = [0.0; 32];
            block.convert_to_f32_slice(&mut values);
            let scale = largest(&values) / -8.0;
            let integers = round_block(&values, 1.0 / scale, Q4_RANGE);
            plain.extend(integers.map(|integer| f32::from(integer as i8) * scale));
        }
        let (ours, plain) = (
            relative_error(&halves, &back),
            relative_error(&halves, &plain),
        );
        assert!(ours < 0.97 * plain, "{ours} against {plain}");
        assert!(ours < 0.1, "{ours}");
    }

    #[test]
    fn special_blocks_come_back() {
        for format in [WeightFormat::Q8, WeightFormat::Q4] {
            let zero = [f16::ZERO; 32];
            assert_eq!(round_trip(format, &zero).0, [0.0; 32]);
            // The largest halves, of either sign, and one value alone in its block.
            for value in [f16::MAX, f16::MIN, f16::from_f32(-0.375)] {
                for alone in [true, false] {
                    let block: Vec<f16> = (0..32)
                        .map(|index| {
                            if alone && index != 7 {
                                f16::ZERO
                            } else {
                                value
                            }
                        })
                        .collect();
                    let (back, _) = round_trip(format, &block);
                    let error = relative_error(&block, &back);
                    assert!(error < 1e-3, "{format} {value} {alone}: {error}");
                }
            }
            // Subnormal halves: their scale may round to nothing, never to infinity.
            let tiny = [f16::from_bits(3); 32];
            let (back, _) = round_trip(format, &tiny);
            assert!(back.iter().all(|value| value.abs() < 1e-6));
        }
    }

    #[test]
    fn q4_packs_the_first_value_lowest() {
        let block: Vec<f16> = (0..32)
            .map(|index| f16::from_f32((index % 16) as f32 - 8.0))
            .collect();
        let mut values = [0; 16];
        let mut scales = [f16::ZERO];
        quantise(WeightFormat::Q4, &block, &mut values, &mut scales);
        assert_eq!(scales[0], f16::ONE);
        assert_eq!(values[..2], [0x98, 0xba]); // -8, -7, -6, -5
        assert_eq!(round_trip(WeightFormat::Q4, &block).0[5], -3.0);
    }

    /// Not a test but a measurement: `cargo test --release quantise_speed -- --ignored
    /// --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn quantise_speed() {
        let halves = weights(1 << 22);
        let mut scales = vec![f16::ZERO; halves.len() / QUANT_BLOCK];
        for format in [WeightFormat::Q8, WeightFormat::Q4] {
            let mut values = vec![0; format.row_bytes(halves.len())];
            let start = std::time::Instant::now();
            quantise(format, &halves, &mut values, &mut scales);
            let seconds = start.elapsed().as_secs_f64();
            let error = relative_error(&halves, &round_trip(format, &halves).0);
            println!(
                "{format}: {:.0} M values/s, relative error {error:.5}",
                halves.len() as f64 / seconds / 1e6
            );
        }
    }
}
