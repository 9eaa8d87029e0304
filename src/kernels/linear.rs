//! Linear layers. Bias, activation and residual are fused. The kernels: `linear/variant.rs`; which of them is right on
//! this device: `linear/check.rs`; which is fastest for a shape: `linear/tune.rs`.

mod check;
mod cooperative;
mod cooperative_kernels;
mod passes;
mod tune;
mod variant;

use crate::gpu::{Activation, Matrix, Operand, ProgramBuilder, Vector, params};

use super::{groups, word};
use cooperative::range_of_k;
use passes::{add_ranges, range_sums, round_to_f16};

pub(crate) use check::checks;
#[cfg(test)]
pub(crate) use check::{CHECKED_ROWS, usable};
pub use cooperative::CooperativeTile;
pub(crate) use passes::{ADD_RANGES, ROUND_TO_F16};
pub use tune::{chosen, tune};
#[cfg(test)]
pub(crate) use variant::KERNELS;
pub(crate) use variant::NARROW_LANES;
pub use variant::{LinearVariant, candidates};

/// Rows up to which the matrix–vector kernels serve: they read the weights once for all of them.
pub const MATVEC_ROWS: usize = 8;

/// A linear layer's weights: `y = x · weightᵀ + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out_features, in_features]`
    pub weight: Matrix,
    /// `[out_features]`
    pub bias: Option<Vector>,
}

/// The function applied to each value of a linear layer's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activate {
    /// The value itself.
    #[default]
    Identity,
    /// `x · Φ(x)` with the error function (Hendrycks & Gimpel, 2016).
    GeluErf,
    /// GELU's tanh approximation.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

impl Activate {
    /// The value of the shaders' `ACTIVATION` constant.
    pub(super) fn constant(self) -> f64 {
        match self {
            Self::Identity => 0.0,
            Self::GeluErf => 1.0,
            Self::GeluTanh => 2.0,
            Self::Relu => 3.0,
        }
    }
}

params! {
    struct Params {
        rows: u32,
        out_features: u32,
        in_features: u32,
        y_stride: u32,
        y_offset: u32,
        bias_offset: u32,
        /// Of K, that a workgroup of `matmul_cooperative` takes.
        range: u32,
    }
}

/// `activate(x · weightᵀ + bias)`, `[rows, in]` → `[rows, out]`.
pub fn linear(
    program: &mut ProgramBuilder,
    x: &Activation,
    layer: &Linear,
    activate: Activate,
) -> Activation {
    let y = program.activation(x.rows, layer.weight.rows);
    linear_to(program, x, layer, activate, &y);
    y
}

/// [`linear`] into an activation that is there already.
pub fn linear_to(
    program: &mut ProgramBuilder,
    x: &Activation,
    layer: &Linear,
    activate: Activate,
    y: &Activation,
) {
    debug_assert_eq!((y.rows, y.columns), (x.rows, layer.weight.rows));
    record(program, x, layer, activate, y, false);
}

/// [`linear`] without activation by a chosen kernel: for measuring one against another.
pub fn linear_with(
    program: &mut ProgramBuilder,
    variant: LinearVariant,
    x: &Activation,
    layer: &Linear,
) -> Activation {
    let y = program.activation(x.rows, layer.weight.rows);
    record_with(program, variant, x, layer, Activate::Identity, &y, false);
    y
}

/// `y += x · weightᵀ + bias`: the residual add of a transformer block, in place.
pub fn linear_into(program: &mut ProgramBuilder, x: &Activation, layer: &Linear, y: &Activation) {
    debug_assert_eq!((y.rows, y.columns), (x.rows, layer.weight.rows));
    record(program, x, layer, Activate::Identity, y, true);
}

/// Records the product by the kernel that is chosen for it.
fn record(
    program: &mut ProgramBuilder,
    x: &Activation,
    layer: &Linear,
    activate: Activate,
    y: &Activation,
    accumulate: bool,
) {
    debug_assert_eq!(x.columns, layer.weight.columns);
    debug_assert!(x.columns.is_multiple_of(8));
    program.note_product(x.rows, &layer.weight);
    let variant = chosen(program.gpu(), x.rows, &layer.weight);
    record_with(program, variant, x, layer, activate, y, accumulate);
}

/// One dispatch for each part of the weight, with what the variant needs before and after it.
fn record_with(
    program: &mut ProgramBuilder,
    variant: LinearVariant,
    x: &Activation,
    layer: &Linear,
    activate: Activate,
    y: &Activation,
    accumulate: bool,
) {
    let shape = variant.shape(x.rows, layer.weight.format);
    let tile = match variant {
        LinearVariant::Cooperative(tile) => Some(tile),
        _ => None,
    };
    let range = match tile {
        Some(_) => range_of_k(x.rows, layer.weight.rows, x.columns),
        None => x.columns,
    };
    let ranges = x.columns.div_ceil(range);
    // Without a bias the binding still needs a buffer; the shader does not read it.
    let bias = layer
        .bias
        .as_ref()
        .map_or_else(|| x.operand(), |bias| Operand::from(&bias.buffer));
    let end = vec![
        ("ACTIVATION", activate.constant()),
        ("HAS_BIAS", f64::from(u8::from(layer.bias.is_some()))),
        ("ACCUMULATE", f64::from(u8::from(accumulate))),
    ];
    let x_operand = if tile.is_some_and(CooperativeTile::is_rounded) {
        round_to_f16(program, x).operand()
    } else {
        x.operand()
    };
    for part in &layer.weight.parts {
        let params = Params {
            rows: word(x.rows),
            out_features: word(part.rows),
            in_features: word(x.columns),
            y_stride: word(y.columns),
            y_offset: word(part.first_row),
            bias_offset: word(part.first_row),
            range: word(range),
        };
        let sums = (ranges > 1).then(|| range_sums(program, ranges, x.rows, part.rows));
        let result = sums.as_ref().unwrap_or(y);
        // Sums that are still to be added up have no end of their own.
        let own_end = if sums.is_some() {
            NO_END.to_vec()
        } else {
            end.clone()
        };
        program.dispatch(
            shape.kernel,
            [shape.constants.clone(), own_end].concat(),
            &params,
            vec![
                x_operand.clone(),
                Operand::from(&part.buffer),
                bias.clone(),
                result.operand(),
            ],
            [
                groups(part.rows, shape.tile_columns),
                groups(x.rows, shape.tile_rows),
                word(ranges),
            ],
        );
        if let Some(sums) = sums {
            add_ranges(program, &sums, ranges, end.clone(), params, bias.clone(), y);
        }
    }
}

/// No activation, bias or residual.
const NO_END: [(&str, f64); 3] = [("ACTIVATION", 0.0), ("HAS_BIAS", 0.0), ("ACCUMULATE", 0.0)];

/// Plain-Rust twin of [`linear`] and [`linear_into`] (`old` is the value added to), in f64.
fn reference(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    in_features: usize,
    activate: Activate,
    old: Option<&[f32]>,
) -> Vec<f32> {
    let out_features = weight.len() / in_features;
    let mut y = Vec::with_capacity(x.len() / in_features * out_features);
    for row in x.chunks(in_features) {
        for (n, w) in weight.chunks(in_features).enumerate() {
            let dot: f64 = row
                .iter()
                .zip(w)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum();
            let value = apply(activate, dot + bias.map_or(0.0, |bias| f64::from(bias[n])));
            let old = old.map_or(0.0, |old| f64::from(old[y.len()]));
            y.push((value + old) as f32);
        }
    }
    y
}

fn apply(activate: Activate, x: f64) -> f64 {
    match activate {
        Activate::Identity => x,
        Activate::Relu => x.max(0.0),
        Activate::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activate::GeluErf => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
    }
}

/// The error function by its Maclaurin series, exact to f32 for the |x| < 5 that tests use
/// (Abramowitz & Stegun 7.1.6).
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests;
