//! From scores to tokens: greedy, beam search, sampling and the stop rules.
//!
//! Pure state machines: no GPU, no files. The GPU keeps the logits, applies the score processors and
//! hands over, per row, the chosen token (greedy), the top k (beams, top-k sampling) or the whole row
//! (unlimited sampling); what is here decides what happens with them. The reference is
//! transformers 5.23 `generate`; the tests replay runs of it (`weights-tools/generate_fixtures.py`).

mod beam;
mod error;
#[cfg(test)]
mod fixture_tests;
mod options;
mod options_file;
mod processors;
mod row;
mod sampling;
mod warp;

pub use beam::{BeamSearch, BeamStep};
pub use error::GenerateError;
pub use options::{
    EarlyStopping, GenerationOptions, GenerationOverrides, MAX_BEAMS, MAX_CANDIDATES,
    MAX_END_TOKENS, MAX_RUN_WORDS, MAX_STOPS, MAX_TEXTS, SequenceBias,
};
pub use options_file::passed_over;
pub use processors::{ScoreProcessors, log_softmax, top_k};
pub use row::{FinishReason, Generated, Row};
pub use sampling::{RandomStream, SampledToken, sample};
pub use warp::{Warp, WeightedToken};

/// A token and its score: a logit or a log-probability, whichever the caller works in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Token id.
    pub token: u32,
    /// Logit or log-probability after the score processors.
    pub score: f32,
}
