//! `attention_tile`: outer products in the registers of one subgroup of 8 lanes.

use crate::gpu::{Capabilities, Kernel, kernels};
use crate::kernels::select;

use super::{AttentionVariant, BINDINGS, Kind, Params, WorkgroupBytes};

kernels! {
    static ATTENTION_TILE: Kernel = Kernel::new::<Params>("attention/attention_tile", BINDINGS);
}

pub(super) static KIND: Kind = Kind {
    kind: select::Kind {
        name: "tile",
        kernel: "attention_tile",
        is_experimental: false,
        fits,
    },
    variants,
};

/// A workgroup has eight lanes: of wider subgroups most would idle.
fn fits(capabilities: &Capabilities) -> Result<(), &'static str> {
    match capabilities.subgroups {
        Some((8, 8)) => Ok(()),
        _ => Err("it needs subgroups of 8 lanes"),
    }
}

fn variants(_: &Capabilities) -> Vec<AttentionVariant> {
    vec![AttentionVariant {
        kind: KIND.kind,
        size: String::new(),
        kernel: &ATTENTION_TILE,
        constants: Vec::new(),
        queries: 32,
        workgroup_bytes: WorkgroupBytes::LEAST,
    }]
}
