//! `matvec_subgroup`: up to [`MATVEC_ROWS`] rows, sums added up by subgroup operations.

use crate::gpu::{Capabilities, Kernel, kernels};
use crate::kernels::select::{self, invariance::Order};
use crate::kernels::weights::by_format;

use super::{BINDINGS, Kind, LinearVariant, MATVEC_ROWS, NARROW_LANES, Params};

kernels! {
    static MATVEC_SUBGROUP: [Kernel; 3] = by_format!(Params, "linear", "matvec_subgroup", BINDINGS);
}

pub(super) static KIND: Kind = Kind {
    kind: select::Kind {
        name: "vector_subgroup",
        kernel: "matvec_subgroup",
        is_experimental: false,
        fits,
    },
    variants,
};

fn fits(capabilities: &Capabilities) -> Result<(), &'static str> {
    match capabilities.subgroups {
        Some((least, most)) if least == most || least > NARROW_LANES => Ok(()),
        _ => Err("it needs subgroups, all of one width or all wider than 16 lanes"),
    }
}

/// Subgroups that share the columns of a product, and how many columns those are; the one to take
/// unmeasured first. With one subgroup there are too few loads under way on a large GPU; four columns
/// double the subgroups, and halve the registers where there are many rows.
const SPLITS: [(u32, u32); 6] = [(4, 8), (2, 8), (8, 8), (1, 8), (4, 4), (2, 4)];

/// The same where the driver chooses how wide subgroups are: workgroups in the widest subgroup, whose
/// columns all of its subgroups share, however many they are.
const WORKGROUPS: [(u32, u32); 4] = [(1, 8), (2, 8), (4, 8), (1, 4)];

fn variants(capabilities: &Capabilities, rows: usize) -> Vec<LinearVariant> {
    let Some((least, lanes)) = capabilities.subgroups.filter(|_| rows <= MATVEC_ROWS) else {
        return Vec::new();
    };
    let sizes: Vec<(u32, u32, u32)> = if least < lanes {
        let workgroups = WORKGROUPS.map(|(times, columns)| (times * lanes, 0, columns));
        workgroups.into()
    } else if lanes <= NARROW_LANES {
        vec![(lanes, 1, 8)]
    } else {
        SPLITS
            .map(|(splits, columns)| (lanes, splits, columns))
            .into()
    };
    let sizes = sizes.into_iter();
    sizes
        .filter(|(lanes, splits, _)| lanes * splits.max(&1) <= capabilities.invocations)
        .map(|(lanes, splits, columns)| variant(lanes, splits, columns))
        .collect()
}

/// `splits` subgroups of `lanes` lanes share `columns` columns (8 or 4), each with its slice of K.
/// Without a number of splits all subgroups of a workgroup, which has `lanes` lanes, share them.
///
/// How many slices of K there are does change the order of sums: one choice serves all rows.
pub(super) fn variant(lanes: u32, splits: u32, columns: u32) -> LinearVariant {
    let mut size = lanes.to_string();
    match splits {
        0 => size.push_str(" split"),
        1 => {}
        _ => size.push_str(&format!(" split {splits}")),
    }
    if columns != 8 {
        size.push_str(&format!(" {columns} columns"));
    }
    LinearVariant {
        kind: KIND.kind,
        size,
        kernels: &MATVEC_SUBGROUP,
        constants: vec![
            ("WORKGROUP_SIZE", f64::from(lanes * splits.max(1))),
            ("SPLITS", f64::from(splits)),
            ("COLUMNS", f64::from(columns)),
        ],
        tile: [MATVEC_ROWS, columns as usize],
        order: Order::of("matvec_subgroup"),
        is_built_for_rows: true,
        rounds_x: false,
        range_of_k: None,
    }
}
