//! `layer_norm.wgsl`: layer normalisation over rows.

use crate::gpu::{
    Activation, Constants, Kernel, ProgramBuilder, READ, Vector, WRITE, kernels, params,
};

use crate::kernels::{is_wide, word};

kernels! {
    pub(in crate::kernels) static LAYER_NORM: Kernel =
        Kernel::new::<Params>("ops/layer_norm", &[READ, READ, READ, WRITE]);
}

/// Weights of a layer norm.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[width]`
    pub weight: Vector,
    /// `[width]`
    pub bias: Vector,
    /// Added to the variance.
    pub eps: f32,
}

params! {
    struct Params {
        width: u32,
        eps: f32,
    }
}

/// Most vec4s of a row that a thread of the norms keeps: `MAX_KEPT` in the shaders.
const MAX_KEPT: usize = 6;

/// Threads that every device has in a workgroup.
const MAX_THREADS: usize = 256;

/// The widest rows of the norms.
pub const MAX_NORM_WIDTH: usize = 4 * MAX_KEPT * MAX_THREADS;

/// Threads of the norms for rows of `width`. A GPU has few rows to work on while it decodes and wants many threads for each
/// (unmeasured). On llvmpipe as few as can keep the row are the fastest.
pub(in crate::kernels) fn norm_threads(is_wide: bool, width: usize) -> usize {
    if is_wide {
        MAX_THREADS
    } else {
        let fewest = width.div_ceil(4 * MAX_KEPT).next_power_of_two();
        fewest.clamp(8, MAX_THREADS)
    }
}

/// Constants of the norms for rows of `width`, a multiple of 4 and at most [`MAX_NORM_WIDTH`].
pub(in crate::kernels) fn norm_constants(width: usize, threads: usize) -> Constants {
    debug_assert!(width.is_multiple_of(4) && width <= MAX_NORM_WIDTH);
    let kept = width.div_ceil(4 * threads);
    vec![("WORKGROUP_SIZE", threads as f64), ("KEPT", kept as f64)]
}

/// `(x − mean) / √(variance + eps) · weight + bias` for each row of `x`, `[rows, width]`.
pub fn layer_norm(program: &mut ProgramBuilder, x: &Activation, norm: &LayerNorm) -> Activation {
    let threads = norm_threads(is_wide(program.gpu()), x.columns);
    record(program, x, norm, threads)
}

fn record(
    program: &mut ProgramBuilder,
    x: &Activation,
    norm: &LayerNorm,
    threads: usize,
) -> Activation {
    debug_assert_eq!(x.columns, norm.weight.len);
    let y = program.activation(x.rows, x.columns);
    program.dispatch(
        &LAYER_NORM,
        norm_constants(x.columns, threads),
        &Params {
            width: word(x.columns),
            eps: norm.eps,
        },
        vec![
            x.operand(),
            (&norm.weight.buffer).into(),
            (&norm.bias.buffer).into(),
            y.operand(),
        ],
        [word(x.rows), 1, 1],
    );
    y
}

/// Plain-Rust twin of [`layer_norm`], in f64.
#[cfg(test)]
fn reference(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    x.chunks(width)
        .flat_map(|row| {
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64;
            let variance = row
                .iter()
                .map(|&v| (f64::from(v) - mean).powi(2))
                .sum::<f64>()
                / width as f64;
            let scale = 1.0 / (variance + f64::from(eps)).sqrt();
            row.iter()
                .zip(weight.iter().zip(bias))
                .map(move |(&v, (&w, &b))| {
                    ((f64::from(v) - mean) * scale * f64::from(w) + f64::from(b)) as f32
                })
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
                (1, 4),
                (5, 64),
                (3, 40),
                (2, 1408),
                (1, 2560),
                (2, 6144),
                (257, 88),
            ];
            for (rows, width, is_wide) in sizes
                .iter()
                .flat_map(|&(rows, width)| [(rows, width, false), (rows, width, true)])
            {
                let threads = norm_threads(is_wide, width);
                let mut random = Random(rows as u64);
                // An offset far from zero: a one-pass variance would lose it.
                let values: Vec<f32> = random.vec(rows * width).iter().map(|v| v + 100.0).collect();
                let (weight, bias) = (random.vec(width), random.vec(width));
                let norm = LayerNorm {
                    weight: gpu.vector("weight", &weight).expect("small"),
                    bias: gpu.vector("bias", &bias).expect("small"),
                    eps: 1e-5,
                };
                let x = upload(gpu, &values, rows, width);
                let ours = run(gpu, |program| record(program, &x, &norm, threads));
                let twin = reference(&values, &weight, &bias, 1e-5);
                assert_close(&ours, &twin, 1e-4, &format!("{rows}x{width} by {threads}"));
            }
        }
    }
}
