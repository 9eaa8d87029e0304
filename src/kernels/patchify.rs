//! `patchify.wgsl`: cuts images into patches, so that the patch convolution becomes a matmul.

use crate::gpu::{Activation, Kernel, ProgramBuilder, READ, WRITE, params, round_up};

use super::{groups, word};

pub(super) static PATCHIFY: Kernel = Kernel::new::<Params>("ops/patchify", &[READ, WRITE]);

params! {
    struct Params {
        size: u32,
        patch_size: u32,
        grid: u32,
        columns: u32,
    }
}

/// Values of a patch, `3 · patch²`, rounded up to the 8 that a weight row must be a multiple of.
#[must_use]
pub const fn patch_columns(patch: usize) -> usize {
    round_up(3 * patch * patch, 8)
}

/// `pixels` `[batch, 3 · size²]` → `[batch · (size / patch)², patch_columns(patch)]`, zero beyond `3 · patch²`.
pub fn patchify(
    program: &mut ProgramBuilder,
    pixels: &Activation,
    size: usize,
    patch: usize,
) -> Activation {
    debug_assert_eq!(pixels.columns, 3 * size * size);
    let grid = size / patch;
    let columns = patch_columns(patch);
    let y = program.activation(pixels.rows * grid * grid, columns);
    program.dispatch(
        &PATCHIFY,
        vec![],
        &Params {
            size: word(size),
            patch_size: word(patch),
            grid: word(grid),
            columns: word(columns),
        },
        vec![pixels.operand(), y.operand()],
        [groups(columns, 64), word(y.rows), 1],
    );
    y
}

/// Plain-Rust twin of [`patchify`].
#[cfg(test)]
fn reference(pixels: &[f32], size: usize, patch: usize) -> Vec<f32> {
    let grid = size / patch;
    let mut out = Vec::new();
    for image in pixels.chunks(3 * size * size) {
        for (top, left) in (0..grid * grid).map(|cell| (cell / grid * patch, cell % grid * patch)) {
            for channel in image.chunks(size * size) {
                for y in 0..patch {
                    out.extend_from_slice(&channel[(top + y) * size + left..][..patch]);
                }
            }
            out.resize(round_up(out.len(), 8), 0.0);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, gpus, run, upload};

    #[test]
    fn equals_its_twin() {
        for gpu in gpus() {
            // 3 · 14² = 588 needs padding to 592; 30 leaves a border of 2 pixels that no patch covers.
            for (batch, size, patch) in [(1, 28, 14), (2, 30, 14), (3, 8, 4), (1, 21, 7)] {
                let values = Random(1).vec(batch * 3 * size * size);
                let pixels = upload(gpu, &values, batch, 3 * size * size);
                let ours = run(gpu, |program| patchify(program, &pixels, size, patch));
                assert_eq!(ours, reference(&values, size, patch));
            }
        }
    }
}
