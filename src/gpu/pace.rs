//! In how many submits a program goes out.
//!
//! A system may take a device that works on one submit for too long for a hung one, and reset it: Windows after two
//! seconds, Linux' drivers after a few. Image encoder and prefill of a large batch take longer than that on a small GPU.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Seconds that a submit should take at most.
const SUBMIT_TIME: f64 = 0.2;

/// FLOPs a second that any GPU reaches: what a program's first run is judged by.
const LEAST_RATE: f64 = 1e11;

/// How long a program takes.
#[derive(Debug)]
pub(super) struct Pace {
    /// Seconds of the last run, or a guess before it: the bits of an f64.
    seconds: AtomicU64,
}

impl Pace {
    /// Of a program whose products have so many FLOPs, before its first run.
    pub(super) fn guess(flops: f64) -> Self {
        Self {
            seconds: AtomicU64::new((flops / LEAST_RATE).to_bits()),
        }
    }

    /// Notes how long the last run took.
    pub(super) fn note(&self, took: Duration) {
        let seconds = took.as_secs_f64().to_bits();
        self.seconds.store(seconds, Ordering::Relaxed);
    }

    /// Submits for the next run.
    pub(super) fn submits(&self) -> usize {
        let seconds = f64::from_bits(self.seconds.load(Ordering::Relaxed));
        ((seconds / SUBMIT_TIME).ceil() as usize).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Activation, ActivationPool, Gpu, ProgramBuilder};
    use crate::kernels::copy;

    #[test]
    fn a_slow_program_goes_out_in_parts() {
        // An image's 0.5 TFLOP before the first run; then by what that took.
        let pace = Pace::guess(5.2e11);
        assert_eq!(pace.submits(), 26);
        pace.note(Duration::from_millis(8100));
        assert_eq!(pace.submits(), 41);
        pace.note(Duration::from_millis(7));
        assert_eq!(pace.submits(), 1);
        assert_eq!(Pace::guess(0.0).submits(), 1);
    }

    /// Seven copies in a row give the first one's input in any number of submits, and what was slow once is not held
    /// to be slow for ever.
    #[test]
    fn parts_run_in_order_and_the_pace_is_learnt() {
        let gpu = pollster::block_on(Gpu::open(&Default::default())).expect("an adapter");
        let values: Vec<f32> = (0..64).map(|it| it as f32).collect();
        let places: Vec<_> = (0..8)
            .map(|_| gpu.storage("copy", 256).expect("small"))
            .collect();
        let mut program = ProgramBuilder::new(&gpu, "copies");
        for pair in places.windows(2) {
            copy(
                &mut program,
                &Activation::external(&pair[0], 1, 64),
                &pair[1],
            );
        }
        let program = program.finish(&ActivationPool::default()).expect("valid");
        for (shift, seconds) in [(1.0, 0), (2.0, 1), (3.0, 60)] {
            let values: Vec<f32> = values.iter().map(|it| it + shift).collect();
            gpu.write(&places[0], 0, &values);
            program.pace().note(Duration::from_secs(seconds));
            program.run(&gpu);
            let copied: Vec<f32> = pollster::block_on(gpu.read(&places[7], 64)).expect("readable");
            assert_eq!(copied, values, "{seconds} s");
            pollster::block_on(gpu.finish("testing")).expect("it runs");
            assert_eq!(program.pace().submits(), 1);
        }
    }
}
