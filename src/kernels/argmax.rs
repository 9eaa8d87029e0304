//! `argmax.wgsl`: the most likely token of each part of each row, with what its probability needs.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE, params};

use super::{is_wide, word};

pub(super) static ARGMAX: Kernel = Kernel::new::<Params>("ops/argmax", &[READ, WRITE]);

/// What [`argmax`] finds: the best token of each part of each row, which [`super::advance`] puts together.
#[derive(Debug)]
pub struct Bests {
    /// [`Best`] `[rows, parts]`
    pub(super) of_parts: Operand,
    /// Parts of a row.
    pub(super) parts: usize,
}

/// The best token of a part of a row as the shader writes it; its log-probability within the part is `-ln(sum)`.
#[cfg(test)]
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Best {
    /// Token id, the lowest of equals.
    pub token: u32,
    /// Its logit.
    pub value: f32,
    /// `Σ exp(logit − value)` of the part.
    pub sum: f32,
    /// Nothing.
    pub pad: u32,
}

/// Columns of f32 that hold a [`Best`].
const BEST_COLUMNS: usize = 4;

/// Logits that a workgroup looks at on a GPU: 16 a thread (unmeasured). Elsewhere a row has one part.
const WIDE_PART: usize = 4096;

params! {
    struct Params {
        vocab: u32,
        part_size: u32,
        parts: u32,
    }
}

/// Finds the best token of each row of `logits` `[rows, vocabulary]`, and what its probability needs.
pub fn argmax(program: &mut ProgramBuilder, logits: &Activation) -> Bests {
    let part_size = if is_wide(program.gpu()) {
        WIDE_PART
    } else {
        logits.columns
    };
    let parts = logits.columns.div_ceil(part_size);
    let of_parts = program.activation(logits.rows, parts * BEST_COLUMNS);
    let of_parts = of_parts.operand();
    record(program, logits, part_size, of_parts.clone());
    Bests { of_parts, parts }
}

fn record(program: &mut ProgramBuilder, logits: &Activation, part_size: usize, bests: Operand) {
    let parts = logits.columns.div_ceil(part_size);
    program.dispatch(
        &ARGMAX,
        vec![],
        &Params {
            vocab: word(logits.columns),
            part_size: word(part_size),
            parts: word(parts),
        },
        vec![logits.operand(), bests],
        [word(logits.rows), word(parts), 1],
    );
}

/// Plain-Rust twin of [`argmax`], of one part.
#[cfg(test)]
fn reference(part: &[f32], first_token: usize) -> Best {
    let mut token = 0;
    for (index, &value) in part.iter().enumerate() {
        if value > part[token] {
            token = index;
        }
    }
    let sum: f64 = part.iter().map(|&v| f64::from(v - part[token]).exp()).sum();
    Best {
        token: (first_token + token) as u32,
        value: part[token],
        sum: sum as f32,
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
            for (vocab, part_size) in [
                (1, 1),
                (7, 7),
                (255, 255),
                (257, 257),
                (257, 100),
                (50_273, 50_273),
                (50_273, WIDE_PART),
            ] {
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
                let parts = vocab.div_ceil(part_size);
                let bytes = 16 * (rows * parts) as u64;
                let bests = gpu.storage("bests", bytes).expect("small");
                let mut program = ProgramBuilder::new(gpu, "argmax");
                record(&mut program, &x, part_size, Operand::from(&bests));
                program
                    .finish(&ActivationPool::default())
                    .expect("valid")
                    .run(gpu);
                let ours: Vec<Best> =
                    pollster::block_on(gpu.read(&bests, rows * parts)).expect("readable");
                for (row, ours) in logits.chunks(vocab).zip(ours.chunks(parts)) {
                    for (part, ours) in ours.iter().enumerate() {
                        let first = part * part_size;
                        let end = vocab.min(first + part_size);
                        let twin = reference(&row[first..end], first);
                        let what = format!("{vocab} part {part}");
                        assert_eq!((ours.token, ours.value), (twin.token, twin.value), "{what}");
                        let error = (ours.sum.ln() - twin.sum.ln()).abs();
                        assert!(error < 1e-4, "{what}: {ours:?} {twin:?}");
                    }
                }
            }
        }
    }
}
