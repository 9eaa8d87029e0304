//! `embed_patches.wgsl`: class token and position embeddings of the ViT.

use crate::gpu::{Activation, Kernel, ProgramBuilder, READ, Vector, WRITE, params};

use super::{groups, word};

pub(super) static EMBED_PATCHES: Kernel =
    Kernel::new::<Params>("ops/embed_patches", &[READ, READ, READ, WRITE]);

params! {
    struct Params {
        count: u32,
        width: u32,
    }
}

/// `patches` `[batch · count, width]` → tokens `[batch · (1 + count), width]`: class token first, `positions`
/// (`[1 + count, width]`) added.
pub fn embed_patches(
    program: &mut ProgramBuilder,
    patches: &Activation,
    batch: usize,
    class_embedding: &Vector,
    positions: &Vector,
) -> Activation {
    let count = patches.rows / batch;
    let width = patches.columns;
    debug_assert_eq!(class_embedding.len, width);
    debug_assert_eq!(positions.len, (1 + count) * width);
    let tokens = program.activation(batch * (1 + count), width);
    program.dispatch(
        &EMBED_PATCHES,
        vec![],
        &Params {
            count: word(count),
            width: word(width),
        },
        vec![
            patches.operand(),
            (&class_embedding.buffer).into(),
            (&positions.buffer).into(),
            tokens.operand(),
        ],
        [groups(width, 64), word(tokens.rows), 1],
    );
    tokens
}

/// Plain-Rust twin of [`embed_patches`].
#[cfg(test)]
fn reference(
    patches: &[f32],
    batch: usize,
    class_embedding: &[f32],
    positions: &[f32],
) -> Vec<f32> {
    let image_len = patches.len() / batch;
    patches
        .chunks(image_len)
        .flat_map(|image| {
            let tokens = class_embedding.iter().chain(image);
            tokens
                .zip(positions)
                .map(|(token, position)| token + position)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, gpus, run, upload};

    #[test]
    fn equals_its_twin() {
        for gpu in gpus() {
            for (batch, count, width) in [(1, 4, 8), (3, 9, 71)] {
                let mut random = Random(2);
                let values = random.vec(batch * count * width);
                let class = random.vec(width);
                let positions = random.vec((1 + count) * width);
                let patches = upload(gpu, &values, batch * count, width);
                let class_vector = gpu.vector("class", &class).expect("small");
                let position_vector = gpu.vector("positions", &positions).expect("small");
                let ours = run(gpu, |program| {
                    embed_patches(program, &patches, batch, &class_vector, &position_vector)
                });
                assert_eq!(ours, reference(&values, batch, &class, &positions));
            }
        }
    }
}
