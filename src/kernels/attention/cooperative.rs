//! `attention_cooperative`: fragments on cooperative matrices, everything rounded to f16.

use crate::gpu::{Capabilities, Kernel, kernels};
use crate::kernels::select;

use super::{AttentionVariant, BINDINGS, Heads, Kind, NARROW_LANES, Params, WorkgroupBytes};

const KERNEL: Kernel = Kernel::new::<Params>("attention/attention_cooperative", BINDINGS);

kernels! {
    static COOPERATIVE_16: Kernel = KERNEL.named("attention_cooperative_16", &[("size", "16")]);
    static COOPERATIVE_8: Kernel = KERNEL.named("attention_cooperative_8", &[("size", "8")]);
}

pub(super) static KIND: Kind = Kind {
    kind: select::Kind {
        name: "cooperative",
        kernel: "attention_cooperative",
        is_experimental: true,
        fits,
    },
    variants: sizes,
};

fn fits(capabilities: &Capabilities) -> Result<(), &'static str> {
    let lanes = capabilities.fixed_subgroup_size();
    if sizes(capabilities).is_empty() {
        Err(
            "it needs cooperative matrices of f16 into f32, square, of 16 or 8, and subgroups of one width",
        )
    } else if lanes.is_some_and(|lanes| lanes <= NARROW_LANES) {
        Err("it needs subgroups of more than 16 lanes")
    } else {
        Ok(())
    }
}

/// Four or two subgroups, each with as many queries as a fragment has rows.
pub(super) fn sizes(capabilities: &Capabilities) -> Vec<AttentionVariant> {
    let (Some(size), Some(lanes)) = (
        capabilities.cooperative_size(),
        capabilities.fixed_subgroup_size(),
    ) else {
        return Vec::new();
    };
    let smallest = Heads { count: 1, dim: 4 };
    [4, 2]
        .into_iter()
        .filter(|_| lanes.is_multiple_of(size))
        .map(|subgroups| variant(size, lanes, subgroups))
        .filter(|variant| variant.suits_memory(capabilities, smallest))
        .collect()
}

fn variant(size: u32, lanes: u32, subgroups: u32) -> AttentionVariant {
    let queries = size * subgroups;
    AttentionVariant {
        kind: KIND.kind,
        size: format!("{size} x {subgroups}"),
        kernel: match size {
            16 => &COOPERATIVE_16,
            _ => &COOPERATIVE_8,
        },
        constants: vec![
            ("LANES", f64::from(lanes)),
            ("SUBGROUPS", f64::from(subgroups)),
            ("WORKGROUP_SIZE", f64::from(lanes * subgroups)),
        ],
        queries: queries as usize,
        workgroup_bytes: WorkgroupBytes {
            fixed: 16 * (queries + 64) + queries * (228 + 8 * lanes / size),
            per_value: 2 * (queries + 64),
            padded_to: size,
        },
    }
}
