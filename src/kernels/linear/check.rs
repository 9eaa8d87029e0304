//! The self-checks of the linear kernels.

use std::sync::Arc;

use half::f16;

use crate::gpu::{Activation, Gpu, GpuError, ProgramBuilder, QUANT_BLOCK, WeightFormat};
use crate::kernels::select;
use crate::kernels::select::verdict::{Check, scattered};

use super::reference::reference;
use super::{
    Activate, Linear, LinearVariant, MATVEC_ROWS, candidates, cooperative, family, record_with,
};

/// Rows of the cases: one that the matrix–vector kernels take, and one for more than a tile of most others.
pub(in crate::kernels) const CHECKED_ROWS: [usize; 2] = [5, 70];
const OUT_FEATURES: usize = 75;
/// Many times the depth of any tile, and not a multiple of the deepest ones'.
const IN_FEATURES: usize = 480;
/// Enough for two ranges of K.
const MANY_IN_FEATURES: usize = 1120;

/// A case for every kernel that `gpu` offers for weights in `format`: a product with all that may follow it. Cooperative
/// matrices, which store bare products and ranges of K in their own way, have a second one.
pub(in crate::kernels) fn checks(gpu: &Gpu, format: WeightFormat) -> Vec<Check> {
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
            variants.extend(cooperative::all_variants(capabilities));
        }
        let mut seen = Vec::new();
        for variant in select::allowed(gpu, family(rows), variants) {
            let check = full.check(gpu, &variant);
            if seen.contains(check.key()) {
                continue;
            }
            seen.push(check.key().clone());
            checks.push(check);
            if variant.is_cooperative() {
                checks.push(bare.check(gpu, &variant));
            }
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

    fn check(&self, gpu: &Gpu, variant: &LinearVariant) -> Check {
        let format = self.weight.format;
        let (of_gpu, case, by) = (gpu.clone(), self.clone(), variant.clone());
        let record =
            Box::new(move |program: &mut ProgramBuilder| case.record(&of_gpu, &by, program));
        let expected = self.expected.clone();
        Check::new(gpu, family(self.rows), variant, format, expected, record)
    }

    fn record(
        &self,
        gpu: &Gpu,
        variant: &LinearVariant,
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
