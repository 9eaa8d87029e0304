//! Generated texts: what captions and answers have in common.

use crate::generate::FinishReason;

/// A generated text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Text {
    /// The text, special tokens and surrounding space removed, the prompt not included.
    pub text: String,
    /// Generated token ids, the end token included.
    pub tokens: Vec<u32>,
    /// Sum of log-probabilities; for beams divided by `length ^ length_penalty`. Where tokens are banned or penalised
    /// it is by the scores after that (transformers' `compute_transition_scores` and `sequences_scores`).
    pub score: f32,
    /// Why it ended.
    pub finish: FinishReason,
}

impl Text {
    /// The first of `texts`, or an empty one.
    pub(super) fn best(texts: &[Self]) -> Self {
        texts.first().cloned().unwrap_or_default()
    }
}
