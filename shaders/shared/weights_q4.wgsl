// weights_q4: a weight matrix [rows, columns] as four bits a value with a scale a block of 32, and how kernels read it:
// see weights_f16.wgsl. columns is a multiple of 32; a value is its four bits, -8 to 7 in two's complement, · scale.
//
//   values  [rows, columns / 32]                     32 values an element, the first in the lowest bits
//   scales  [ceil(rows / 8), columns / 32]           an element has a block's scale of each of eight rows, f16
//
// one after the other in `weight`. Eight rows' scales are one load, as the kernels work on eight rows at a time.

const WEIGHT_K: u32 = 32u;

// Values are turned to floats from the top of a word, which saves moving the sign down: as 2²⁸ times what they are.
// The scales make up for it, exactly.
const TOP_FOUR: u32 = 0xf0000000u;
const UNIT: f32 = 1.0 / 268435456.0;

struct Eight {
    first: vec4<f32>,
    second: vec4<f32>,
}

fn low_half(word: u32) -> vec4<f32> {
    return vec4<f32>(
        f32(bitcast<i32>(word << 28u)),
        f32(bitcast<i32>((word << 24u) & TOP_FOUR)),
        f32(bitcast<i32>((word << 20u) & TOP_FOUR)),
        f32(bitcast<i32>((word << 16u) & TOP_FOUR)),
    );
}

fn high_half(word: u32) -> vec4<f32> {
    return vec4<f32>(
        f32(bitcast<i32>((word << 12u) & TOP_FOUR)),
        f32(bitcast<i32>((word << 8u) & TOP_FOUR)),
        f32(bitcast<i32>((word << 4u) & TOP_FOUR)),
        f32(bitcast<i32>(word & TOP_FOUR)),
    );
}

fn first_four(element: vec4<u32>) -> vec4<f32> {
    return low_half(element.x);
}

fn second_four(element: vec4<u32>) -> vec4<f32> {
    return high_half(element.x);
}

fn next_eight(element: vec4<u32>) -> vec4<u32> {
    return element.yzwx;
}

fn scales_at(rows: u32, columns: u32, row: u32, k: u32) -> u32 {
    return rows * (columns / 32u) + row / 8u * (columns / 32u) + k / 32u;
}

fn eight_scales(rows: u32, columns: u32, row: u32, k: u32) -> vec4<u32> {
    return weight[scales_at(rows, columns, row, k)];
}

fn low_scales(scales: vec4<u32>) -> vec4<f32> {
    return UNIT * vec4<f32>(unpack2x16float(scales.x), unpack2x16float(scales.y));
}

fn high_scales(scales: vec4<u32>) -> vec4<f32> {
    return UNIT * vec4<f32>(unpack2x16float(scales.z), unpack2x16float(scales.w));
}

fn eight_at(rows: u32, columns: u32, row: u32, k: u32) -> Eight {
    let pair = unpack2x16float(weight[scales_at(rows, columns, row, k)][row % 8u / 2u]);
    let scale = UNIT * select(pair.x, pair.y, row % 2u == 1u);
    let word = weight[row * (columns / 32u) + k / 32u][k / 8u % 4u];
    return Eight(scale * low_half(word), scale * high_half(word));
}
