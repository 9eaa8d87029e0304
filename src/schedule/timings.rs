//! How long things took.

use std::time::Duration;

/// How long the parts of the work took, of all requests together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Image encoder.
    pub vit: Duration,
    /// Q-Former and projection.
    pub qformer: Duration,
    /// Prefill, first tokens included.
    pub prefill: Duration,
    /// All further steps.
    pub decode: Duration,
    /// Decode steps, each of all sequences that were active.
    pub steps: usize,
    /// Images encoded.
    pub images: usize,
    /// Tokens generated, of all texts.
    pub tokens: usize,
}

impl std::fmt::Display for Timings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ViT {:.3} s, Q-Former {:.3} s, prefill {:.3} s, decode {:.3} s ({} steps, {:.1} ms each), {} tokens",
            self.vit.as_secs_f64(),
            self.qformer.as_secs_f64(),
            self.prefill.as_secs_f64(),
            self.decode.as_secs_f64(),
            self.steps,
            self.decode.as_secs_f64() * 1e3 / self.steps.max(1) as f64,
            self.tokens,
        )
    }
}
