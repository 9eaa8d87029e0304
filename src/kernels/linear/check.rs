//! The self-checks of the linear kernels.

use half::f16;

use crate::gpu::{Activation, Gpu, QUANT_BLOCK, WeightFormat};
use crate::kernels::self_check::{Check, finding, is_wrong, scattered};

use super::variant::more_candidates;
use super::{Activate, Linear, LinearVariant, MATVEC_ROWS, candidates, record_with, reference};

/// Rows of the cases: one that the matrix–vector kernels take, and one for more than a tile of most others.
pub(crate) const CHECKED_ROWS: [usize; 2] = [5, 70];
const OUT_FEATURES: usize = 75;
/// Many times the depth of any tile, and not a multiple of the deepest ones'.
const IN_FEATURES: usize = 480;

/// Two cases for every kernel that `gpu` offers for weights in `format`: the bare product, and one with all that may follow
/// it.
pub(crate) fn checks(gpu: &Gpu, format: WeightFormat) -> Vec<Check> {
    let Weight {
        values,
        scales,
        weight,
    } = Weight::new(format);
    let mut checks: Vec<Check> = Vec::new();
    for rows in CHECKED_ROWS {
        let ends = [false, true].map(|is_full| End::new(is_full, rows));
        let x = scattered(rows * IN_FEATURES, 2);
        let expected = ends.each_ref().map(|end| {
            let (bias, old) = (end.bias.as_deref(), end.old.as_deref());
            reference(&x, &weight, bias, IN_FEATURES, end.activate, old)
        });
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
            for (end, expected) in ends.iter().zip(&expected) {
                let (gpu, x, end) = (gpu.clone(), x.clone(), end.clone());
                let (values, scales) = (values.clone(), scales.clone());
                checks.push(Check {
                    finding: finding.clone(),
                    what: if rows <= MATVEC_ROWS {
                        "linear layers of few rows"
                    } else {
                        "linear layers of many rows"
                    },
                    is_experimental: matches!(variant, LinearVariant::Cooperative(_)),
                    expected: expected.clone(),
                    record: Box::new(move |program| {
                        let x = gpu.storage_with("x", &x)?;
                        let x = Activation::external(&x, rows, IN_FEATURES);
                        let shape = [OUT_FEATURES, IN_FEATURES];
                        let bias = end.bias.as_deref().map(|it| gpu.vector("bias", it));
                        let weight =
                            gpu.weight_matrix_with("weight", format, shape, &values, &scales)?;
                        let bias = bias.transpose()?;
                        let layer = Linear { weight, bias };
                        let y = match &end.old {
                            Some(old) => {
                                let old = gpu.storage_with("y", old)?;
                                Activation::external(&old, rows, OUT_FEATURES)
                            }
                            None => program.activation(rows, OUT_FEATURES),
                        };
                        let accumulate = end.old.is_some();
                        record_with(program, variant, &x, &layer, end.activate, &y, accumulate);
                        Ok(y)
                    }),
                });
            }
        }
    }
    checks
}

/// What follows a product.
#[derive(Clone)]
struct End {
    activate: Activate,
    bias: Option<Vec<f32>>,
    /// What the result is added to.
    old: Option<Vec<f32>>,
}

impl End {
    fn new(is_full: bool, rows: usize) -> Self {
        Self {
            activate: if is_full {
                Activate::GeluErf
            } else {
                Activate::Identity
            },
            bias: is_full.then(|| scattered(OUT_FEATURES, 4)),
            old: is_full.then(|| scattered(rows * OUT_FEATURES, 5)),
        }
    }
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
