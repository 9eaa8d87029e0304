//! `process_logits.wgsl`: transformers' score processors, from the history on the device.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE, kernels, params};

use crate::kernels::word;

kernels! {
    static PROCESS_LOGITS: Kernel =
        Kernel::new::<Params>("ops/process_logits", &[WRITE, READ, READ, READ]);
}

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
    /// Each row's rules ([`super::RowRules`]), `[rows, rules_stride]`.
    pub rules: &'a wgpu::Buffer,
    /// Columns of `rules`.
    pub rules_stride: usize,
}

params! {
    struct Params {
        vocab: u32,
        scores_stride: u32,
        history_stride: u32,
        rules_stride: u32,
    }
}

/// Records the processors.
pub fn process_logits(program: &mut ProgramBuilder, inputs: &ProcessLogits) {
    let scores = inputs.scores;
    program.dispatch(
        &PROCESS_LOGITS,
        vec![],
        &Params {
            vocab: word(scores.columns),
            scores_stride: word(scores.columns),
            history_stride: word(inputs.history_stride),
            rules_stride: word(inputs.rules_stride),
        },
        vec![
            scores.operand(),
            Operand::from(inputs.history),
            Operand::from(inputs.row_state),
            Operand::from(inputs.rules),
        ],
        [word(scores.rows), 1, 1],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{GenerationOptions, ScoreProcessors, SequenceBias};
    use crate::kernels::ops::row_rules::rows_of;
    use crate::kernels::testing::{Random, gpus, run, upload};

    fn options(penalty: f64, ngram: usize, min_new_tokens: usize) -> GenerationOptions {
        GenerationOptions {
            repetition_penalty: penalty,
            no_repeat_ngram_size: ngram,
            min_new_tokens,
            eos_token_ids: vec![2, 299],
            suppress_tokens: vec![17; ngram],
            ..Default::default()
        }
    }

    #[test]
    fn equals_the_processors_of_generate_row_by_row() {
        // Each row by its own rules, at four stages of a text.
        let rules: Vec<_> = [
            options(1.15, 0, 0),
            options(1.0, 2, 0),
            options(1.0, 0, 4),
            options(0.8, 3, 3),
            options(1.3, 1, 9),
            options(1.0, 0, 0),
            GenerationOptions {
                begin_suppress_tokens: vec![1, 200],
                sequence_bias: (0..40)
                    .map(|run| SequenceBias {
                        tokens: (0..=run % 4).map(|token| (run + token) % 7).collect(),
                        bias: run as f32 - 20.5,
                    })
                    .collect(),
                bad_words_ids: (0..9)
                    .map(|run| (0..=run % 3).map(|token| (run * 3 + token) % 8).collect())
                    .collect(),
                ..options(1.2, 2, 2)
            },
            GenerationOptions {
                forced_bos_token_id: Some(9),
                forced_eos_token_ids: vec![2, 299],
                begin_suppress_tokens: vec![3],
                max_new_tokens: 4,
                ..options(1.0, 3, 0)
            },
            GenerationOptions {
                forced_bos_token_id: Some(9),
                forced_eos_token_ids: vec![5],
                max_new_tokens: 1,
                ..options(1.0, 0, 0)
            },
        ]
        .iter()
        .flat_map(|options| vec![options.clone(); 4])
        .collect();
        let (rows, vocab, stride) = (rules.len(), 300, 90);
        let state: Vec<[u32; 2]> = [[0, 0], [7, 1], [80, 3], [90, 4]].repeat(rows / 4);
        let (words, rules_stride) = rows_of(&rules);
        for gpu in gpus() {
            let mut random = Random(3);
            let scores: Vec<f32> = random.vec(rows * vocab).iter().map(|v| v * 5.0).collect();
            // Few distinct ids, so that runs do repeat; one is beyond the vocabulary, as an image token may be.
            let mut history: Vec<u32> =
                (0..rows * stride).map(|_| random.below(7) as u32).collect();
            history[stride] = u32::MAX;
            let x = upload(gpu, &scores, rows, vocab);
            let history_buffer = gpu.storage_with("history", &history).expect("small");
            let row_state = gpu.storage_with("row_state", &state).expect("small");
            let rules_buffer = gpu.storage_with("rules", &words).expect("small");
            let ours = run(gpu, |program| {
                let inputs = ProcessLogits {
                    scores: &x,
                    history: &history_buffer,
                    history_stride: stride,
                    row_state: &row_state,
                    rules: &rules_buffer,
                    rules_stride,
                };
                process_logits(program, &inputs);
                x.clone()
            });
            for (row, options) in rules.iter().enumerate() {
                let mut expected = scores[row * vocab..][..vocab].to_vec();
                let [length, new] = state[row];
                let said = &history[row * stride..][..length as usize];
                let twin = ScoreProcessors::from_options(options);
                twin.apply(&mut expected, said, new as usize);
                let ours = &ours[row * vocab..][..vocab];
                for (token, (a, b)) in ours.iter().zip(&expected).enumerate() {
                    let equal = (a - b).abs() <= 1e-6 * b.abs().max(1.0);
                    let masked = *b == f32::NEG_INFINITY && *a <= -3.0e38;
                    assert!(equal || masked, "row {row} token {token}: {a} {b}");
                }
            }
        }
    }
}
