//! How long things took.

use std::time::Duration;

use crate::platform::Instant;

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

impl Timings {
    /// What has been added since these were `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            vit: self.vit - earlier.vit,
            qformer: self.qformer - earlier.qformer,
            prefill: self.prefill - earlier.prefill,
            decode: self.decode - earlier.decode,
            steps: self.steps - earlier.steps,
            images: self.images - earlier.images,
            tokens: self.tokens - earlier.tokens,
        }
    }
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

/// How long a request took from its submission on: `queue + encode + prefill` is `first_token`, and `first_token + decode`
/// is all of it. Work done for several requests together counts for each of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestTimings {
    /// Waiting: for its image to be read and prepared, and for a place in the batch.
    pub queue: Duration,
    /// The image encoder and the Q-Former; nothing where the image was encoded already.
    pub encode: Duration,
    /// The prompt, and the first token of every text.
    pub prefill: Duration,
    /// From its submission to its first token.
    pub first_token: Duration,
    /// All further tokens.
    pub decode: Duration,
}

impl RequestTimings {
    /// From its submission to its end.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.first_token + self.decode
    }
}

/// The clock of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
    timings: RequestTimings,
}

impl Clock {
    /// The request is submitted now.
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
            timings: RequestTimings::default(),
        }
    }

    /// Its image has just been encoded, which took so long.
    pub(super) fn encoded(&mut self, took: Duration) {
        self.timings.encode += took;
    }

    /// Its first token is there; its prefill took so long.
    pub(super) fn prefilled(&mut self, took: Duration) {
        let timings = &mut self.timings;
        timings.prefill = took;
        timings.first_token = self.started.elapsed();
        let work = timings.encode + timings.prefill;
        timings.queue = timings.first_token.saturating_sub(work);
    }

    /// It is finished.
    pub(super) fn finish(mut self) -> RequestTimings {
        self.timings.decode = self
            .started
            .elapsed()
            .saturating_sub(self.timings.first_token);
        self.timings
    }
}
