//! Linear layers. Bias, activation and residual are fused. One file a kernel: `tile`, `register`,
//! `cooperative` for many rows, `register`, `matvec_subgroup`, `matvec` for few.

mod check;
mod cooperative;
mod matvec;
mod matvec_subgroup;
mod passes;
mod reference;
mod register;
mod tile;
mod tune;

use crate::gpu::{
    Access, Activation, Capabilities, Constants, Gpu, Kernel, Matrix, Operand, ProgramBuilder,
    READ, Vector, WRITE, WeightFormat, params,
};

use super::select::invariance::Order;
use super::select::table::Table;
use super::select::{self, Family, Variant};
use super::weights::of_format;
use super::{groups, word};
use passes::{ADD_RANGES, ROUND_TO_F16, add_ranges, range_sums, round_to_f16};

#[cfg(test)]
pub(super) use check::CHECKED_ROWS;
pub(super) use check::checks;
pub(super) use tune::ProductKey;
pub use tune::tune;

/// Rows up to which the matrix–vector kernels serve: they read the weights once for all of them.
pub const MATVEC_ROWS: usize = 8;

/// Subgroups up to this wide are vector units of a CPU, where workgroup memory is ordinary memory and
/// staging tiles in it costs more than it saves; wider ones share weights through it.
pub(super) const NARROW_LANES: u32 = 16;

/// The kernels, those to take unmeasured first in front.
pub(super) static KINDS: [&Kind; 5] = [
    &cooperative::KIND,
    &register::KIND,
    &tile::KIND,
    &matvec_subgroup::KIND,
    &matvec::KIND,
];

/// Numbers of rows that have all the sizes there are between them.
pub(super) static SAMPLED_ROWS: [usize; 16] = [
    9, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 257, 512, 2056,
];

/// A kernel of linear layers: what a file of this folder declares.
#[derive(Debug)]
pub(super) struct Kind {
    pub kind: select::Kind,
    /// The sizes for so many rows on a device that it fits, the one to take unmeasured first; none if
    /// it is not for so many rows.
    pub variants: fn(&Capabilities, usize) -> Vec<LinearVariant>,
}

/// One way to do a product: a kernel of linear layers at one size. [`candidates`] lists those that
/// serve.
#[derive(Debug, Clone)]
pub struct LinearVariant {
    kind: select::Kind,
    /// The rest of its name.
    size: String,
    kernels: &'static [Kernel; 3],
    constants: Constants,
    /// Rows and columns of the result that a workgroup computes.
    tile: [usize; 2],
    order: Order,
    /// Whether the kernel is built for the number of rows: its constant `ROWS`.
    is_built_for_rows: bool,
    /// Whether x is rounded to f16 by a dispatch of its own, before the product.
    rounds_x: bool,
    /// How much of K a workgroup takes, by rows and the weight's shape; `None`: all of it.
    range_of_k: Option<fn(usize, usize, usize) -> usize>,
}

impl LinearVariant {
    /// Whether products run on cooperative matrices.
    #[must_use]
    pub fn is_cooperative(&self) -> bool {
        self.kind.name == cooperative::KIND.kind.name
    }

    /// The constants for a product of `rows` rows.
    fn constants(&self, rows: usize) -> Constants {
        let mut constants = self.constants.clone();
        if self.is_built_for_rows {
            constants.push(("ROWS", rows.next_power_of_two() as f64));
        }
        constants
    }

    /// The kernel and its constants, but for the end of a sum: for tests that compile them.
    #[cfg(test)]
    pub(super) fn build(&self, rows: usize, format: WeightFormat) -> (&'static Kernel, Constants) {
        (of_format(self.kernels, format), self.constants(rows))
    }

    /// Whether it may stand in for `other` in a race.
    pub(super) fn may_replace(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl std::fmt::Display for LinearVariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(format!("{} {}", self.kind.name, self.size).trim_end())
    }
}

impl Variant for LinearVariant {
    fn kind(&self) -> select::Kind {
        self.kind
    }

    fn kernels(&self, format: WeightFormat) -> Vec<&'static Kernel> {
        let mut kernels = vec![of_format(self.kernels, format)];
        if self.range_of_k.is_some() {
            kernels.extend([&ADD_RANGES, &ROUND_TO_F16]);
        }
        kernels
    }

    fn size(&self) -> &Constants {
        &self.constants
    }
}

/// The variants that can multiply `rows` rows on a device, the one to take unmeasured first.
#[must_use]
pub fn candidates(capabilities: &Capabilities, rows: usize) -> Vec<LinearVariant> {
    let fitting = KINDS
        .iter()
        .filter(|it| (it.kind.fits)(capabilities).is_ok());
    fitting
        .flat_map(|it| (it.variants)(capabilities, rows))
        .collect()
}

fn family(rows: usize) -> Family {
    match rows {
        ..=MATVEC_ROWS => Family::Matvec,
        _ => Family::Matmul,
    }
}

/// The variants for `rows` rows and weights in `format` that may serve, the one to take unmeasured
/// first.
pub(super) fn usable(gpu: &Gpu, rows: usize, format: WeightFormat) -> Vec<LinearVariant> {
    let candidates = candidates(gpu.capabilities(), rows);
    select::usable(gpu, family(rows), candidates, format)
}

/// The variant for `rows` rows times a weight: the measured one, or the first that is right.
#[must_use]
pub fn chosen(gpu: &Gpu, rows: usize, weight: &Matrix) -> LinearVariant {
    let product = [rows, weight.rows, weight.columns];
    Table::of(gpu).chosen(product, weight.format, || tune::fastest(gpu, rows, weight))
}

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

/// The bindings of all kernels: x, weight, bias, y.
const BINDINGS: &[Access] = &[READ, READ, READ, WRITE];

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

/// [`linear`] without activation by a variant of one's choice: for measuring one against another.
pub fn linear_with(
    program: &mut ProgramBuilder,
    variant: &LinearVariant,
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

/// Records the product by the variant that is chosen for it.
fn record(
    program: &mut ProgramBuilder,
    x: &Activation,
    layer: &Linear,
    activate: Activate,
    y: &Activation,
    accumulate: bool,
) {
    let weight = &layer.weight;
    debug_assert_eq!(x.columns, weight.columns);
    debug_assert!(x.columns.is_multiple_of(8));
    program.note_product(x.rows, weight);
    let variant = chosen(program.gpu(), x.rows, weight);
    if program.will_run() {
        let [rows, columns] = [weight.rows, weight.columns];
        let product = format!("product {}x{rows}x{columns} {}", x.rows, weight.format);
        let kernel = of_format(variant.kernels, weight.format).name;
        Table::of(program.gpu()).tell(product, kernel, &variant.to_string());
    }
    record_with(program, &variant, x, layer, activate, y, accumulate);
}

/// One dispatch for each part of the weight, with what the variant needs before and after it.
fn record_with(
    program: &mut ProgramBuilder,
    variant: &LinearVariant,
    x: &Activation,
    layer: &Linear,
    activate: Activate,
    y: &Activation,
    accumulate: bool,
) {
    let range = variant.range_of_k.map_or(x.columns, |range_of_k| {
        range_of_k(x.rows, layer.weight.rows, x.columns)
    });
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
    let x_operand = if variant.rounds_x {
        round_to_f16(program, x).operand()
    } else {
        x.operand()
    };
    let [tile_rows, tile_columns] = variant.tile;
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
            of_format(variant.kernels, layer.weight.format),
            [variant.constants(x.rows), own_end].concat(),
            &params,
            vec![
                x_operand.clone(),
                Operand::from(&part.buffer),
                bias.clone(),
                result.operand(),
            ],
            [
                groups(part.rows, tile_columns),
                groups(x.rows, tile_rows),
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

#[cfg(test)]
mod tests;
