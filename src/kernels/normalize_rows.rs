//! `normalize_rows.wgsl`: rows of length one.

use crate::gpu::{Activation, Kernel, ProgramBuilder, READ, WRITE, params};

use super::word;

pub(super) static NORMALIZE_ROWS: Kernel =
    Kernel::new::<Params>("ops/normalize_rows", &[READ, WRITE]);

params! {
    struct Params {
        width: u32,
    }
}

/// `x / max(‖x‖₂, 1e-12)` for each row of `x` `[rows, width]`.
pub fn normalize_rows(program: &mut ProgramBuilder, x: &Activation) -> Activation {
    let y = program.activation(x.rows, x.columns);
    program.dispatch(
        &NORMALIZE_ROWS,
        vec![],
        &Params {
            width: word(x.columns),
        },
        vec![x.operand(), y.operand()],
        [word(x.rows), 1, 1],
    );
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    /// Plain-Rust twin of [`normalize_rows`], in f64.
    fn reference(x: &[f32], width: usize) -> Vec<f32> {
        x.chunks(width)
            .flat_map(|row| {
                let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
                let length = squares.sqrt().max(1e-12);
                row.iter().map(move |&v| (f64::from(v) / length) as f32)
            })
            .collect()
    }

    #[test]
    fn equals_its_twin_zero_rows_included() {
        for gpu in gpus() {
            for (rows, width) in [(1, 1), (3, 24), (5, 63), (2, 256)] {
                let mut values = Random(width as u64).vec(rows * width);
                values[(rows - 1) * width..].fill(if rows == 1 { 2.5 } else { 0.0 });
                let x = upload(gpu, &values, rows, width);
                let ours = run(gpu, |program| normalize_rows(program, &x));
                let twin = reference(&values, width);
                assert_close(&ours, &twin, 1e-6, &format!("{rows}x{width}"));
                assert!(rows == 1 || ours[(rows - 1) * width..].iter().all(|&v| v == 0.0));
            }
        }
    }
}
