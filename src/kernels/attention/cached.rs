//! `attention_cached.wgsl`: causal attention over the paged KV cache, for prefill and
//! decode.

use crate::gpu::{
    Activation, Constants, Kernel, Operand, ProgramBuilder, READ, WRITE, kernels, params,
};

use super::{Heads, KvLayer, Pages, store_kv};
use crate::kernels::{is_wide, word};

kernels! {
    pub(in crate::kernels) static ATTENTION_CACHED: Kernel = Kernel::new::<Params>(
        "attention/attention_cached",
        &[READ, WRITE, WRITE, READ, READ, WRITE],
    );
}

/// One causal attention: each row over positions `0..=position` of its own sequence.
#[derive(Debug)]
pub struct CachedAttention<'a> {
    /// The fused projection `[rows, 3 · width]`: queries, keys and values.
    pub qkv: &'a Activation,
    /// The layer's cache; the rows' own keys and values go into it first.
    pub cache: &'a KvLayer,
    /// Rows, sequences and cache rows.
    pub pages: &'a Pages,
    /// Whether no row attends to another's position, as in decoding: a row's keys and values are then stored by those who
    /// read them, and no dispatch is needed for it.
    pub rows_are_apart: bool,
    /// Heads.
    pub heads: Heads,
    /// Factor on the scores.
    pub scale: f32,
}

params! {
    struct Params {
        heads: u32,
        head_dim: u32,
        qkv_stride: u32,
        max_length: u32,
        scale: f32,
    }
}

/// Groups of 32 threads that share a row and head. A GPU has far more room than decoding has rows and heads (unmeasured);
/// a prefill has rows enough. On llvmpipe one group is the fastest.
pub(in crate::kernels) fn groups(is_wide: bool, rows_are_apart: bool) -> u32 {
    match (is_wide, rows_are_apart) {
        (true, true) => 8,
        (true, false) => 4,
        (false, _) => 1,
    }
}

/// Constants of the kernel.
pub(in crate::kernels) fn constants(groups: u32, stores: bool) -> Constants {
    vec![
        ("GROUPS", f64::from(groups)),
        ("WORKGROUP_SIZE", f64::from(32 * groups)),
        ("STORES", f64::from(u8::from(stores))),
    ]
}

/// Records the attention; the result is `[rows, heads.width()]`, zero for inactive rows.
pub fn attention_cached(program: &mut ProgramBuilder, inputs: &CachedAttention) -> Activation {
    let groups = groups(is_wide(program.gpu()), inputs.rows_are_apart);
    record(program, inputs, groups)
}

fn record(program: &mut ProgramBuilder, inputs: &CachedAttention, groups: u32) -> Activation {
    let CachedAttention {
        qkv,
        cache,
        pages,
        rows_are_apart,
        heads,
        scale,
    } = *inputs;
    debug_assert!(heads.dim <= 128 && heads.dim.is_multiple_of(4));
    if !rows_are_apart {
        store_kv(program, qkv, cache, pages);
    }
    let out = program.activation(qkv.rows, heads.width());
    program.dispatch(
        &ATTENTION_CACHED,
        constants(groups, rows_are_apart),
        &Params {
            heads: word(heads.count),
            head_dim: word(heads.dim),
            qkv_stride: word(qkv.columns),
            max_length: word(pages.max_length),
            scale,
        },
        vec![
            qkv.operand(),
            Operand::from(&cache.keys),
            Operand::from(&cache.values),
            Operand::from(&pages.row_info),
            Operand::from(&pages.page_table),
            out.operand(),
        ],
        [word(qkv.rows), word(heads.count), 1],
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Gpu;
    use crate::kernels::INACTIVE;
    use crate::kernels::attention::check::reference_row;
    use crate::kernels::attention::store_kv::reference as store_reference;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    const SHAPES: [(usize, usize); 5] = [(80, 2), (12, 3), (64, 1), (124, 2), (4, 1)];

    /// Positions below, at and above one tile of 32, 64 or 256 keys; two sequences; one row idle.
    #[test]
    fn equals_its_twin_through_a_scattered_page_table() {
        let rows = [[0, 0], [1, 62], [0, 63], [1, 64], [0, INACTIVE], [1, 299]];
        for gpu in gpus() {
            for (dim, count) in SHAPES {
                let (ours, twin) = ours_and_twin(gpu, Heads { count, dim }, &rows, false);
                for (groups, ours) in ours {
                    assert_close(&ours, &twin, 1e-5, &format!("{count}x{dim} by {groups}"));
                }
            }
        }
    }

    /// Each row stores its own keys and values and finds them.
    #[test]
    fn equals_its_twin_where_rows_store_what_they_read() {
        let rows = [[3, 0], [1, 62], [0, INACTIVE], [2, 299], [0, 64]];
        for gpu in gpus() {
            for (dim, count) in SHAPES {
                let (ours, twin) = ours_and_twin(gpu, Heads { count, dim }, &rows, true);
                for (groups, ours) in ours {
                    assert_close(&ours, &twin, 1e-5, &format!("{count}x{dim} by {groups}"));
                }
            }
        }
    }

    /// What any number of groups computes, and the twin: the outputs, then keys and values as the cache holds them.
    fn ours_and_twin(
        gpu: &Gpu,
        heads: Heads,
        row_info: &[[u32; 2]],
        rows_are_apart: bool,
    ) -> (Vec<(u32, Vec<f32>)>, Vec<f32>) {
        let (width, max_length, sequences) = (heads.width(), 300, 4);
        let physical = sequences * max_length;
        let mut random = Random(heads.dim as u64);
        let page_table: Vec<u32> = (0..physical as u32)
            .map(|entry| entry * 7 % physical as u32)
            .collect();
        let (mut keys, mut values) = (random.vec(physical * width), random.vec(physical * width));
        let qkv = random.vec(row_info.len() * 3 * width);
        let pages = Pages {
            row_info: gpu.storage_with("row_info", row_info).expect("small"),
            page_table: gpu.storage_with("page_table", &page_table).expect("small"),
            max_length,
        };
        let x = upload(gpu, &qkv, row_info.len(), 3 * width);
        let mut ours = Vec::new();
        for groups in [1, 4, 8] {
            let cache = KvLayer {
                keys: gpu.storage_with("keys", &keys).expect("small"),
                values: gpu.storage_with("values", &values).expect("small"),
            };
            let inputs = CachedAttention {
                qkv: &x,
                cache: &cache,
                pages: &pages,
                rows_are_apart,
                heads,
                scale: heads.scale(),
            };
            let mut result = run(gpu, |program| record(program, &inputs, groups));
            for buffer in [&cache.keys, &cache.values] {
                let held = gpu.read::<f32>(buffer, physical * width);
                result.extend(pollster::block_on(held).expect("readable"));
            }
            ours.push((groups, result));
        }

        for (part, cache) in [(1, &mut keys), (2, &mut values)] {
            store_reference(&qkv, width, part, row_info, &page_table, max_length, cache);
        }
        let mut twin = Vec::new();
        for (row, &[sequence, position]) in row_info.iter().enumerate() {
            let length = if position == INACTIVE {
                0
            } else {
                position as usize + 1
            };
            let live = &page_table[sequence as usize * max_length..][..length];
            for head in (0..width).step_by(heads.dim) {
                let pick = |cache: &'_ [f32]| -> Vec<Vec<f32>> {
                    let at =
                        |&row: &u32| cache[row as usize * width + head..][..heads.dim].to_vec();
                    live.iter().map(at).collect()
                };
                let (k, v) = (pick(&keys), pick(&values));
                let k: Vec<&[f32]> = k.iter().map(Vec::as_slice).collect();
                let v: Vec<&[f32]> = v.iter().map(Vec::as_slice).collect();
                let query = &qkv[row * 3 * width + head..][..heads.dim];
                twin.extend(reference_row(query, &k, &v, heads.scale()));
            }
        }
        twin.extend(keys);
        twin.extend(values);
        (ours, twin)
    }
}
