//! `attention_flash`: tiles in workgroup memory and registers; any GPU.

use crate::gpu::{Kernel, kernels};
use crate::kernels::select;

use super::{AttentionVariant, BINDINGS, Kind, Params, WorkgroupBytes};

kernels! {
    static ATTENTION_FLASH: Kernel = Kernel::new::<Params>("attention/attention_flash", BINDINGS);
}

pub(super) static KIND: Kind = Kind {
    kind: select::Kind {
        name: "flash",
        kernel: "attention_flash",
        is_experimental: false,
        fits: |_| Ok(()),
    },
    variants: |_| [64, 32].map(variant).into(),
};

/// A workgroup has 32 queries, or 64, which reads keys and values half as often.
pub(super) fn variant(queries: usize) -> AttentionVariant {
    AttentionVariant {
        kind: KIND.kind,
        size: queries.to_string(),
        kernel: &ATTENTION_FLASH,
        constants: vec![
            ("QUERIES", queries as f64),
            ("WORKGROUP_SIZE", 2.0 * queries as f64),
        ],
        queries,
        workgroup_bytes: WorkgroupBytes::LEAST,
    }
}
