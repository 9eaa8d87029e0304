//! Element types on disk and on the GPU, and conversion between them.
//!
//! A whole model (gigabytes) goes through [`convert_elements`], so it works on blocks that stay in
//! the L1 cache, with loops the compiler vectorises and the `half` crate's hardware conversions.
//! Sources need no alignment: safetensors promises none.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Elements converted at a time: 4 KiB of f32.
const BLOCK: usize = 1024;

/// The smallest magnitude that rounds to infinity in f16: halfway between 65504 and 65536.
const F16_OVERFLOW: f32 = 65520.0;

/// Element type of a stored weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceFormat {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl SourceFormat {
    /// The weight format of a safetensors type; `None` where weights cannot have that type.
    pub fn of(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F16 => Some(Self::F16),
            safetensors::Dtype::BF16 => Some(Self::Bf16),
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::F64 => Some(Self::F64),
            _ => None,
        }
    }

    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Element type of a converted weight, little-endian as GPUs read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// IEEE half precision, rounded to nearest even.
    F16,
    /// IEEE single precision.
    F32,
}

impl Format {
    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Magnitudes from here on have no finite value in this format.
    fn limit(self) -> f32 {
        match self {
            Self::F16 => F16_OVERFLOW,
            Self::F32 => f32::INFINITY,
        }
    }
}

/// An element that has no finite value in the destination format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BadElement {
    /// Flat index in the source.
    pub index: usize,
    /// Its value: NaN, infinite, or too large.
    pub value: f64,
}

/// Converts `source` to `format` in `target`; returns the first element that is NaN, infinite or
/// would become so (the target's contents are then unspecified). Every element is checked, because
/// one infinite weight makes every later activation NaN and the output silently empty; the check is
/// one integer maximum an element.
///
/// `source` and `target` hold the same number of elements; surplus bytes of the longer one are left
/// alone.
pub fn convert_elements(
    source_format: SourceFormat,
    source: &[u8],
    format: Format,
    target: &mut [u8],
) -> Result<(), BadElement> {
    let mut block = [0f32; BLOCK];
    let sources = source.chunks(BLOCK * source_format.size());
    let targets = target.chunks_mut(BLOCK * format.size());
    for (number, (bytes, out)) in sources.zip(targets).enumerate() {
        if (source_format, format) == (SourceFormat::F16, Format::F16) {
            if f16_all_finite(bytes) {
                let length = bytes.len().min(out.len());
                out[..length].copy_from_slice(&bytes[..length]);
                continue;
            }
        } else {
            let count = (bytes.len() / source_format.size()).min(out.len() / format.size());
            let values = &mut block[..count];
            load(source_format, bytes, values);
            if all_below(values, format.limit()) {
                store(format, values, out);
                continue;
            }
        }
        let (index, value) = first_bad(source_format, bytes, format.limit());
        return Err(BadElement {
            index: number * BLOCK + index,
            value,
        });
    }
    Ok(())
}

/// Reads little-endian `bytes` as f32 values.
fn load(format: SourceFormat, bytes: &[u8], values: &mut [f32]) {
    match format {
        SourceFormat::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            let halves = &mut halves[..values.len()];
            for (half, b) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                *half = f16::from_le_bytes([b[0], b[1]]);
            }
            halves.convert_to_f32_slice(values);
        }
        SourceFormat::Bf16 => {
            for (value, b) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            }
        }
        SourceFormat::F32 => {
            for (value, b) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        SourceFormat::F64 => {
            for (value, b) in values.iter_mut().zip(bytes.chunks_exact(8)) {
                *value =
                    f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32;
            }
        }
    }
}

/// Writes `values` as little-endian elements of `format`.
fn store(format: Format, values: &[f32], out: &mut [u8]) {
    match format {
        Format::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            for (half, b) in halves.iter().zip(out.chunks_exact_mut(2)) {
                b.copy_from_slice(&half.to_le_bytes());
            }
        }
        Format::F32 => {
            for (value, b) in values.iter().zip(out.chunks_exact_mut(4)) {
                b.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

/// Whether every magnitude is below `limit`. As integers, the bits of non-negative floats sort like
/// the floats, with infinity and the NaNs above all numbers; what is added carries into the top bit
/// from `limit` on, and one OR gathers these bits (plain integer operations vectorise on every
/// machine, a float or unsigned maximum not).
fn all_below(values: &[f32], limit: f32) -> bool {
    let carry = 0x8000_0000 - limit.to_bits();
    let sums = values
        .iter()
        .map(|value| (value.to_bits() & 0x7fff_ffff).wrapping_add(carry));
    sums.fold(0, |all, sum| all | sum) < 0x8000_0000
}

/// Whether no half in `bytes` is infinite or NaN; as [`all_below`].
fn f16_all_finite(bytes: &[u8]) -> bool {
    let carry = 0x8000 - f16::INFINITY.to_bits();
    let halves = bytes
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]));
    halves.fold(0, |all, half| all | (half & 0x7fff).wrapping_add(carry)) < 0x8000
}

/// Finds the first half of `bytes` that is infinite or NaN, as [`convert_elements`] would.
pub(super) fn check_f16(bytes: &[u8]) -> Result<(), BadElement> {
    if f16_all_finite(bytes) {
        return Ok(());
    }
    let (index, value) = first_bad(SourceFormat::F16, bytes, F16_OVERFLOW);
    Err(BadElement { index, value })
}

/// Index and value of the first element whose magnitude is not below `limit`.
fn first_bad(format: SourceFormat, bytes: &[u8], limit: f32) -> (usize, f64) {
    for (index, element) in bytes.chunks_exact(format.size()).enumerate() {
        let mut value = [0f32];
        load(format, element, &mut value);
        if value[0].is_nan() || value[0].abs() >= limit {
            let exact = match <[u8; 8]>::try_from(element) {
                Ok(double) => f64::from_le_bytes(double),
                Err(_) => f64::from(value[0]),
            };
            return (index, exact);
        }
    }
    (0, f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of `values` in a source format, after `offset` bytes of nothing (to test unaligned
    /// sources).
    fn encode(format: SourceFormat, values: &[f64], offset: usize) -> Vec<u8> {
        let mut bytes = vec![0xAA; offset];
        for &value in values {
            match format {
                SourceFormat::F16 => bytes.extend(f16::from_f64(value).to_le_bytes()),
                SourceFormat::Bf16 => bytes.extend(half::bf16::from_f64(value).to_le_bytes()),
                SourceFormat::F32 => bytes.extend((value as f32).to_le_bytes()),
                SourceFormat::F64 => bytes.extend(value.to_le_bytes()),
            }
        }
        bytes
    }

    const ALL: [SourceFormat; 4] = [
        SourceFormat::F16,
        SourceFormat::Bf16,
        SourceFormat::F32,
        SourceFormat::F64,
    ];

    #[test]
    fn every_format_converts_at_odd_lengths_and_offsets() {
        // Exact in all formats, so the result must be exact as well.
        for count in [0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 333] {
            let values: Vec<f64> = (0..count)
                .map(|i| (i as f64 % 127.0 - 63.0) / 8.0)
                .collect();
            for source_format in ALL {
                for offset in [0, 1, 3] {
                    let source = encode(source_format, &values, offset);
                    let mut halves = vec![0; count * 2];
                    convert_elements(source_format, &source[offset..], Format::F16, &mut halves)
                        .unwrap();
                    let mut singles = vec![0; count * 4];
                    convert_elements(source_format, &source[offset..], Format::F32, &mut singles)
                        .unwrap();
                    for (i, value) in values.iter().enumerate() {
                        let half = f16::from_le_bytes([halves[2 * i], halves[2 * i + 1]]);
                        assert_eq!(
                            half.to_f64(),
                            *value,
                            "{source_format:?} element {i} of {count}"
                        );
                        let single =
                            f32::from_le_bytes(singles[4 * i..4 * i + 4].try_into().unwrap());
                        assert_eq!(
                            f64::from(single),
                            *value,
                            "{source_format:?} element {i} of {count}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn rounds_to_nearest_even_and_keeps_subnormals() {
        // 2049 and 2051 lie halfway between halves; 3e-7 is subnormal; 1e-9 rounds to zero.
        let values = [2049.0, 2051.0, 3e-7, 1e-9, -65504.0, 65519.0];
        let source = encode(SourceFormat::F32, &values, 0);
        let mut target = vec![0; values.len() * 2];
        convert_elements(SourceFormat::F32, &source, Format::F16, &mut target).unwrap();
        let halves: Vec<f32> = target
            .chunks(2)
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect();
        assert_eq!(halves[..2], [2048.0, 2052.0]);
        assert!((halves[2] - 3e-7).abs() < 3e-8);
        assert_eq!(halves[3..], [0.0, -65504.0, 65504.0]);
    }

    #[test]
    fn values_without_a_finite_half_are_found_where_they_are() {
        for (format, value, refused) in [
            (SourceFormat::F32, 65520.0, true),
            (SourceFormat::F32, -1e9, true),
            (SourceFormat::F64, 1e300, true),
            (SourceFormat::Bf16, 1e6, true),
            (SourceFormat::F16, f64::INFINITY, true),
            (SourceFormat::F16, f64::NAN, true),
            (SourceFormat::F32, f64::NAN, true),
            (SourceFormat::F32, 65519.0, false),
        ] {
            for index in [0, 5, BLOCK + 17] {
                let mut values = vec![1.0; BLOCK + 30];
                values[index] = value;
                let source = encode(format, &values, 0);
                let mut target = vec![0; values.len() * 2];
                let result = convert_elements(format, &source, Format::F16, &mut target);
                match result {
                    Ok(()) => assert!(!refused, "{format:?} {value} passed"),
                    Err(bad) => {
                        assert!(refused, "{format:?} {value} refused");
                        assert_eq!(bad.index, index);
                        assert!(
                            bad.value.is_nan() && value.is_nan()
                                || (bad.value / value - 1.0).abs() < 0.01
                                || bad.value == value
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn f32_targets_take_what_f16_cannot_hold_but_nothing_infinite() {
        let mut target = vec![0; 4];
        let source = encode(SourceFormat::F32, &[1e30], 0);
        assert_eq!(
            convert_elements(SourceFormat::F32, &source, Format::F32, &mut target),
            Ok(())
        );
        let source = encode(SourceFormat::F64, &[1e300], 0);
        let bad =
            convert_elements(SourceFormat::F64, &source, Format::F32, &mut target).unwrap_err();
        assert_eq!(
            bad,
            BadElement {
                index: 0,
                value: 1e300
            }
        );
    }

    /// Not a test but a measurement: `cargo test --release convert_speed -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn convert_speed() {
        let count = 32 << 20;
        for source_format in ALL {
            let pair = encode(source_format, &[0.25, -0.125], 0);
            let source: Vec<u8> = pair
                .iter()
                .copied()
                .cycle()
                .take(count * source_format.size())
                .collect();
            for format in [Format::F16, Format::F32] {
                let mut target = vec![0; count * format.size()];
                let mut best = f64::MAX;
                for _ in 0..3 {
                    let start = std::time::Instant::now();
                    convert_elements(source_format, &source, format, &mut target).unwrap();
                    best = best.min(start.elapsed().as_secs_f64());
                }
                let gigabytes = (source.len() + target.len()) as f64 / 1e9;
                println!(
                    "{source_format:?} to {format:?}: {:.2} GB/s read and written",
                    gigabytes / best
                );
            }
        }
    }
}
