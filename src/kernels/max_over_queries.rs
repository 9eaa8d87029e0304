//! `max_over_queries.wgsl`: the score of an image and a text is that of the image's best query.

use crate::gpu::{Activation, Kernel, ProgramBuilder, READ, WRITE, params};

use super::{groups, word};

pub(super) static MAX_OVER_QUERIES: Kernel =
    Kernel::new::<Params>("ops/max_over_queries", &[READ, WRITE]);

params! {
    struct Params {
        images: u32,
        queries: u32,
        texts: u32,
        scale: f32,
    }
}

/// `scale · max` over the `queries` rows of each image in `dots` `[images · queries, texts]`: `[images, texts]`, or
/// `[texts, images]` if `transposed`.
pub fn max_over_queries(
    program: &mut ProgramBuilder,
    dots: &Activation,
    queries: usize,
    scale: f32,
    transposed: bool,
) -> Activation {
    let (images, texts) = (dots.rows / queries, dots.columns);
    let scores = if transposed {
        program.activation(texts, images)
    } else {
        program.activation(images, texts)
    };
    program.dispatch(
        &MAX_OVER_QUERIES,
        vec![("TRANSPOSED", f64::from(u8::from(transposed)))],
        &Params {
            images: word(images),
            queries: word(queries),
            texts: word(texts),
            scale,
        },
        vec![dots.operand(), scores.operand()],
        [groups(texts, 64), word(images), 1],
    );
    scores
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, gpus, run, upload};

    /// Plain-Rust twin of [`max_over_queries`].
    fn reference(dots: &[f32], queries: usize, texts: usize, scale: f32) -> Vec<f32> {
        dots.chunks(queries * texts)
            .flat_map(|image| {
                (0..texts).map(move |text| {
                    let of_text = image.iter().skip(text).step_by(texts);
                    scale * of_text.copied().fold(f32::MIN, f32::max)
                })
            })
            .collect()
    }

    #[test]
    fn equals_its_twin_both_ways() {
        for gpu in gpus() {
            for (images, queries, texts) in [(1, 1, 1), (3, 8, 65), (5, 32, 7)] {
                let values = Random(texts as u64).vec(images * queries * texts);
                let dots = upload(gpu, &values, images * queries, texts);
                let twin = reference(&values, queries, texts, 0.25);
                let ours = run(gpu, |program| {
                    max_over_queries(program, &dots, queries, 0.25, false)
                });
                assert_eq!(ours, twin);
                let ours = run(gpu, |program| {
                    max_over_queries(program, &dots, queries, 0.25, true)
                });
                let column = |text| twin.iter().skip(text).step_by(texts);
                let turned: Vec<f32> = (0..texts).flat_map(column).copied().collect();
                assert_eq!(ours, turned);
            }
        }
    }
}
