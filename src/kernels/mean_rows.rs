//! `mean_rows.wgsl`: means over the rows of groups.

use crate::gpu::{Activation, Kernel, ProgramBuilder, READ, WRITE, params};

use super::{groups, word};

pub(super) static MEAN_ROWS: Kernel = Kernel::new::<Params>("ops/mean_rows", &[READ, WRITE]);

params! {
    struct Params {
        width: u32,
        rows: u32,
    }
}

/// The mean of each of `number` groups of rows: `x` `[number · rows, width]` → `[number, width]`.
pub fn mean_rows(program: &mut ProgramBuilder, x: &Activation, number: usize) -> Activation {
    let y = program.activation(number, x.columns);
    program.dispatch(
        &MEAN_ROWS,
        vec![],
        &Params {
            width: word(x.columns),
            rows: word(x.rows / number),
        },
        vec![x.operand(), y.operand()],
        [groups(x.columns, 64), word(number), 1],
    );
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    /// Plain-Rust twin of [`mean_rows`], in f64.
    fn reference(x: &[f32], rows: usize, width: usize) -> Vec<f32> {
        x.chunks(rows * width)
            .flat_map(|group| {
                (0..width).map(move |column| {
                    let values = group.iter().skip(column).step_by(width);
                    let sum: f64 = values.map(|&v| f64::from(v)).sum();
                    (sum / rows as f64) as f32
                })
            })
            .collect()
    }

    #[test]
    fn equals_its_twin() {
        for gpu in gpus() {
            for (number, rows, width) in [(1, 1, 1), (3, 8, 2), (5, 32, 2), (2, 7, 65)] {
                let values = Random(rows as u64).vec(number * rows * width);
                let x = upload(gpu, &values, number * rows, width);
                let ours = run(gpu, |program| mean_rows(program, &x, number));
                let twin = reference(&values, rows, width);
                assert_close(&ours, &twin, 1e-6, &format!("{number}x{rows}x{width}"));
            }
        }
    }
}
