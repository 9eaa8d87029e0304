//! `log_softmax.wgsl`: logits to log-probabilities.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE, params};

use super::{threads_of_logits, word};

pub(super) static LOG_SOFTMAX: Kernel = Kernel::new::<Params>("ops/log_softmax", &[WRITE, READ]);

params! {
    struct Params {
        vocab: u32,
        logits_stride: u32,
        rules_stride: u32,
    }
}

/// `logits −= ln Σ exp(logits)` in place, for each row whose `rules` (`[rows, rules_stride]`, see
/// [`super::write_row_rules`]) work on log-probabilities.
pub fn log_softmax(
    program: &mut ProgramBuilder,
    logits: &Activation,
    rules: &wgpu::Buffer,
    rules_stride: usize,
) {
    let threads = threads_of_logits(program.gpu());
    record(program, logits, rules, rules_stride, threads);
}

fn record(
    program: &mut ProgramBuilder,
    logits: &Activation,
    rules: &wgpu::Buffer,
    rules_stride: usize,
    threads: u32,
) {
    program.dispatch(
        &LOG_SOFTMAX,
        vec![("WORKGROUP_SIZE", f64::from(threads))],
        &Params {
            vocab: word(logits.columns),
            logits_stride: word(logits.columns),
            rules_stride: word(rules_stride),
        },
        vec![logits.operand(), Operand::from(rules)],
        [word(logits.rows), 1, 1],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::GenerationOptions;
    use crate::kernels::row_rules::rules_of;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    #[test]
    fn equals_its_twin_where_rows_ask_for_it() {
        let with_beams = |num_beams| GenerationOptions {
            num_beams,
            ..Default::default()
        };
        let (rules, rules_stride) = rules_of(&[3, 1, 2].map(with_beams));
        for gpu in gpus() {
            let rules = gpu.storage_with("rules", &rules).expect("small");
            let most = gpu.capabilities().invocations;
            let all = [
                (256, 1),
                (256, 3),
                (256, 256),
                (256, 1031),
                (1024, 3),
                (1024, 2059),
            ];
            for (threads, vocab) in all.into_iter().filter(|(threads, _)| *threads <= most) {
                let logits: Vec<f32> = Random(8).vec(3 * vocab).iter().map(|v| v * 40.0).collect();
                let x = upload(gpu, &logits, 3, vocab);
                let ours = run(gpu, |program| {
                    record(program, &x, &rules, rules_stride, threads);
                    x.clone()
                });
                let mut twin = logits.clone();
                for row in [0, 2] {
                    crate::generate::log_softmax(&mut twin[row * vocab..][..vocab]);
                }
                assert_close(&ours, &twin, 1e-6, &format!("{vocab} by {threads}"));
            }
        }
    }
}
