//! The dispatches that some products on cooperative matrices have before and after them.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE, params};
use crate::kernels::{groups, word};

use super::Params;

pub(crate) static ROUND_TO_F16: Kernel =
    Kernel::new::<RoundParams>("linear/round_to_f16", &[READ, WRITE]);

pub(crate) static ADD_RANGES: Kernel =
    Kernel::new::<Params>("linear/add_ranges", &[READ, READ, READ, WRITE]);

/// Workgroups of `round_to_f16` at most.
const MOST_GROUPS: usize = 4096;

params! {
    struct RoundParams {
        eights: u32,
    }
}

/// `x` `[rows, columns]` as f16, two values in the place of one: an activation that only `matmul_cooperative` reads.
pub(super) fn round_to_f16(program: &mut ProgramBuilder, x: &Activation) -> Activation {
    debug_assert!(x.columns.is_multiple_of(8));
    let halves = program.activation(x.rows, x.columns / 2);
    let eights = x.rows * x.columns / 8;
    program.dispatch(
        &ROUND_TO_F16,
        Vec::new(),
        &RoundParams {
            eights: word(eights),
        },
        vec![x.operand(), halves.operand()],
        [groups(eights, 256).min(word(MOST_GROUPS)), 1, 1],
    );
    halves
}

/// What `ranges` workgroups along K leave of each result, to be added up by [`add_ranges`]:
/// `[ranges · rows, out_features rounded up to a multiple of four]`.
pub(super) fn range_sums(
    program: &mut ProgramBuilder,
    ranges: usize,
    rows: usize,
    out_features: usize,
) -> Activation {
    program.activation(ranges * rows, out_features.next_multiple_of(4))
}

/// Adds up `sums` of `ranges` ranges and ends them as `params` and `constants` of the product say.
pub(super) fn add_ranges(
    program: &mut ProgramBuilder,
    sums: &Activation,
    ranges: usize,
    constants: Vec<(&'static str, f64)>,
    params: Params,
    bias: Operand,
    y: &Activation,
) {
    let columns = params.out_features as usize;
    program.dispatch(
        &ADD_RANGES,
        constants,
        &Params {
            in_features: word(ranges),
            ..params
        },
        vec![sums.operand(), sums.operand(), bias, y.operand()],
        [groups(columns.div_ceil(4), 64), params.rows, 1],
    );
}
