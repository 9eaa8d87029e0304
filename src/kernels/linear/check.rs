//! The self-checks of the linear kernels.

use half::f16;

use crate::gpu::{Activation, Gpu, QUANT_BLOCK, WeightFormat};
use crate::kernels::self_check::{Check, finding, is_wrong, scattered};

use super::variant::more_candidates;
use super::{Activate, Linear, LinearVariant, MATVEC_ROWS, candidates, linear_with, reference};

/// Rows of the cases: one that the matrix–vector kernels take, and one for more than a tile of most others.
pub(crate) const CHECKED_ROWS: [usize; 2] = [5, 70];
const OUT_FEATURES: usize = 75;
const IN_FEATURES: usize = 96;

/// A case for every kernel that `gpu` offers for weights in `format`.
pub(crate) fn checks(gpu: &Gpu, format: WeightFormat) -> Vec<Check> {
    let Weight {
        values,
        scales,
        weight,
    } = Weight::new(format);
    let mut checks: Vec<Check> = Vec::new();
    for rows in CHECKED_ROWS {
        let x = scattered(rows * IN_FEATURES, 2);
        let expected = reference(&x, &weight, None, IN_FEATURES, Activate::Identity, None);
        let mut seen = Vec::new();
        let capabilities = gpu.capabilities();
        let mut variants = candidates(capabilities, rows);
        if rows > MATVEC_ROWS {
            // Which of them serve depends on the rows; the cases stand for all numbers of them.
            variants.extend(more_candidates(capabilities));
        }
        for variant in variants {
            let finding = name_of(gpu, rows, variant, format);
            if seen.contains(&finding) {
                continue;
            }
            seen.push(finding.clone());
            let (gpu, x) = (gpu.clone(), x.clone());
            let (values, scales) = (values.clone(), scales.clone());
            checks.push(Check {
                finding,
                what: "linear layers",
                is_experimental: matches!(variant, LinearVariant::Cooperative(_)),
                expected: expected.clone(),
                record: Box::new(move |program| {
                    let x = Activation::external(&gpu.storage_with("x", &x)?, rows, IN_FEATURES);
                    let layer = Linear {
                        weight: gpu.weight_matrix_with(
                            "weight",
                            format,
                            [OUT_FEATURES, IN_FEATURES],
                            &values,
                            &scales,
                        )?,
                        bias: None,
                    };
                    Ok(linear_with(program, variant, &x, &layer))
                }),
            });
        }
    }
    checks
}

/// The weight of the cases as it is stored, and what that stands for.
struct Weight {
    values: Vec<u8>,
    scales: Vec<f16>,
    weight: Vec<f32>,
}

impl Weight {
    /// Quantised values that are any of their range, with scales that differ from block to block.
    fn new(format: WeightFormat) -> Self {
        let weight = scattered(OUT_FEATURES * IN_FEATURES, 1);
        if !format.is_quantised() {
            let halves: Vec<f16> = weight.into_iter().map(f16::from_f32).collect();
            return Self {
                values: bytemuck::cast_slice(&halves).to_vec(),
                scales: Vec::new(),
                weight: halves.iter().map(|half| half.to_f32()).collect(),
            };
        }
        let most = (1 << (format.bits() - 1)) as f32;
        let integers: Vec<i8> = weight
            .iter()
            .map(|value| (value * most).floor() as i8)
            .collect();
        let values = match format {
            WeightFormat::Q4 => integers
                .chunks_exact(2)
                .map(|pair| (pair[0] as u8 & 0xf) | ((pair[1] as u8) << 4))
                .collect(),
            _ => bytemuck::cast_slice(&integers).to_vec(),
        };
        let scales: Vec<f16> = scattered(integers.len() / QUANT_BLOCK, 3)
            .into_iter()
            .map(|value| f16::from_f32(value / most))
            .collect();
        let weight = integers
            .iter()
            .enumerate()
            .map(|(index, &integer)| f32::from(integer) * scales[index / QUANT_BLOCK].to_f32())
            .collect();
        Self {
            values,
            scales,
            weight,
        }
    }
}

/// The kernels for `rows` rows and weights in `format` that have not failed their check, the one to take unmeasured first.
pub(crate) fn usable(gpu: &Gpu, rows: usize, format: WeightFormat) -> Vec<LinearVariant> {
    let mut all = candidates(gpu.capabilities(), rows);
    let first = all[0];
    all.retain(|&variant| !is_wrong(gpu, &name_of(gpu, rows, variant, format)));
    if all.is_empty() {
        all.push(first); // `self_check` has refused the device; who goes on has not asked it
    }
    all
}

/// What the verdict on `variant` is kept under. A register tile's heights are one code; they are one finding.
fn name_of(gpu: &Gpu, rows: usize, variant: LinearVariant, format: WeightFormat) -> String {
    let name = match variant {
        LinearVariant::Register { lanes, .. } => format!("register {lanes}"),
        other => other.to_string(),
    };
    finding(gpu, variant.shape(rows, format).kernel, &name)
}
