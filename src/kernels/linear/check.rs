//! The self-checks of the linear kernels.

use std::sync::Arc;

use half::f16;

use crate::gpu::{Activation, Gpu, GpuError, ProgramBuilder, QUANT_BLOCK, WeightFormat};
use crate::kernels::self_check::{Check, finding, is_wrong, scattered};

use super::variant::more_candidates;
use super::{Activate, Linear, LinearVariant, MATVEC_ROWS, candidates, record_with, reference};

/// Rows of the cases: one that the matrix–vector kernels take, and one for more than a tile of most others.
pub(crate) const CHECKED_ROWS: [usize; 2] = [5, 70];
const OUT_FEATURES: usize = 75;
/// Many times the depth of any tile, and not a multiple of the deepest ones'.
const IN_FEATURES: usize = 480;
/// Enough for two ranges of K.
const MANY_IN_FEATURES: usize = 1120;

/// A case for every kernel that `gpu` offers for weights in `format`: a product with all that may follow it. Cooperative
/// matrices, which store bare products and ranges of K in their own way, have a second one.
pub(crate) fn checks(gpu: &Gpu, format: WeightFormat) -> Vec<Check> {
    let weights = [IN_FEATURES, MANY_IN_FEATURES].map(|it| Weight::new(format, it));
    let [full, many] = weights.map(Arc::new);
    let capabilities = gpu.capabilities();
    let mut checks: Vec<Check> = Vec::new();
    for rows in CHECKED_ROWS {
        let full = Case::new(rows, full.clone(), End::full(rows));
        let bare = Case::new(rows, many.clone(), End::default());
        let mut variants = candidates(capabilities, rows);
        if rows > MATVEC_ROWS {
            // Which of them serve depends on the rows; the cases stand for all numbers of them.
            variants.extend(more_candidates(capabilities));
        }
        let mut seen = Vec::new();
        for variant in variants {
            let finding = name_of(gpu, rows, variant, format);
            if seen.contains(&finding) {
                continue;
            }
            checks.push(full.check(gpu, variant, &finding));
            if is_experimental(variant) {
                checks.push(bare.check(gpu, variant, &finding));
            }
            seen.push(finding);
        }
    }
    checks
}

/// A product and what it must give.
#[derive(Clone)]
struct Case {
    /// `[rows, in]`
    x: Vec<f32>,
    rows: usize,
    weight: Arc<Weight>,
    end: End,
    expected: Vec<f32>,
}

impl Case {
    fn new(rows: usize, weight: Arc<Weight>, end: End) -> Self {
        let x = scattered(rows * weight.in_features, 2);
        let (bias, old) = (end.bias.as_deref(), end.old.as_deref());
        let (of, values) = (weight.in_features, &weight.values);
        let expected = reference(&x, values, bias, of, end.activate, old);
        Self {
            x,
            rows,
            weight,
            end,
            expected,
        }
    }

    fn check(&self, gpu: &Gpu, variant: LinearVariant, finding: &str) -> Check {
        let (gpu, case) = (gpu.clone(), self.clone());
        Check {
            finding: finding.into(),
            what: if self.rows <= MATVEC_ROWS {
                "linear layers of few rows"
            } else {
                "linear layers of many rows"
            },
            is_experimental: is_experimental(variant),
            expected: self.expected.clone(),
            record: Box::new(move |program| case.record(&gpu, variant, program)),
        }
    }

    fn record(
        &self,
        gpu: &Gpu,
        variant: LinearVariant,
        program: &mut ProgramBuilder,
    ) -> Result<Activation, GpuError> {
        let Self {
            rows, weight, end, ..
        } = self;
        let x = gpu.storage_with("x", &self.x)?;
        let x = Activation::external(&x, *rows, weight.in_features);
        let bias = end.bias.as_deref().map(|it| gpu.vector("bias", it));
        let bias = bias.transpose()?;
        let shape = [OUT_FEATURES, weight.in_features];
        let (stored, scales) = (&weight.stored, &weight.scales);
        let weight = gpu.weight_matrix_with("weight", weight.format, shape, stored, scales)?;
        let layer = Linear { weight, bias };
        let y = match &end.old {
            Some(old) => {
                let old = gpu.storage_with("y", old)?;
                Activation::external(&old, *rows, OUT_FEATURES)
            }
            None => program.activation(*rows, OUT_FEATURES),
        };
        let accumulate = end.old.is_some();
        record_with(program, variant, &x, &layer, end.activate, &y, accumulate);
        Ok(y)
    }
}

/// Whether a kernel is of a kind that drivers are new to.
fn is_experimental(variant: LinearVariant) -> bool {
    matches!(variant, LinearVariant::Cooperative(_))
}

/// What follows a product.
#[derive(Clone, Default)]
struct End {
    activate: Activate,
    bias: Option<Vec<f32>>,
    /// What the result is added to.
    old: Option<Vec<f32>>,
}

impl End {
    fn full(rows: usize) -> Self {
        Self {
            activate: Activate::GeluErf,
            bias: Some(scattered(OUT_FEATURES, 4)),
            old: Some(scattered(rows * OUT_FEATURES, 5)),
        }
    }
}

/// The weight of a case.
struct Weight {
    format: WeightFormat,
    in_features: usize,
    /// As it is stored: halves, or integers in their bits.
    stored: Vec<u8>,
    scales: Vec<f16>,
    /// What that stands for, `[OUT_FEATURES, in_features]`.
    values: Vec<f32>,
}

impl Weight {
    /// Quantised values that are any of their range, with scales that differ from block to block.
    fn new(format: WeightFormat, in_features: usize) -> Self {
        let values = scattered(OUT_FEATURES * in_features, 1);
        if !format.is_quantised() {
            let halves: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
            return Self {
                format,
                in_features,
                stored: bytemuck::cast_slice(&halves).to_vec(),
                scales: Vec::new(),
                values: halves.iter().map(|half| half.to_f32()).collect(),
            };
        }
        let most = (1 << (format.bits() - 1)) as f32;
        let integers: Vec<i8> = values
            .iter()
            .map(|value| (value * most).floor() as i8)
            .collect();
        let stored = match format {
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
        let values = integers
            .iter()
            .enumerate()
            .map(|(index, &integer)| f32::from(integer) * scales[index / QUANT_BLOCK].to_f32())
            .collect();
        Self {
            format,
            in_features,
            stored,
            scales,
            values,
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
