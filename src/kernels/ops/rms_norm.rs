//! `rms_norm.wgsl`: root-mean-square normalisation over rows.

use crate::gpu::{Activation, Kernel, ProgramBuilder, READ, Vector, WRITE, kernels, params};

use super::layer_norm::{norm_constants, norm_threads};
use crate::kernels::{is_wide, word};

kernels! {
    pub(in crate::kernels) static RMS_NORM: Kernel =
        Kernel::new::<Params>("ops/rms_norm", &[READ, READ, WRITE]);
}

/// Weights of an RMS norm.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[width]`
    pub weight: Vector,
    /// Added to the mean of the squares.
    pub eps: f32,
    /// Factor on the result.
    pub factor: f32,
}

params! {
    struct Params {
        width: u32,
        eps: f32,
        factor: f32,
    }
}

/// `x / √(mean(x²) + eps) · weight · factor` for each row of `x`, `[rows, width]`.
pub fn rms_norm(program: &mut ProgramBuilder, x: &Activation, norm: &RmsNorm) -> Activation {
    let threads = norm_threads(is_wide(program.gpu()), x.columns);
    record(program, x, norm, threads)
}

fn record(
    program: &mut ProgramBuilder,
    x: &Activation,
    norm: &RmsNorm,
    threads: usize,
) -> Activation {
    debug_assert_eq!(x.columns, norm.weight.len);
    let y = program.activation(x.rows, x.columns);
    program.dispatch(
        &RMS_NORM,
        norm_constants(x.columns, threads),
        &Params {
            width: word(x.columns),
            eps: norm.eps,
            factor: norm.factor,
        },
        vec![x.operand(), (&norm.weight.buffer).into(), y.operand()],
        [word(x.rows), 1, 1],
    );
    y
}

/// Plain-Rust twin of [`rms_norm`], in f64.
#[cfg(test)]
fn reference(x: &[f32], weight: &[f32], eps: f32, factor: f32) -> Vec<f32> {
    x.chunks(weight.len())
        .flat_map(|row| {
            let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
            let mean = squares / row.len() as f64;
            let scale = f64::from(factor) / (mean + f64::from(eps)).sqrt();
            row.iter()
                .zip(weight)
                .map(move |(&v, &w)| (f64::from(v) * scale * f64::from(w)) as f32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    #[test]
    fn equals_its_twin() {
        for gpu in gpus() {
            let sizes = [
                (1, 4, 1.0),
                (5, 64, 1.0),
                (3, 40, 0.25),
                (2, 2048, 2.0),
                (1, 6144, 1.0),
            ];
            for ((rows, width, factor), is_wide) in sizes
                .into_iter()
                .flat_map(|size| [(size, false), (size, true)])
            {
                let threads = norm_threads(is_wide, width);
                let mut random = Random(rows as u64);
                // A mean far from zero stays; a row of nearly nothing shows eps.
                let mut values: Vec<f32> =
                    random.vec(rows * width).iter().map(|v| v + 3.0).collect();
                values[(rows - 1) * width..]
                    .iter_mut()
                    .for_each(|v| *v *= 1e-3);
                let weight = random.vec(width);
                let norm = RmsNorm {
                    weight: gpu.vector("weight", &weight).expect("small"),
                    eps: 1e-6,
                    factor,
                };
                let x = upload(gpu, &values, rows, width);
                let ours = run(gpu, |program| record(program, &x, &norm, threads));
                let twin = reference(&values, &weight, 1e-6, factor);
                assert_close(&ours, &twin, 1e-6, &format!("{rows}x{width} by {threads}"));
            }
        }
    }
}
