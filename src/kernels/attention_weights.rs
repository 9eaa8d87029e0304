//! `attention_weights.wgsl`: how much each row of an attention looks at each key, for showing it.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE, params};

use super::{Attention, CachedAttention, Heads, Pages, View, copy, word};

pub(super) static ATTENTION_WEIGHTS: Kernel = Kernel::new::<Params>(
    "attention/attention_weights",
    &[READ, READ, READ, READ, WRITE],
);

/// One attention whose weights are wanted: `softmax(q · kᵀ · scale)`.
#[derive(Debug)]
pub struct AttentionWeights<'a> {
    /// `[rows, width]`
    pub q: View<'a>,
    /// `[key rows, width]`
    pub k: View<'a>,
    /// Each row's sequence and the last position it sees, and the key row of every position.
    pub pages: &'a Pages,
    /// Positions to give the weights of, from the first on.
    pub columns: usize,
    /// Heads of q and k.
    pub heads: Heads,
    /// Factor on the scores.
    pub scale: f32,
}

params! {
    struct Params {
        heads: u32,
        head_dim: u32,
        q_stride: u32,
        q_offset: u32,
        k_stride: u32,
        k_offset: u32,
        max_length: u32,
        columns: u32,
        scale: f32,
    }
}

/// The mean of the weights over all heads, `[rows, columns]`: zero for positions that a row does not see and for
/// inactive rows.
pub fn attention_weights(program: &mut ProgramBuilder, inputs: &AttentionWeights) -> Activation {
    let AttentionWeights {
        q,
        k,
        pages,
        columns,
        heads,
        scale,
    } = *inputs;
    debug_assert!(heads.dim <= 128);
    let out = program.activation(q.of.rows, columns);
    program.dispatch(
        &ATTENTION_WEIGHTS,
        vec![],
        &Params {
            heads: word(heads.count),
            head_dim: word(heads.dim),
            q_stride: word(q.of.columns),
            q_offset: word(q.column),
            k_stride: word(k.of.columns),
            k_offset: word(k.column),
            max_length: word(pages.max_length),
            columns: word(columns),
            scale,
        },
        vec![
            q.of.operand(),
            k.of.operand(),
            Operand::from(&pages.row_info),
            Operand::from(&pages.page_table),
            out.operand(),
        ],
        [word(q.of.rows), 1, 1],
    );
    out
}

/// Keeps the weights of `inputs`, `[batch · queries, keys]`, under `name` if the program keeps attention, else does
/// nothing. For attention to all keys: `key_lengths` is not looked at.
pub fn tap_attention(
    program: &mut ProgramBuilder,
    inputs: &Attention,
    name: impl FnOnce() -> String,
) {
    let (batch, queries) = (inputs.batch, inputs.q.of.rows / inputs.batch);
    let keys = inputs.k.of.rows / batch;
    let Some(target) = program.tap_attention(name, batch * queries, keys) else {
        return;
    };
    let row_info: Vec<[u32; 2]> = (0..batch * queries)
        .map(|row| [word(row / queries), word(keys - 1)])
        .collect();
    let page_table: Vec<u32> = (0..word(batch * keys)).collect();
    let gpu = program.gpu();
    let pages = || {
        Ok(Pages {
            row_info: gpu.storage_with("row_info", &row_info)?,
            page_table: gpu.storage_with("page_table", &page_table)?,
            max_length: keys,
        })
    };
    let pages = match pages() {
        Ok(pages) => pages,
        Err(error) => return program.fail(error),
    };
    let weights = attention_weights(
        program,
        &AttentionWeights {
            q: inputs.q,
            k: inputs.k,
            pages: &pages,
            columns: keys,
            heads: inputs.heads,
            scale: inputs.scale,
        },
    );
    copy(program, &weights, &target);
}

/// Keeps the weights of `inputs` on the first `columns` positions of each row's sequence, `[rows, columns]`, under
/// `name` if the program keeps attention, else does nothing.
pub fn tap_attention_cached(
    program: &mut ProgramBuilder,
    inputs: &CachedAttention,
    columns: usize,
    name: impl FnOnce() -> String,
) {
    let rows = inputs.qkv.rows;
    let Some(target) = program.tap_attention(name, rows, columns) else {
        return;
    };
    // The kernel finds a key by its row alone; how many rows the cache has does not matter here.
    let keys = Activation::external(&inputs.cache.keys, 1, inputs.heads.width());
    let weights = attention_weights(
        program,
        &AttentionWeights {
            q: View {
                of: inputs.qkv,
                column: 0,
            },
            k: View {
                of: &keys,
                column: 0,
            },
            pages: inputs.pages,
            columns,
            heads: inputs.heads,
            scale: inputs.scale,
        },
    );
    copy(program, &weights, &target);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};
    use crate::kernels::{INACTIVE, KvLayer};

    /// Plain-Rust twin for one head of one row: `softmax(q · kᵀ · scale)`.
    fn reference_row(q: &[f32], k: &[&[f32]], scale: f32) -> Vec<f64> {
        let dot = |k: &[f32]| -> f64 {
            let products = q.iter().zip(k).map(|(&a, &b)| f64::from(a) * f64::from(b));
            products.sum::<f64>() * f64::from(scale)
        };
        let scores: Vec<f64> = k.iter().map(|k| dot(k)).collect();
        let highest = scores.iter().copied().fold(f64::MIN, f64::max);
        let exps: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.into_iter().map(|exp| exp / sum).collect()
    }

    /// The first `columns` weights of a row, the mean over heads; `keys` are the rows that it sees.
    fn reference(q: &[f32], keys: &[&[f32]], columns: usize, heads: Heads) -> Vec<f32> {
        let mut mean = vec![0.0; columns];
        for head in (0..heads.width()).step_by(heads.dim) {
            let keys: Vec<&[f32]> = keys.iter().map(|key| &key[head..][..heads.dim]).collect();
            let weights = reference_row(&q[head..][..heads.dim], &keys, heads.scale());
            for (mean, weight) in mean.iter_mut().zip(weights) {
                *mean += weight / heads.count as f64;
            }
        }
        mean.into_iter().map(|weight| weight as f32).collect()
    }

    #[test]
    fn equals_its_twin_through_a_scattered_page_table() {
        for gpu in gpus() {
            for (dim, count, columns, scale_up) in [
                (64, 3, 33, 1.0),
                (80, 2, 150, 1.0),
                (22, 5, 1, 1.0),
                (126, 1, 67, 12.0), // scores that would overflow without the maximum
                (2, 3, 64, 1.0),
                (128, 2, 65, 1.0),
            ] {
                let heads = Heads { count, dim };
                let (width, max_length, physical) = (heads.width(), 150, 300);
                let mut random = Random((dim + columns) as u64);
                // Lengths below, at and above the workgroup's 64 keys; two sequences; one row idle.
                let row_info = [[0, 0], [1, 62], [0, 63], [1, 64], [0, INACTIVE], [1, 149]];
                let page_table: Vec<u32> = (0..2 * max_length as u32)
                    .map(|entry| entry * 7 % physical as u32)
                    .collect();
                let mut values = |count: usize| -> Vec<f32> {
                    random.vec(count).iter().map(|v| v * scale_up).collect()
                };
                let keys = values(physical * width);
                let qkv = values(row_info.len() * 3 * width);
                let cache = KvLayer {
                    keys: gpu.storage_with("keys", &keys).expect("small"),
                    values: gpu.storage("values", 16).expect("small"),
                };
                let pages = Pages {
                    row_info: gpu.storage_with("row_info", &row_info).expect("small"),
                    page_table: gpu.storage_with("page_table", &page_table).expect("small"),
                    max_length,
                };
                let x = upload(gpu, &qkv, row_info.len(), 3 * width);
                let k = Activation::external(&cache.keys, physical, width);
                let ours = run(gpu, |program| {
                    let inputs = AttentionWeights {
                        q: View { of: &x, column: 0 },
                        k: View { of: &k, column: 0 },
                        pages: &pages,
                        columns,
                        heads,
                        scale: heads.scale(),
                    };
                    attention_weights(program, &inputs)
                });
                let mut twin = Vec::new();
                for (row, &[sequence, position]) in row_info.iter().enumerate() {
                    let length = position.wrapping_add(1) as usize; // INACTIVE sees nothing
                    let live = &page_table[sequence as usize * max_length..][..length];
                    let seen: Vec<_> = live
                        .iter()
                        .map(|&at| &keys[at as usize * width..][..width])
                        .collect();
                    let q = &qkv[row * 3 * width..][..width];
                    twin.extend(reference(q, &seen, columns, heads));
                }
                assert_close(&ours, &twin, 1e-5, &format!("{heads:?} {columns}"));
            }
        }
    }

    #[test]
    fn a_tap_has_the_weights_of_every_batch_item() {
        for gpu in gpus() {
            let heads = Heads { count: 3, dim: 10 };
            let (batch, queries, keys, width) = (3, 7, 71, heads.width());
            let mut random = Random(9);
            let (q, kv) = (
                random.vec(batch * queries * width),
                random.vec(batch * keys * 2 * width),
            );
            let query = upload(gpu, &q, batch * queries, width);
            let key_value = upload(gpu, &kv, batch * keys, 2 * width);
            let key_lengths = gpu
                .storage_with("key_lengths", &[keys as u32; 3])
                .expect("small");
            let inputs = Attention {
                q: View {
                    of: &query,
                    column: 0,
                },
                k: View {
                    of: &key_value,
                    column: width,
                },
                v: View {
                    of: &key_value,
                    column: 0,
                },
                key_lengths: &key_lengths,
                batch,
                heads,
                scale: heads.scale(),
            };
            let mut program = ProgramBuilder::new(gpu, "test").with_attention_taps();
            tap_attention(&mut program, &inputs, || "weights".into());
            let program = program.finish(&Default::default()).expect("valid");
            program.run(gpu);
            let [tap] = program.taps() else {
                panic!("one tap expected")
            };
            assert_eq!((tap.rows, tap.columns), (batch * queries, keys));
            let ours = gpu.read(&tap.buffer, tap.rows * tap.columns);
            let ours: Vec<f32> = pollster::block_on(ours).expect("readable");
            let twin: Vec<f32> = q
                .chunks(width)
                .enumerate()
                .flat_map(|(row, q)| {
                    let of_item: Vec<_> = (0..keys)
                        .map(|key| (row / queries * keys + key) * 2 * width + width)
                        .map(|at| &kv[at..][..width])
                        .collect();
                    reference(q, &of_item, keys, heads)
                })
                .collect();
            assert_close(&ours, &twin, 1e-5, "tapped weights");
        }
    }

    #[test]
    fn nothing_is_recorded_where_no_attention_is_kept() {
        let gpu = crate::kernels::testing::gpu();
        let heads = Heads { count: 1, dim: 2 };
        let x = upload(gpu, &[0.0; 6], 1, 6);
        let cache = KvLayer {
            keys: gpu.storage("keys", 16).expect("small"),
            values: gpu.storage("values", 16).expect("small"),
        };
        let pages = Pages {
            row_info: cache.keys.clone(),
            page_table: cache.keys.clone(),
            max_length: 1,
        };
        let inputs = CachedAttention {
            qkv: &x,
            cache: &cache,
            pages: &pages,
            rows_are_apart: true,
            heads,
            scale: 1.0,
        };
        let mut program = ProgramBuilder::new(gpu, "test");
        tap_attention_cached(&mut program, &inputs, 1, || unreachable!("not kept"));
        assert!(program.planned_slots().is_empty());
    }
}
