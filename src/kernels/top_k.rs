//! `top_k.wgsl`: each row's best tokens.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE, params};

use super::{threads_of_logits, word};

pub(super) static TOP_K: Kernel = Kernel::new::<Params>("ops/top_k", &[READ, WRITE, WRITE]);

/// Most tokens a row that [`top_k`] gives.
pub const MAX_TOP_K: usize = 256;

params! {
    struct Params {
        vocab: u32,
        logits_stride: u32,
        k: u32,
    }
}

/// Writes the `k` best `(token, value bits)` of each row of `logits` into `top` `[rows, k]`, best first and the
/// lowest token first of equals, and `ln Σ exp` of each row into `log_sum_exp`.
pub fn top_k(
    program: &mut ProgramBuilder,
    logits: &Activation,
    k: usize,
    top: &wgpu::Buffer,
    log_sum_exp: &wgpu::Buffer,
) {
    let threads = threads_of_logits(program.gpu());
    record(program, logits, k, [top, log_sum_exp], threads);
}

fn record(
    program: &mut ProgramBuilder,
    logits: &Activation,
    k: usize,
    [top, log_sum_exp]: [&wgpu::Buffer; 2],
    threads: u32,
) {
    debug_assert!(k <= MAX_TOP_K);
    program.dispatch(
        &TOP_K,
        vec![("WORKGROUP_SIZE", f64::from(threads))],
        &Params {
            vocab: word(logits.columns),
            logits_stride: word(logits.columns),
            k: word(k),
        },
        vec![
            logits.operand(),
            Operand::from(top),
            Operand::from(log_sum_exp),
        ],
        [word(logits.rows), 1, 1],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::ActivationPool;
    use crate::kernels::testing::{Random, gpus, upload};

    #[test]
    fn equals_its_twin_ties_included() {
        for gpu in gpus() {
            let few = [64, 256].map(|threads| (threads, 1000, 256));
            let many = [(1024, 50_273, 50), (1024, 1031, 256), (1024, 5, 5)];
            let most = gpu.capabilities().invocations;
            for (threads, vocab, k) in [(256, 5, 5), (256, 300, 20), (256, 50_273, 50)]
                .into_iter()
                .chain(few)
                .chain(many)
                .filter(|(threads, ..)| *threads <= most)
            {
                let rows = 3;
                // Rounded values: many ties.
                let logits: Vec<f32> = Random(k as u64)
                    .vec(rows * vocab)
                    .iter()
                    .map(|v| (v * 64.0).round() / 4.0)
                    .collect();
                let x = upload(gpu, &logits, rows, vocab);
                let top = gpu.storage("top", (rows * k * 8) as u64).expect("small");
                let sums = gpu.storage("sums", (rows * 4) as u64).expect("small");
                let mut program = ProgramBuilder::new(gpu, "top_k");
                record(&mut program, &x, k, [&top, &sums], threads);
                program
                    .finish(&ActivationPool::default())
                    .expect("valid")
                    .run(gpu);
                let ours: Vec<[u32; 2]> =
                    pollster::block_on(gpu.read(&top, rows * k)).expect("readable");
                let sums: Vec<f32> = pollster::block_on(gpu.read(&sums, rows)).expect("readable");
                for row in 0..rows {
                    let logits = &logits[row * vocab..][..vocab];
                    let twin: Vec<_> = crate::generate::top_k(logits, k)
                        .iter()
                        .map(|candidate| [candidate.token, candidate.score.to_bits()])
                        .collect();
                    assert_eq!(ours[row * k..][..k], twin, "{vocab} {k} by {threads}");
                    let sum: f64 = logits.iter().map(|&v| f64::from(v).exp()).sum();
                    assert!((f64::from(sums[row]) - sum.ln()).abs() < 1e-4);
                }
            }
        }
    }
}
