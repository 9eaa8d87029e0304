// weights_f16: a weight matrix [rows, columns] as f16, and how kernels read it. Imported as
// shared/weights_{weights}: weights_q8 and weights_q4 can stand in its place. All three read `weight`, a binding of
// the kernel's, array<vec4<u32>>, and have
//   WEIGHT_K                  values of a row in an element of `weight`
//   first_four, second_four   the first eight values of an element, without their scale
//   next_eight                the element with its next eight values in front
//   eight_scales              the scales of eight rows 8g .. 8g + 7 where column k lies: two halves a component
//   low_scales, high_scales   the first and the last four of them, which values are to be multiplied by
//   eight_at                  eight values of one row from column k on, scaled

// [rows, columns / 8]: 8 halves an element.
const WEIGHT_K: u32 = 8u;

struct Eight {
    first: vec4<f32>,
    second: vec4<f32>,
}

fn first_four(element: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(element.x), unpack2x16float(element.y));
}

fn second_four(element: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(element.z), unpack2x16float(element.w));
}

fn next_eight(element: vec4<u32>) -> vec4<u32> {
    return element;
}

// Ones: the multiplications by them are dropped when the driver compiles.
fn eight_scales(rows: u32, columns: u32, row: u32, k: u32) -> vec4<u32> {
    return vec4<u32>();
}

fn low_scales(scales: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(1.0);
}

fn high_scales(scales: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(1.0);
}

fn eight_at(rows: u32, columns: u32, row: u32, k: u32) -> Eight {
    let element = weight[row * (columns / 8u) + k / 8u];
    return Eight(first_four(element), second_four(element));
}
