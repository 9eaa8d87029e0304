// linear: what the kernels of linear layers share: parameters, bindings, the end of a sum. Imported by
// matmul_tile, matmul_register, matmul_cooperative, matvec and matvec_subgroup, which all compute
//
//   y = activate(x · wᵀ + bias) [+ y]
//
// x      [M, K] f32                weight [N, K], PyTorch Linear layout, elements by shared/weights_{f16,q8,q4}
// bias   [bias_offset + N] f32     y      [M, y_stride] f32, columns y_offset .. y_offset + N are written
// K is a multiple of 8, of 32 where weights are quantised; M and N are any; nothing outside the shapes is read or written. Sums are f32.

#import shared/activate

struct Params {
    rows: u32,         // M
    out_features: u32, // N
    in_features: u32,  // K
    y_stride: u32,
    y_offset: u32,
    bias_offset: u32,
    range: u32,        // of K that a workgroup takes where several share a result: matmul_cooperative alone
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;       // [M, K / 4]
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;  // [N, K / WEIGHT_K], scales
@group(0) @binding(3) var<storage, read> bias: array<f32>;          // [bias_offset + N]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;       // [M, y_stride]

override HAS_BIAS: bool = false;
override ACCUMULATE: bool = false; // add to what y holds: a residual, in place

// Ends the sum of one value: bias, activation, residual. Rows and columns past the end are left out.
fn store(row: u32, column: u32, sum: f32) {
    if (row >= params.rows || column >= params.out_features) {
        return;
    }
    var v = sum;
    if (HAS_BIAS) {
        v += bias[params.bias_offset + column];
    }
    v = activate(v);
    let at = row * params.y_stride + params.y_offset + column;
    if (ACCUMULATE) {
        v += y[at];
    }
    y[at] = v;
}
