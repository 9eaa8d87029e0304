//! `matmul_tile`: a tile in workgroup memory; any GPU.

use crate::gpu::{Capabilities, Kernel, kernels};
use crate::kernels::select::{self, invariance::Order};
use crate::kernels::weights::by_format;

use super::{BINDINGS, Kind, LinearVariant, MATVEC_ROWS, Params, register};

kernels! {
    static MATMUL_TILE: [Kernel; 3] = by_format!(Params, "linear", "matmul_tile", BINDINGS);
}

pub(super) static KIND: Kind = Kind {
    kind: select::Kind {
        name: "tile",
        kernel: "matmul_tile",
        is_experimental: false,
        fits: |_| Ok(()),
    },
    variants,
};

/// Sizes of the tile. Where the register tile is faster by far one of them is enough.
fn variants(capabilities: &Capabilities, rows: usize) -> Vec<LinearVariant> {
    let sizes: &[_] = match rows {
        ..=MATVEC_ROWS => &[],
        _ if register::fits(capabilities).is_ok() => &[[64, 64]],
        _ if rows <= 32 => &[[32, 32], [32, 64], [64, 64], [128, 64]],
        _ => &[[64, 64], [32, 64], [128, 64], [32, 32]],
    };
    sizes.iter().map(|&size| variant(size)).collect()
}

/// A tile of 32, 64 or 128 rows × 32 or 64 columns. Sums have one order whatever its size.
pub(super) fn variant([rows, columns]: [usize; 2]) -> LinearVariant {
    LinearVariant {
        kind: KIND.kind,
        size: format!("{rows}x{columns}"),
        kernels: &MATMUL_TILE,
        constants: vec![
            ("TILE_ROWS", rows as f64),
            ("TILE_COLUMNS", columns as f64),
            ("WORKGROUP_SIZE", 4.0 * columns as f64),
        ],
        tile: [rows, columns],
        order: Order::of("tile"),
        is_built_for_rows: false,
        rounds_x: false,
        range_of_k: None,
    }
}
