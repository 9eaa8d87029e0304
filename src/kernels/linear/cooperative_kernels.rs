//! The texts of `matmul_cooperative`: for fragments of 16 and of 8, x as f32 and as f16, and workgroup memory of vectors and
//! of scalars.

use crate::gpu::{Kernel, READ, WRITE, WeightFormat};
use crate::kernels::weights::{F16_WEIGHTS, Q4_WEIGHTS, Q8_WEIGHTS};

use super::ACTIVATE;
use super::cooperative::CooperativeTile;
use super::passes::HALVES;

const LINEAR: &str = include_str!("../../../shaders/linear.wgsl");
const FRAGMENTS_16: &str = include_str!("../../../shaders/cooperative_16.wgsl");
const FRAGMENTS_8: &str = include_str!("../../../shaders/cooperative_8.wgsl");
const X: &str = include_str!("../../../shaders/cooperative_x.wgsl");
const X_ROUNDED: &str = include_str!("../../../shaders/cooperative_x_rounded.wgsl");
const F16: &str = include_str!("../../../shaders/cooperative_weights_f16.wgsl");
const QUANTISED: &str = include_str!("../../../shaders/cooperative_weights_quantised.wgsl");
const VECTORS: &str = include_str!("../../../shaders/cooperative_vectors.wgsl");
const SCALARS: &str = include_str!("../../../shaders/cooperative_scalars.wgsl");
const MATMUL: &str = include_str!("../../../shaders/matmul_cooperative.wgsl");

/// One kernel a weight format, in the order of [`WeightFormat::ALL`].
macro_rules! formats {
    ($name:literal, $fragments:expr, $x:expr, $tile:expr) => {
        [
            formats!($name, "", $fragments, $x, $tile, F16_WEIGHTS, F16),
            formats!($name, "_q8", $fragments, $x, $tile, Q8_WEIGHTS, QUANTISED),
            formats!($name, "_q4", $fragments, $x, $tile, Q4_WEIGHTS, QUANTISED),
        ]
    };
    ($name:literal, $format:literal, $fragments:expr, $x:expr, $tile:expr, $weights:expr, $halves:expr) => {
        Kernel {
            name: concat!("matmul_cooperative_", $name, $format),
            wgsl: &[
                $fragments, ACTIVATE, $weights, LINEAR, HALVES, $x, $halves, $tile, MATMUL,
            ],
            bindings: &[READ, READ, READ, WRITE],
        }
    };
}

pub(super) static VECTORS_16: [Kernel; 3] = formats!("16", FRAGMENTS_16, X, VECTORS);
pub(super) static VECTORS_16_ROUNDED: [Kernel; 3] =
    formats!("16_rounded", FRAGMENTS_16, X_ROUNDED, VECTORS);
pub(super) static VECTORS_8: [Kernel; 3] = formats!("8", FRAGMENTS_8, X, VECTORS);
pub(super) static VECTORS_8_ROUNDED: [Kernel; 3] =
    formats!("8_rounded", FRAGMENTS_8, X_ROUNDED, VECTORS);
pub(super) static SCALARS_8: [Kernel; 3] = formats!("8_scalars", FRAGMENTS_8, X, SCALARS);
pub(super) static SCALARS_8_ROUNDED: [Kernel; 3] =
    formats!("8_scalars_rounded", FRAGMENTS_8, X_ROUNDED, SCALARS);

/// The kernel for `tile` and weights in `format`.
pub(super) fn kernel(tile: CooperativeTile, format: WeightFormat) -> &'static Kernel {
    let kernels = match (tile.size(), tile.has_vectors(), tile.is_rounded()) {
        (16, _, false) => &VECTORS_16,
        (16, _, true) => &VECTORS_16_ROUNDED,
        (_, true, false) => &VECTORS_8,
        (_, true, true) => &VECTORS_8_ROUNDED,
        (_, false, false) => &SCALARS_8,
        (_, false, true) => &SCALARS_8_ROUNDED,
    };
    let [f16, q8, q4] = kernels;
    match format {
        WeightFormat::F16 => f16,
        WeightFormat::Q8 => q8,
        WeightFormat::Q4 => q4,
    }
}
