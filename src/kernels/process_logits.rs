//! `process_logits.wgsl`: transformers' score processors, from the history on the device.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE};

use super::word;

static PROCESS_LOGITS: Kernel = Kernel {
    name: "process_logits",
    wgsl: &[include_str!("../../shaders/process_logits.wgsl")],
    bindings: &[WRITE, READ, READ, READ],
};

/// Inputs of [`process_logits`].
#[derive(Debug)]
pub struct ProcessLogits<'a> {
    /// Scores changed in place, `[rows, vocabulary]`: logits, or log-probabilities for beams.
    pub scores: &'a Activation,
    /// Ids said so far, u32 `[rows, history_stride]`.
    pub history: &'a wgpu::Buffer,
    /// Columns of `history`.
    pub history_stride: usize,
    /// `(history length, new tokens)` of each row, u32.
    pub row_state: &'a wgpu::Buffer,
    /// Factor on the scores of tokens in the history; 1 is off.
    pub repetition_penalty: f32,
    /// Length of the runs that may not repeat; 0 is off.
    pub no_repeat_ngram: usize,
    /// Tokens masked while a row has fewer new tokens than `min_new_tokens`.
    pub banned: &'a [u32],
    /// See `banned`.
    pub min_new_tokens: usize,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    vocab: u32,
    scores_stride: u32,
    history_stride: u32,
    penalty: f32,
    ngram: u32,
    min_new_tokens: u32,
    banned_count: u32,
}

/// Records the processors.
pub fn process_logits(program: &mut ProgramBuilder, inputs: &ProcessLogits) {
    let scores = inputs.scores;
    let banned = match program.gpu().storage_with("banned tokens", inputs.banned) {
        Ok(buffer) => buffer,
        Err(error) => return program.fail(error),
    };
    program.dispatch(
        &PROCESS_LOGITS,
        vec![],
        &Params {
            rows: word(scores.rows),
            vocab: word(scores.columns),
            scores_stride: word(scores.columns),
            history_stride: word(inputs.history_stride),
            penalty: inputs.repetition_penalty,
            ngram: word(inputs.no_repeat_ngram),
            min_new_tokens: u32::try_from(inputs.min_new_tokens).unwrap_or(u32::MAX),
            banned_count: word(inputs.banned.len()),
        },
        vec![
            scores.operand(),
            Operand::from(inputs.history),
            Operand::from(inputs.row_state),
            Operand::from(&banned),
        ],
        [word(scores.rows), 1, 1],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::ScoreProcessors;
    use crate::kernels::testing::{Random, gpus, run, upload};

    #[test]
    fn equals_the_processors_of_generate() {
        for gpu in gpus() {
            for (penalty, ngram, min_new_tokens) in [
                (1.15, 0, 0),
                (1.0, 2, 0),
                (1.0, 0, 4),
                (0.8, 3, 3),
                (1.3, 1, 9),
            ] {
                let (rows, vocab, stride) = (3, 300, 90);
                let mut random = Random(ngram as u64);
                let scores: Vec<f32> = random.vec(rows * vocab).iter().map(|v| v * 5.0).collect();
                // Few distinct ids, so that runs do repeat; one is beyond the vocabulary, as an image token may be.
                let mut history: Vec<u32> =
                    (0..rows * stride).map(|_| random.below(7) as u32).collect();
                history[stride] = u32::MAX;
                let state = [[0, 0], [80, 3], [90, 4]];
                let banned = [2, 299];
                let x = upload(gpu, &scores, rows, vocab);
                let history_buffer = gpu.storage_with("history", &history).expect("small");
                let row_state = gpu.storage_with("row_state", &state).expect("small");
                let ours = run(gpu, |program| {
                    let inputs = ProcessLogits {
                        scores: &x,
                        history: &history_buffer,
                        history_stride: stride,
                        row_state: &row_state,
                        repetition_penalty: penalty,
                        no_repeat_ngram: ngram,
                        banned: &banned,
                        min_new_tokens,
                    };
                    process_logits(program, &inputs);
                    x.clone()
                });
                let twin = ScoreProcessors {
                    repetition_penalty: penalty,
                    no_repeat_ngram_size: ngram,
                    min_new_tokens,
                    eos_token_ids: banned.to_vec(),
                    suppress_tokens: vec![],
                };
                for row in 0..rows {
                    let mut expected = scores[row * vocab..][..vocab].to_vec();
                    let [length, new] = state[row];
                    let said = &history[row * stride..][..length as usize];
                    twin.apply(&mut expected, said, new as usize);
                    for (token, (a, b)) in ours[row * vocab..][..vocab]
                        .iter()
                        .zip(&expected)
                        .enumerate()
                    {
                        let equal = (a - b).abs() <= 1e-6 * b.abs().max(1.0);
                        let masked = *b == f32::NEG_INFINITY && *a <= -3.0e38;
                        assert!(equal || masked, "row {row} token {token}: {a} {b}");
                    }
                }
            }
        }
    }
}
