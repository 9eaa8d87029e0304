//! `gate.wgsl`: the gate of a gated feed-forward block.

use crate::gpu::{Activation, Kernel, ProgramBuilder, READ, WRITE, params};

use super::linear::Activate;
use super::{groups, word};

pub(super) static GATE: Kernel = Kernel::new::<Params>("ops/gate", &[READ, WRITE]);

params! {
    struct Params {
        width: u32,
    }
}

/// `activate(x[:, ..width]) · x[:, width..]` for `x` `[rows, 2 · width]`, value by value: `[rows, width]`.
pub fn gate(program: &mut ProgramBuilder, x: &Activation, activate: Activate) -> Activation {
    debug_assert!(x.columns.is_multiple_of(2));
    let width = x.columns / 2;
    let y = program.activation(x.rows, width);
    program.dispatch(
        &GATE,
        vec![("ACTIVATION", activate.constant())],
        &Params { width: word(width) },
        vec![x.operand(), y.operand()],
        [groups(width, 64), word(x.rows), 1],
    );
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    /// GELU's tanh approximation and ReLU, in f64.
    fn activated(activate: Activate, v: f64) -> f64 {
        match activate {
            Activate::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
                0.5 * v * (1.0 + inner.tanh())
            }
            Activate::Relu => v.max(0.0),
            Activate::Identity | Activate::GeluErf => v,
        }
    }

    /// Plain-Rust twin of [`gate`].
    fn reference(x: &[f32], width: usize, activate: Activate) -> Vec<f32> {
        x.chunks(2 * width)
            .flat_map(|row| {
                let (gate, rest) = row.split_at(width);
                gate.iter()
                    .zip(rest)
                    .map(move |(&g, &v)| (activated(activate, f64::from(g)) * f64::from(v)) as f32)
            })
            .collect()
    }

    #[test]
    fn equals_its_twin() {
        for gpu in gpus() {
            for activate in [Activate::GeluTanh, Activate::Relu, Activate::Identity] {
                for (rows, width) in [(1, 1), (3, 40), (5, 65)] {
                    let values = Random(width as u64).vec(rows * 2 * width);
                    let values: Vec<f32> = values.iter().map(|v| v * 4.0).collect();
                    let x = upload(gpu, &values, rows, 2 * width);
                    let ours = run(gpu, |program| gate(program, &x, activate));
                    let twin = reference(&values, width, activate);
                    assert_close(&ours, &twin, 1e-6, &format!("{activate:?} {rows}x{width}"));
                }
            }
        }
    }
}
