//! `layer_norm.wgsl`: layer normalisation over rows.

use crate::gpu::{Activation, Kernel, ProgramBuilder, READ, Vector, WRITE};

use super::word;

pub(super) static LAYER_NORM: Kernel = Kernel {
    name: "layer_norm",
    wgsl: &[include_str!("../../shaders/layer_norm.wgsl")],
    bindings: &[READ, READ, READ, WRITE],
};

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

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    width: u32,
    x_stride: u32,
    y_stride: u32,
    x_offset: u32,
    y_offset: u32,
    eps: f32,
    pad: u32,
}

/// `(x − mean) / √(variance + eps) · weight + bias` for each row of `x`, `[rows, width]`.
pub fn layer_norm(program: &mut ProgramBuilder, x: &Activation, norm: &LayerNorm) -> Activation {
    debug_assert_eq!(x.columns, norm.weight.len);
    let y = program.activation(x.rows, x.columns);
    program.dispatch(
        &LAYER_NORM,
        vec![],
        &Params {
            rows: word(x.rows),
            width: word(x.columns),
            x_stride: word(x.columns),
            y_stride: word(x.columns),
            x_offset: 0,
            y_offset: 0,
            eps: norm.eps,
            pad: 0,
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
            for (rows, width) in [(1, 1), (3, 40), (5, 63), (2, 1408), (257, 88)] {
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
                let ours = run(gpu, |program| layer_norm(program, &x, &norm));
                let twin = reference(&values, &weight, &bias, 1e-5);
                assert_close(&ours, &twin, 1e-4, &format!("{rows}x{width}"));
            }
        }
    }
}
