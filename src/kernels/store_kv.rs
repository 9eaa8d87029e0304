//! `store_kv.wgsl`: writes new tokens' keys and values into the paged cache.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, WRITE, params};

use super::word;

pub(super) static STORE_KV: Kernel =
    Kernel::new::<Params>("attention/store_kv", &[READ, WRITE, WRITE, READ, READ]);

/// One layer's cache.
#[derive(Debug, Clone)]
pub struct KvLayer {
    /// Keys, f32 `[physical rows, width]`.
    pub keys: wgpu::Buffer,
    /// Values, f32 `[physical rows, width]`.
    pub values: wgpu::Buffer,
}

/// Where rows stand in their sequences, and where those sequences' cache rows are.
#[derive(Debug, Clone)]
pub struct Pages {
    /// `(sequence, position)` of each row, u32; position [`super::INACTIVE`] for a row that holds nothing.
    pub row_info: wgpu::Buffer,
    /// Physical cache row of `(sequence, position)`, u32 `[sequences, max_length]`.
    pub page_table: wgpu::Buffer,
    /// Columns of the page table.
    pub max_length: usize,
}

params! {
    struct Params {
        width: u32,
        qkv_stride: u32,
        k_offset: u32,
        v_offset: u32,
        max_length: u32,
    }
}

/// Copies columns `width..2·width` (keys) and `2·width..` (values) of `qkv` `[rows, 3·width]` into the cache.
pub fn store_kv(program: &mut ProgramBuilder, qkv: &Activation, cache: &KvLayer, pages: &Pages) {
    let width = qkv.columns / 3;
    record(program, qkv, [width, 2 * width], width, cache, pages);
}

/// Copies columns `..width` (keys) and `width..` (values) of `kv` `[rows, 2·width]` into the cache.
pub fn store_cross_kv(
    program: &mut ProgramBuilder,
    kv: &Activation,
    cache: &KvLayer,
    pages: &Pages,
) {
    let width = kv.columns / 2;
    record(program, kv, [0, width], width, cache, pages);
}

/// `offsets`: first columns of keys and values.
fn record(
    program: &mut ProgramBuilder,
    source: &Activation,
    offsets: [usize; 2],
    width: usize,
    cache: &KvLayer,
    pages: &Pages,
) {
    program.dispatch(
        &STORE_KV,
        vec![],
        &Params {
            width: word(width),
            qkv_stride: word(source.columns),
            k_offset: word(offsets[0]),
            v_offset: word(offsets[1]),
            max_length: word(pages.max_length),
        },
        vec![
            source.operand(),
            Operand::from(&cache.keys),
            Operand::from(&cache.values),
            Operand::from(&pages.row_info),
            Operand::from(&pages.page_table),
        ],
        [word(source.rows), 1, 1],
    );
}

/// Plain-Rust twin of [`store_kv`] for `part` 1 (keys) or 2 (values).
#[cfg(test)]
pub(super) fn reference(
    qkv: &[f32],
    width: usize,
    part: usize,
    row_info: &[[u32; 2]],
    page_table: &[u32],
    max_length: usize,
    cache: &mut [f32],
) {
    for (row, &[sequence, position]) in row_info.iter().enumerate() {
        if position == super::INACTIVE {
            continue;
        }
        let physical = page_table[sequence as usize * max_length + position as usize] as usize;
        cache[physical * width..][..width]
            .copy_from_slice(&qkv[row * 3 * width + part * width..][..width]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::INACTIVE;
    use crate::kernels::testing::{Random, gpus, run, upload};

    #[test]
    fn equals_its_twin_and_leaves_other_rows() {
        for gpu in gpus() {
            let (width, max_length, physical) = (70, 5, 12);
            let mut random = Random(9);
            let row_info = [[1, 0], [0, 4], [0, INACTIVE], [1, 3]];
            // Physical rows in no order, as beams leave them.
            let page_table: Vec<u32> = vec![3, 9, 1, 0, 11, 7, 2, 5, 8, 4];
            let qkv = random.vec(4 * 3 * width);
            let old = random.vec(physical * width);
            let cache = KvLayer {
                keys: gpu.storage_with("keys", &old).expect("small"),
                values: gpu.storage_with("values", &old).expect("small"),
            };
            let pages = Pages {
                row_info: gpu.storage_with("row_info", &row_info).expect("small"),
                page_table: gpu.storage_with("page_table", &page_table).expect("small"),
                max_length,
            };
            let x = upload(gpu, &qkv, 4, 3 * width);
            for (part, buffer) in [(1, &cache.keys), (2, &cache.values)] {
                let ours = run(gpu, |program| {
                    store_kv(program, &x, &cache, &pages);
                    Activation::external(buffer, physical, width)
                });
                let mut twin = old.clone();
                reference(
                    &qkv,
                    width,
                    part,
                    &row_info,
                    &page_table,
                    max_length,
                    &mut twin,
                );
                assert_eq!(ours, twin);
            }
        }
    }
}
