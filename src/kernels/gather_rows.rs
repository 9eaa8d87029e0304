//! `gather_rows.wgsl`: picks rows of a matrix.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE, params};

use super::{groups, word};

pub(super) static GATHER_ROWS: Kernel =
    Kernel::new::<Params>("ops/gather_rows", &[READ, READ, WRITE]);

params! {
    struct Params {
        width: u32,
    }
}

/// `y[i, :] = x[index[i], :]` for the first `rows` entries of `index` (u32).
pub fn gather_rows(
    program: &mut ProgramBuilder,
    x: &Activation,
    index: &wgpu::Buffer,
    rows: usize,
) -> Activation {
    let y = program.activation(rows, x.columns);
    program.dispatch(
        &GATHER_ROWS,
        vec![],
        &Params {
            width: word(x.columns),
        },
        vec![x.operand(), Operand::from(index), y.operand()],
        [groups(x.columns, 64), word(rows), 1],
    );
    y
}

/// Plain-Rust twin of [`gather_rows`].
#[cfg(test)]
fn reference(x: &[f32], width: usize, index: &[u32]) -> Vec<f32> {
    index
        .iter()
        .flat_map(|&row| &x[row as usize * width..][..width])
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, gpus, run, upload};

    #[test]
    fn equals_its_twin() {
        for gpu in gpus() {
            for width in [1, 40, 129] {
                let mut random = Random(3);
                let values = random.vec(11 * width);
                let index: Vec<u32> = (0..7).map(|_| random.below(11) as u32).collect();
                let x = upload(gpu, &values, 11, width);
                let buffer = gpu.storage_with("index", &index).expect("small");
                let ours = run(gpu, |program| {
                    gather_rows(program, &x, &buffer, index.len())
                });
                assert_eq!(ours, reference(&values, width, &index));
            }
        }
    }
}
