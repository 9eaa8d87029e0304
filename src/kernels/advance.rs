//! `advance.wgsl`: ends a greedy decode step on the GPU.

use crate::gpu::{Kernel, ProgramBuilder, READ, WRITE, params};

use super::{Bests, word};

pub(super) static ADVANCE: Kernel = Kernel::new::<Params>(
    "ops/advance",
    &[READ, READ, WRITE, WRITE, WRITE, WRITE, WRITE],
);

/// Buffers that [`advance`] reads and writes; see the shader for their layouts.
#[derive(Debug)]
pub struct Advance<'a> {
    /// What [`super::argmax`] found in each row.
    pub bests: &'a Bests,
    /// Each row's rules ([`super::write_row_rules`]), `[rows, rules_stride]`.
    pub rules: &'a wgpu::Buffer,
    /// Columns of `rules`.
    pub rules_stride: usize,
    /// `(sequence, position)` of each row.
    pub row_info: &'a wgpu::Buffer,
    /// `(history length, new tokens)` of each row.
    pub row_state: &'a wgpu::Buffer,
    /// The next step's input tokens.
    pub tokens: &'a wgpu::Buffer,
    /// Prompt and generated ids, `[rows, history_stride]`.
    pub history: &'a wgpu::Buffer,
    /// A counter, then `(token, log-probability)` of each step and row.
    pub chosen: &'a wgpu::Buffer,
    /// Rows.
    pub rows: usize,
    /// Columns of `history`.
    pub history_stride: usize,
}

params! {
    struct Params {
        rows: u32,
        history_stride: u32,
        rules_stride: u32,
        parts: u32,
    }
}

/// Appends each row's chosen token, moves it to its next position, ends it at an end token or its greatest length.
pub fn advance(program: &mut ProgramBuilder, inputs: &Advance) {
    program.dispatch(
        &ADVANCE,
        vec![],
        &Params {
            rows: word(inputs.rows),
            history_stride: word(inputs.history_stride),
            rules_stride: word(inputs.rules_stride),
            parts: word(inputs.bests.parts),
        },
        vec![
            inputs.bests.of_parts.clone(),
            inputs.rules.into(),
            inputs.row_info.into(),
            inputs.row_state.into(),
            inputs.tokens.into(),
            inputs.history.into(),
            inputs.chosen.into(),
        ],
        [1, 1, 1],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::GenerationOptions;
    use crate::gpu::{ActivationPool, Gpu, Operand};
    use crate::kernels::INACTIVE;
    use crate::kernels::argmax::Best;
    use crate::kernels::row_rules::rules_of;
    use crate::kernels::testing::gpus;

    fn best(token: u32, value: f32, sum: f32) -> Best {
        Best {
            token,
            value,
            sum,
            pad: 0,
        }
    }

    fn read<T: bytemuck::Pod>(gpu: &Gpu, buffer: &wgpu::Buffer, count: usize) -> Vec<T> {
        pollster::block_on(gpu.read(buffer, count)).expect("readable")
    }

    #[test]
    fn rows_go_on_end_and_stay_ended() {
        for gpu in gpus() {
            let with = |data: &[u32]| gpu.storage_with("state", data).expect("small");
            // Row 0 goes on (9 ends other rows, not this one), 1 meets an end token, 2 reaches its length, 3 had ended
            // before.
            let options = |max_new_tokens, eos_token_ids: &[u32]| GenerationOptions {
                max_new_tokens,
                eos_token_ids: eos_token_ids.to_vec(),
                suppress_tokens: vec![5],
                ..Default::default()
            };
            let (rules, rules_stride) = rules_of(&[
                options(8, &[2]),
                options(8, &[2, 9]),
                options(3, &[]),
                options(8, &[2, 9]),
            ]);
            // Each row in three parts: the best in the first, the last, the middle one; of equals the first counts.
            let low = |token| best(token, -3.0, 1.5);
            let of_parts = [
                [best(5, -1.0, 1.25), low(10), low(11)],
                [low(1), low(2), best(9, -1.0, 2.0)],
                [low(1), best(6, -1.0, 2.0), best(8, -1.0, 2.0)],
                [best(7, -1.0, 2.0), low(8), low(9)],
            ];
            let of_parts = gpu
                .storage_with("bests", of_parts.as_flattened())
                .expect("small");
            let bests = Bests {
                of_parts: Operand::from(&of_parts),
                parts: 3,
            };
            let rules = with(&rules);
            let row_info = with(&[0, 40, 1, 41, 2, 42, 3, INACTIVE]);
            let row_state = with(&[4, 0, 4, 1, 4, 2, 4, 1]);
            let tokens = with(&[0; 4]);
            let history = with(&[0; 4 * 6]);
            let chosen = with(&[0; 2 * (1 + 2 * 4)]);
            let mut program = ProgramBuilder::new(gpu, "advance");
            advance(
                &mut program,
                &Advance {
                    bests: &bests,
                    rules: &rules,
                    rules_stride,
                    row_info: &row_info,
                    row_state: &row_state,
                    tokens: &tokens,
                    history: &history,
                    chosen: &chosen,
                    rows: 4,
                    history_stride: 6,
                },
            );
            let program = program.finish(&ActivationPool::default()).expect("valid");
            program.run(gpu);
            assert_eq!(
                read::<u32>(gpu, &row_info, 8),
                [0, 41, 1, INACTIVE, 2, INACTIVE, 3, INACTIVE]
            );
            assert_eq!(read::<u32>(gpu, &row_state, 8), [5, 1, 5, 2, 5, 3, 4, 1]);
            assert_eq!(read::<u32>(gpu, &tokens, 4), [5, 9, 6, 0]);
            assert_eq!(
                read::<u32>(gpu, &history, 24)[4..12],
                [5, 0, 0, 0, 0, 0, 9, 0][..]
            );
            program.run(gpu);
            let steps: Vec<[u32; 2]> = read(gpu, &chosen, 9);
            let ids: Vec<u32> = steps[1..].iter().map(|step| step[0]).collect();
            assert_eq!(steps[0][0], 2, "two steps");
            assert_eq!(ids, [5, 9, 6, 0, 5, 0, 0, 0]);
            let log_probability = -(1.25 + 3.0 * (-2.0_f32).exp()).ln();
            assert!((f32::from_bits(steps[1][1]) - log_probability).abs() < 1e-6);
        }
    }
}
