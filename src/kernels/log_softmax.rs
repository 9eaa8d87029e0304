//! `log_softmax.wgsl`: logits to log-probabilities.

use crate::gpu::{Activation, Kernel, ProgramBuilder, WRITE};

use super::word;

static LOG_SOFTMAX: Kernel = Kernel {
    name: "log_softmax",
    wgsl: &[include_str!("../../shaders/log_softmax.wgsl")],
    bindings: &[WRITE],
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    vocab: u32,
    logits_stride: u32,
    logits_offset: u32,
}

/// `logits −= ln Σ exp(logits)` for each row, in place.
pub fn log_softmax(program: &mut ProgramBuilder, logits: &Activation) {
    program.dispatch(
        &LOG_SOFTMAX,
        vec![],
        &Params {
            rows: word(logits.rows),
            vocab: word(logits.columns),
            logits_stride: word(logits.columns),
            logits_offset: 0,
        },
        vec![logits.operand()],
        [word(logits.rows), 1, 1],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    #[test]
    fn equals_its_twin() {
        for gpu in gpus() {
            for vocab in [1, 3, 256, 1031] {
                let logits: Vec<f32> = Random(8).vec(2 * vocab).iter().map(|v| v * 40.0).collect();
                let x = upload(gpu, &logits, 2, vocab);
                let ours = run(gpu, |program| {
                    log_softmax(program, &x);
                    x.clone()
                });
                let mut twin = logits.clone();
                twin.chunks_mut(vocab)
                    .for_each(crate::generate::log_softmax);
                assert_close(&ours, &twin, 1e-6, &format!("{vocab}"));
            }
        }
    }
}
