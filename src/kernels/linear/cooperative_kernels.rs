//! The texts of `matmul_cooperative`: for fragments of 16 and of 8, x as f32 and as f16, and workgroup memory of vectors and
//! of scalars.

use crate::gpu::{Kernel, READ, WRITE, WeightFormat};
use crate::kernels::weights::of_format;

use super::Params;
use super::cooperative::CooperativeTile;

/// One kernel a weight format. f16 weights are multiplied as they lie, others are rounded first.
macro_rules! by_format {
    ($name:literal, $size:literal, $x:literal, $tile:literal) => {
        [
            by_format!($name, "", "f16", "f16", $size, $x, $tile),
            by_format!($name, "_q8", "q8", "quantised", $size, $x, $tile),
            by_format!($name, "_q4", "q4", "quantised", $size, $x, $tile),
        ]
    };
    ($name:literal, $format:literal, $weights:literal, $halves:literal, $size:literal, $x:literal, $tile:literal) => {
        Kernel::new::<Params>("linear/matmul_cooperative", &[READ, READ, READ, WRITE]).named(
            concat!("matmul_cooperative_", $name, $format),
            &[
                ("size", $size),
                ("weights", $weights),
                ("weight_halves", $halves),
                ("x", $x),
                ("tile", $tile),
            ],
        )
    };
}

pub(super) static VECTORS_16: [Kernel; 3] = by_format!("16", "16", "x", "vectors");
pub(super) static VECTORS_16_ROUNDED: [Kernel; 3] =
    by_format!("16_rounded", "16", "x_rounded", "vectors");
pub(super) static VECTORS_8: [Kernel; 3] = by_format!("8", "8", "x", "vectors");
pub(super) static VECTORS_8_ROUNDED: [Kernel; 3] =
    by_format!("8_rounded", "8", "x_rounded", "vectors");
pub(super) static SCALARS_8: [Kernel; 3] = by_format!("8_scalars", "8", "x", "scalars");
pub(super) static SCALARS_8_ROUNDED: [Kernel; 3] =
    by_format!("8_scalars_rounded", "8", "x_rounded", "scalars");

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
    of_format(kernels, format)
}
