//! `argmax.wgsl`: the most likely token of each row, with what its probability needs.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE};

use super::word;

pub(super) static ARGMAX: Kernel = Kernel {
    name: "argmax",
    wgsl: &[include_str!("../../shaders/argmax.wgsl")],
    bindings: &[READ, WRITE],
};

/// A row's best token as the shader writes it; its log-probability is `value - log_sum_exp`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Choice {
    /// Token id, the lowest of equals.
    pub token: u32,
    /// Its logit.
    pub value: f32,
    /// `ln Σ exp(logit)` of the row.
    pub log_sum_exp: f32,
    /// Nothing.
    pub pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    vocab: u32,
    logits_stride: u32,
    logits_offset: u32,
}

/// Writes a [`Choice`] for each row of `logits` `[rows, vocabulary]` into `choices`.
pub fn argmax(program: &mut ProgramBuilder, logits: &Activation, choices: &wgpu::Buffer) {
    program.dispatch(
        &ARGMAX,
        vec![],
        &Params {
            rows: word(logits.rows),
            vocab: word(logits.columns),
            logits_stride: word(logits.columns),
            logits_offset: 0,
        },
        vec![logits.operand(), Operand::from(choices)],
        [word(logits.rows), 1, 1],
    );
}

/// Plain-Rust twin of [`argmax`].
#[cfg(test)]
fn reference(row: &[f32]) -> Choice {
    let mut token = 0;
    for (index, &value) in row.iter().enumerate() {
        if value > row[token] {
            token = index;
        }
    }
    let sum: f64 = row.iter().map(|&v| f64::from(v - row[token]).exp()).sum();
    Choice {
        token: token as u32,
        value: row[token],
        log_sum_exp: (f64::from(row[token]) + sum.ln()) as f32,
        pad: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::ActivationPool;
    use crate::kernels::testing::{Random, gpus, upload};

    #[test]
    fn equals_its_twin_ties_and_masked_entries_included() {
        for gpu in gpus() {
            for vocab in [1, 7, 255, 257, 50_273] {
                let rows = 3;
                let mut logits: Vec<f32> = Random(vocab as u64)
                    .vec(rows * vocab)
                    .iter()
                    .map(|v| v * 9.0)
                    .collect();
                logits[0] = f32::NEG_INFINITY;
                if vocab > 7 {
                    // A tie of the greatest value: the first one wins.
                    logits[vocab + 5] = 10.0;
                    logits[vocab + 6] = 10.0;
                    logits[vocab - 1] = 11.0;
                } else {
                    logits[0] = 1.0;
                }
                let x = upload(gpu, &logits, rows, vocab);
                let choices = gpu.storage("choices", 16 * rows as u64).expect("small");
                let mut program = ProgramBuilder::new(gpu, "argmax");
                argmax(&mut program, &x, &choices);
                program
                    .finish(&ActivationPool::default())
                    .expect("valid")
                    .run(gpu);
                let ours: Vec<Choice> =
                    pollster::block_on(gpu.read(&choices, rows)).expect("readable");
                for (ours, row) in ours.iter().zip(logits.chunks(vocab)) {
                    let twin = reference(row);
                    assert_eq!(
                        (ours.token, ours.value),
                        (twin.token, twin.value),
                        "{vocab}"
                    );
                    assert!(
                        (ours.log_sum_exp - twin.log_sum_exp).abs() < 1e-4,
                        "{ours:?} {twin:?}"
                    );
                }
            }
        }
    }
}
