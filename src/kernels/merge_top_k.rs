//! `merge_top_k.wgsl`: each row's best candidates, kept while their scores come in tiles.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE, params};

use super::word;

pub(super) static MERGE_TOP_K: Kernel =
    Kernel::new::<Params>("ops/merge_top_k", &[READ, READ, WRITE]);

/// Most candidates a row that [`merge_top_k`] keeps.
pub const MAX_KEPT: usize = 512;

/// A place of a top list that holds no candidate yet.
pub const NO_CANDIDATE: Candidate = Candidate {
    index: u32::MAX,
    score: f32::MIN,
};

/// One of a row's best candidates.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
pub struct Candidate {
    /// Its number.
    pub index: u32,
    /// Its score.
    pub score: f32,
}

params! {
    struct Params {
        stride: u32,
        k: u32,
    }
}

/// Merges a tile of `scores` `[rows, columns]` into `top`, a [`Candidate`] list `[rows, k]` that is sorted, the best
/// first and the lowest number first of equals, and holds [`NO_CANDIDATE`] where nothing came yet. `tile` is
/// `[base, count]` (u32): column `j` is candidate `base + j`, columns from `count` on are none.
pub fn merge_top_k(
    program: &mut ProgramBuilder,
    scores: &Activation,
    tile: &wgpu::Buffer,
    k: usize,
    top: &wgpu::Buffer,
) {
    debug_assert!((1..=MAX_KEPT).contains(&k));
    program.dispatch(
        &MERGE_TOP_K,
        vec![],
        &Params {
            stride: word(scores.columns),
            k: word(k),
        },
        vec![scores.operand(), Operand::from(tile), Operand::from(top)],
        [word(scores.rows), 1, 1],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::ActivationPool;
    use crate::kernels::testing::{Random, gpus, upload};

    /// Plain-Rust twin: all candidates of a row sorted at once.
    fn reference(scores: &[f32], k: usize) -> Vec<Candidate> {
        let mut all: Vec<_> = (0..)
            .zip(scores)
            .map(|(index, &score)| Candidate { index, score })
            .collect();
        all.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)));
        all.resize(k.max(all.len()), NO_CANDIDATE);
        all.truncate(k);
        all
    }

    #[test]
    fn equals_its_twin_however_the_candidates_are_cut() {
        for gpu in gpus() {
            for (candidates, columns, k) in [
                (1, 1, 1),
                (5, 3, 9),
                (1000, 300, 128),
                (3001, 1024, 512),
                (700, 257, 512),
                (2049, 2048, 20),
            ] {
                let rows = 3;
                // Rounded: many ties. The second row comes in ascending order: every candidate enters the list.
                let mut scores: Vec<f32> = Random(k as u64)
                    .vec(rows * candidates)
                    .iter()
                    .map(|v| (v * 200.0).round() / 16.0 + 0.0) // no −0, which a total order puts below 0
                    .collect();
                scores[candidates..2 * candidates].sort_by(f32::total_cmp);
                let top = gpu
                    .storage_with("top", &vec![NO_CANDIDATE; rows * k])
                    .expect("small");
                let tile = gpu.storage("tile", 8).expect("small");
                for base in (0..candidates).step_by(columns) {
                    let count = columns.min(candidates - base);
                    // What lies beyond the count must not be read as scores.
                    let mut values = vec![1e9; rows * columns];
                    for row in 0..rows {
                        values[row * columns..][..count]
                            .copy_from_slice(&scores[row * candidates + base..][..count]);
                    }
                    let x = upload(gpu, &values, rows, columns);
                    gpu.write(&tile, 0, &[base as u32, count as u32]);
                    let mut program = ProgramBuilder::new(gpu, "merge_top_k");
                    merge_top_k(&mut program, &x, &tile, k, &top);
                    program
                        .finish(&ActivationPool::default())
                        .expect("valid")
                        .run(gpu);
                }
                let ours: Vec<Candidate> =
                    pollster::block_on(gpu.read(&top, rows * k)).expect("readable");
                for (row, scores) in scores.chunks(candidates).enumerate() {
                    let twin = reference(scores, k);
                    let equal = ours[row * k..][..k] == twin;
                    assert!(
                        equal,
                        "{candidates} candidates by {columns}, k {k}, row {row}"
                    );
                }
            }
        }
    }
}
