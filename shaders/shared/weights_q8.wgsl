// weights_q8: a weight matrix [rows, columns] as bytes with a scale a block of 32, and how kernels read it: see
// weights_f16.wgsl. columns is a multiple of 32; a value is byte · scale.
//
//   values  [rows, columns / 16]                     16 signed bytes an element, the first in the lowest bits
//   scales  [ceil(rows / 8), columns / 32]           an element has a block's scale of each of eight rows, f16
//
// one after the other in `weight`. Eight rows' scales are one load, as the kernels work on eight rows at a time.

const WEIGHT_K: u32 = 16u;

struct Eight {
    first: vec4<f32>,
    second: vec4<f32>,
}

fn four_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(word));
}

fn first_four(element: vec4<u32>) -> vec4<f32> {
    return four_bytes(element.x);
}

fn second_four(element: vec4<u32>) -> vec4<f32> {
    return four_bytes(element.y);
}

fn next_eight(element: vec4<u32>) -> vec4<u32> {
    return element.zwxy;
}

fn scales_at(rows: u32, columns: u32, row: u32, k: u32) -> u32 {
    return rows * (columns / 16u) + row / 8u * (columns / 32u) + k / 32u;
}

fn eight_scales(rows: u32, columns: u32, row: u32, k: u32) -> vec4<u32> {
    return weight[scales_at(rows, columns, row, k)];
}

fn low_scales(scales: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(scales.x), unpack2x16float(scales.y));
}

fn high_scales(scales: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(scales.z), unpack2x16float(scales.w));
}

fn eight_at(rows: u32, columns: u32, row: u32, k: u32) -> Eight {
    let pair = unpack2x16float(weight[scales_at(rows, columns, row, k)][row % 8u / 2u]);
    let scale = select(pair.x, pair.y, row % 2u == 1u);
    let at = row * (columns / 16u) + k / 16u;
    let word = k / 8u % 2u * 2u;
    return Eight(scale * four_bytes(weight[at][word]), scale * four_bytes(weight[at][word + 1u]));
}
