//! `matvec`: up to [`MATVEC_ROWS`] rows, sums added up in workgroup memory; any GPU.

use crate::gpu::{Capabilities, Kernel, kernels};
use crate::kernels::select::{self, invariance::Order};
use crate::kernels::weights::by_format;

use super::{BINDINGS, Kind, LinearVariant, MATVEC_ROWS, Params};

kernels! {
    static MATVEC: [Kernel; 3] = by_format!(Params, "linear", "matvec", BINDINGS);
}

pub(super) static KIND: Kind = Kind {
    kind: select::Kind {
        name: "vector",
        kernel: "matvec",
        is_experimental: false,
        fits: |_| Ok(()),
    },
    variants,
};

fn variants(_: &Capabilities, rows: usize) -> Vec<LinearVariant> {
    let variant = (rows <= MATVEC_ROWS).then(|| LinearVariant {
        kind: KIND.kind,
        size: String::new(),
        kernels: &MATVEC,
        constants: Vec::new(),
        tile: [MATVEC_ROWS, 8],
        order: Order::of("matvec"),
        is_built_for_rows: true,
        rounds_x: false,
        range_of_k: None,
    });
    variant.into_iter().collect()
}
