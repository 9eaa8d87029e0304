//! `attention_cached.wgsl`, `attention_cached_vec4.wgsl`: causal attention over the paged KV cache, for prefill and
//! decode.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE};

use super::{Heads, KvLayer, Pages, word};

pub(super) static ATTENTION_CACHED: Kernel = Kernel {
    name: "attention_cached",
    wgsl: &[include_str!("../../shaders/attention_cached.wgsl")],
    bindings: &[READ, READ, READ, READ, READ, WRITE],
};

pub(super) static ATTENTION_CACHED_VEC4: Kernel = Kernel {
    name: "attention_cached_vec4",
    wgsl: &[include_str!("../../shaders/attention_cached_vec4.wgsl")],
    bindings: &[READ, READ, READ, READ, READ, WRITE],
};

/// One causal attention: each row over positions `0..=position` of its own sequence.
#[derive(Debug)]
pub struct CachedAttention<'a> {
    /// The fused projection `[rows, 3 · width]`; its first `width` columns are the queries.
    pub qkv: &'a Activation,
    /// The layer's cache, the rows' own keys and values stored already.
    pub cache: &'a KvLayer,
    /// Rows, sequences and cache rows.
    pub pages: &'a Pages,
    /// Heads.
    pub heads: Heads,
    /// Factor on the scores.
    pub scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    heads: u32,
    head_dim: u32,
    q_stride: u32,
    q_offset: u32,
    max_length: u32,
    cache_offset: u32,
    scale: f32,
}

/// Groups of threads that share a row and head where subgroups are wide.
const WIDE_GROUPS: u32 = 4;

/// Records the attention; the result is `[rows, heads.width()]`, zero for inactive rows.
pub fn attention_cached(program: &mut ProgramBuilder, inputs: &CachedAttention) -> Activation {
    let groups = match program.gpu().capabilities().subgroups {
        Some((32.., _)) => WIDE_GROUPS,
        _ => 1,
    };
    record(program, inputs, groups)
}

fn record(program: &mut ProgramBuilder, inputs: &CachedAttention, groups: u32) -> Activation {
    let CachedAttention {
        qkv,
        cache,
        pages,
        heads,
        scale,
    } = *inputs;
    debug_assert!(heads.dim <= 128);
    let out = program.activation(qkv.rows, heads.width());
    let (kernel, constants) = if heads.dim.is_multiple_of(4) {
        let constants = vec![
            ("GROUPS", f64::from(groups)),
            ("WORKGROUP_SIZE", f64::from(32 * groups)),
        ];
        (&ATTENTION_CACHED_VEC4, constants)
    } else {
        (&ATTENTION_CACHED, vec![])
    };
    program.dispatch(
        kernel,
        constants,
        &Params {
            rows: word(qkv.rows),
            heads: word(heads.count),
            head_dim: word(heads.dim),
            q_stride: word(qkv.columns),
            q_offset: 0,
            max_length: word(pages.max_length),
            cache_offset: 0,
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
    use crate::kernels::INACTIVE;
    use crate::kernels::attention::reference_row;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    #[test]
    fn equals_its_twin_through_a_scattered_page_table() {
        for gpu in gpus() {
            for (dim, count) in [(80, 2), (12, 3), (64, 1), (126, 2), (2, 1)] {
                let heads = Heads { count, dim };
                let (width, max_length, physical) = (heads.width(), 150, 300);
                let mut random = Random(dim as u64);
                // Positions below, at and above one tile of 64 keys; two sequences; one row idle.
                let row_info = [[0, 0], [1, 62], [0, 63], [1, 64], [0, INACTIVE], [1, 149]];
                let page_table: Vec<u32> = (0..2 * max_length as u32)
                    .map(|entry| entry * 7 % physical as u32)
                    .collect();
                let (keys, values) = (random.vec(physical * width), random.vec(physical * width));
                let qkv = random.vec(row_info.len() * 3 * width);
                let cache = KvLayer {
                    keys: gpu.storage_with("keys", &keys).expect("small"),
                    values: gpu.storage_with("values", &values).expect("small"),
                };
                let pages = Pages {
                    row_info: gpu.storage_with("row_info", &row_info).expect("small"),
                    page_table: gpu.storage_with("page_table", &page_table).expect("small"),
                    max_length,
                };
                let x = upload(gpu, &qkv, row_info.len(), 3 * width);
                let inputs = CachedAttention {
                    qkv: &x,
                    cache: &cache,
                    pages: &pages,
                    heads,
                    scale: heads.scale(),
                };
                let [ours, in_groups] = [1, WIDE_GROUPS]
                    .map(|groups| run(gpu, |program| record(program, &inputs, groups)));
                let mut twin = Vec::new();
                for (row, &[sequence, position]) in row_info.iter().enumerate() {
                    let length = if position == INACTIVE {
                        0
                    } else {
                        position as usize + 1
                    };
                    let live = &page_table[sequence as usize * max_length..][..length];
                    for head in (0..width).step_by(dim) {
                        let pick = |cache: &'_ [f32], physical: u32| {
                            cache[physical as usize * width + head..][..dim].to_vec()
                        };
                        let k: Vec<_> = live.iter().map(|&at| pick(&keys, at)).collect();
                        let v: Vec<_> = live.iter().map(|&at| pick(&values, at)).collect();
                        let k: Vec<&[f32]> = k.iter().map(Vec::as_slice).collect();
                        let v: Vec<&[f32]> = v.iter().map(Vec::as_slice).collect();
                        twin.extend(reference_row(
                            &qkv[row * 3 * width + head..][..dim],
                            &k,
                            &v,
                            heads.scale(),
                        ));
                    }
                }
                assert_close(&ours, &twin, 1e-5, &format!("{heads:?}"));
                assert_close(&in_groups, &twin, 1e-5, &format!("{heads:?} in groups"));
            }
        }
    }
}
