//! Linear layers: `matmul_tile.wgsl`, `matmul_register.wgsl` for many rows, `matvec.wgsl`,
//! `matvec_subgroup.wgsl` for up to eight. Bias, activation and residual are fused.

use crate::gpu::{
    Activation, Capabilities, Kernel, Matrix, Operand, ProgramBuilder, READ, Vector, WRITE,
};

use super::{groups, word};

/// The activation functions, put before the kernels that have one.
pub(super) const ACTIVATE: &str = include_str!("../../shaders/activate.wgsl");

/// Parameters, bindings and the end of a sum, put before each of the kernels.
const LINEAR: &str = include_str!("../../shaders/linear.wgsl");

static MATMUL_TILE: Kernel = Kernel {
    name: "matmul_tile",
    wgsl: &[
        ACTIVATE,
        LINEAR,
        include_str!("../../shaders/matmul_tile.wgsl"),
    ],
    bindings: &[READ, READ, READ, WRITE],
};

static MATMUL_REGISTER: Kernel = Kernel {
    name: "matmul_register",
    wgsl: &[
        ACTIVATE,
        LINEAR,
        include_str!("../../shaders/matmul_register.wgsl"),
    ],
    bindings: &[READ, READ, READ, WRITE],
};

static MATVEC: Kernel = Kernel {
    name: "matvec",
    wgsl: &[ACTIVATE, LINEAR, include_str!("../../shaders/matvec.wgsl")],
    bindings: &[READ, READ, READ, WRITE],
};

static MATVEC_SUBGROUP: Kernel = Kernel {
    name: "matvec_subgroup",
    wgsl: &[
        ACTIVATE,
        LINEAR,
        include_str!("../../shaders/matvec_subgroup.wgsl"),
    ],
    bindings: &[READ, READ, READ, WRITE],
};

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

/// Kernels for many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatmulVariant {
    /// A 64×64 tile in workgroup memory: any GPU.
    Tile,
    /// Up to 32 rows × (8 · lanes) columns in registers, spread by subgroup broadcasts.
    Register {
        /// Lanes a subgroup.
        lanes: u32,
    },
}

/// Kernels for up to [`MATVEC_ROWS`] rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatvecVariant {
    /// Reduction in workgroup memory: any GPU.
    Shared,
    /// Reduction by subgroup operations.
    Subgroup {
        /// Lanes a subgroup.
        lanes: u32,
    },
    /// The matmul kernel with as many rows as there are: a row gets the same bits in decode as in prefill.
    Register {
        /// Lanes a subgroup.
        lanes: u32,
    },
}

/// Subgroups up to this wide are vector units of a CPU, where workgroup memory is ordinary memory and staging tiles in
/// it costs more than it saves; wider ones share weights through it.
const NARROW_LANES: u32 = 16;

/// The matmul kernel for a device.
#[must_use]
pub fn matmul_variant(capabilities: &Capabilities) -> MatmulVariant {
    match capabilities.fixed_subgroup_size() {
        Some(lanes) if lanes <= NARROW_LANES => MatmulVariant::Register { lanes },
        _ => MatmulVariant::Tile,
    }
}

/// The matrix–vector kernel for a device.
#[must_use]
pub fn matvec_variant(capabilities: &Capabilities) -> MatvecVariant {
    match capabilities.fixed_subgroup_size() {
        None => MatvecVariant::Shared,
        Some(lanes) if lanes <= NARROW_LANES => MatvecVariant::Register { lanes },
        Some(lanes) => MatvecVariant::Subgroup { lanes },
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    out_features: u32,
    in_features: u32,
    y_stride: u32,
    y_offset: u32,
    bias_offset: u32,
    pad: [u32; 2],
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
pub fn matmul_with(
    program: &mut ProgramBuilder,
    variant: MatmulVariant,
    x: &Activation,
    layer: &Linear,
) -> Activation {
    let y = program.activation(x.rows, layer.weight.rows);
    let shape = matmul_shape(variant, x.rows);
    record_with(program, &shape, x, layer, Activate::Identity, &y, false);
    y
}

/// [`matmul_with`] for up to [`MATVEC_ROWS`] rows.
pub fn matvec_with(
    program: &mut ProgramBuilder,
    variant: MatvecVariant,
    x: &Activation,
    layer: &Linear,
) -> Activation {
    debug_assert!(x.rows <= MATVEC_ROWS);
    let y = program.activation(x.rows, layer.weight.rows);
    let shape = matvec_shape(variant, x.rows);
    record_with(program, &shape, x, layer, Activate::Identity, &y, false);
    y
}

/// `y += x · weightᵀ + bias`: the residual add of a transformer block, in place.
pub fn linear_into(program: &mut ProgramBuilder, x: &Activation, layer: &Linear, y: &Activation) {
    debug_assert_eq!((y.rows, y.columns), (x.rows, layer.weight.rows));
    record(program, x, layer, Activate::Identity, y, true);
}

/// One dispatch for each part of the weight.
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
    let capabilities = program.gpu().capabilities();
    let shape = if x.rows <= MATVEC_ROWS {
        matvec_shape(matvec_variant(capabilities), x.rows)
    } else {
        matmul_shape(matmul_variant(capabilities), x.rows)
    };
    record_with(program, &shape, x, layer, activate, y, accumulate);
}

/// A kernel and how its grid covers the result.
struct Shape {
    kernel: &'static Kernel,
    constants: Vec<(&'static str, f64)>,
    tile_rows: usize,
    tile_columns: usize,
}

fn matmul_shape(variant: MatmulVariant, rows: usize) -> Shape {
    match variant {
        MatmulVariant::Tile => Shape {
            kernel: &MATMUL_TILE,
            constants: vec![],
            tile_rows: 64,
            tile_columns: 64,
        },
        MatmulVariant::Register { lanes } => register_shape(lanes, rows),
    }
}

fn matvec_shape(variant: MatvecVariant, rows: usize) -> Shape {
    let row_constant = ("ROWS", rows.next_power_of_two() as f64);
    match variant {
        MatvecVariant::Shared => Shape {
            kernel: &MATVEC,
            constants: vec![row_constant],
            tile_rows: MATVEC_ROWS,
            tile_columns: 8,
        },
        MatvecVariant::Subgroup { lanes } => Shape {
            kernel: &MATVEC_SUBGROUP,
            constants: vec![row_constant, ("WORKGROUP_SIZE", f64::from(lanes))],
            tile_rows: MATVEC_ROWS,
            tile_columns: 8,
        },
        MatvecVariant::Register { lanes } => register_shape(lanes, rows),
    }
}

/// Heights of the register tile: few, so that there are few pipelines to compile.
const REGISTER_ROWS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 28, 32];

/// The register tile whose height suits `rows`: a step costs about `height + 8` (eight columns a lane are unpacked
/// whatever the height), so the best one makes `⌈rows / height⌉ · (height + 8)` smallest.
fn register_shape(lanes: u32, rows: usize) -> Shape {
    let cost = |height: usize| rows.div_ceil(height) * (height + 8);
    let height = REGISTER_ROWS
        .into_iter()
        .min_by_key(|&height| cost(height))
        .unwrap_or(1);
    Shape {
        kernel: &MATMUL_REGISTER,
        constants: vec![
            ("ROWS", height as f64),
            ("COLUMNS", 8.0),
            ("WORKGROUP_SIZE", f64::from(lanes)),
        ],
        tile_rows: height,
        tile_columns: 8 * lanes as usize,
    }
}

fn record_with(
    program: &mut ProgramBuilder,
    shape: &Shape,
    x: &Activation,
    layer: &Linear,
    activate: Activate,
    y: &Activation,
    accumulate: bool,
) {
    for part in &layer.weight.parts {
        let mut constants = shape.constants.clone();
        constants.extend([
            ("ACTIVATION", activate.constant()),
            ("HAS_BIAS", f64::from(u8::from(layer.bias.is_some()))),
            ("ACCUMULATE", f64::from(u8::from(accumulate))),
        ]);
        // Without a bias the binding still needs a buffer; the shader does not read it.
        let bias = layer
            .bias
            .as_ref()
            .map_or_else(|| x.operand(), |bias| Operand::from(&bias.buffer));
        program.dispatch(
            shape.kernel,
            constants,
            &Params {
                rows: word(x.rows),
                out_features: word(part.rows),
                in_features: word(x.columns),
                y_stride: word(y.columns),
                y_offset: word(part.first_row),
                bias_offset: word(part.first_row),
                pad: [0; 2],
            },
            vec![x.operand(), Operand::from(&part.buffer), bias, y.operand()],
            [
                groups(part.rows, shape.tile_columns),
                groups(x.rows, shape.tile_rows),
                1,
            ],
        );
    }
}

/// Plain-Rust twin of [`linear`] and [`linear_into`] (`old` is the value added to), in f64.
#[cfg(test)]
fn reference(
    x: &[f32],
    weight: &[half::f16],
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
                .map(|(&a, b)| f64::from(a) * b.to_f64())
                .sum();
            let value = apply(activate, dot + bias.map_or(0.0, |bias| f64::from(bias[n])));
            let old = old.map_or(0.0, |old| f64::from(old[y.len()]));
            y.push((value + old) as f32);
        }
    }
    y
}

#[cfg(test)]
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
#[cfg(test)]
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
