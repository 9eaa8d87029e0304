//! `matmul_register`: a tile in registers, spread by subgroup broadcasts; any number of rows, for CPUs.

use crate::gpu::{Capabilities, Kernel, kernels};
use crate::kernels::select::{self, invariance::Order};
use crate::kernels::weights::by_format;

use super::{BINDINGS, Kind, LinearVariant, MATVEC_ROWS, NARROW_LANES, Params};

kernels! {
    static MATMUL_REGISTER: [Kernel; 3] = by_format!(Params, "linear", "matmul_register", BINDINGS);
}

pub(super) static KIND: Kind = Kind {
    kind: select::Kind {
        name: "register",
        kernel: "matmul_register",
        is_experimental: false,
        fits,
    },
    variants,
};

/// For narrow subgroups alone: 32×8 sums a lane do not fit the registers of a GPU, and no kernel takes
/// longer to compile. And it hands round what eight lanes hold.
pub(super) fn fits(capabilities: &Capabilities) -> Result<(), &'static str> {
    let lanes = capabilities.fixed_subgroup_size();
    match lanes.is_some_and(|lanes| (8..=NARROW_LANES).contains(&lanes)) {
        true => Ok(()),
        false => Err("it needs subgroups of 8 to 16 lanes, all of one width"),
    }
}

fn variants(capabilities: &Capabilities, rows: usize) -> Vec<LinearVariant> {
    let lanes = capabilities.fixed_subgroup_size().into_iter();
    lanes
        .flat_map(|lanes| heights(rows).map(move |height| variant(lanes, height)))
        .collect()
}

/// `height` rows × (8 · `lanes`) columns. Sums have one order whatever the height: a row gets the same
/// bits in decode as in prefill.
fn variant(lanes: u32, height: u32) -> LinearVariant {
    LinearVariant {
        kind: KIND.kind,
        size: format!("{height}x{}", 8 * lanes),
        kernels: &MATMUL_REGISTER,
        constants: vec![
            ("ROWS", f64::from(height)),
            ("COLUMNS", 8.0),
            ("WORKGROUP_SIZE", f64::from(lanes)),
        ],
        tile: [height as usize, 8 * lanes as usize],
        order: Order::of("register"),
        is_built_for_rows: false,
        rounds_x: false,
        range_of_k: None,
    }
}

/// Heights of the tile: few, so that there are few pipelines to compile.
const HEIGHTS: [u32; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 28, 32];

/// How many heights are worth measuring.
const CHOICES: usize = 3;

/// Heights that suit `rows`, the best first: a step costs about `height + 8` (eight columns a lane are
/// unpacked whatever the height), so the best one makes `⌈rows / height⌉ · (height + 8)` smallest.
fn heights(rows: usize) -> impl Iterator<Item = u32> {
    let cost = |height: u32| rows.div_ceil(height as usize) * (height as usize + 8);
    let mut heights = HEIGHTS;
    heights.sort_by_key(|&height| cost(height));
    let count = if rows <= MATVEC_ROWS { 1 } else { CHOICES };
    heights.into_iter().take(count)
}
