// layer_norm: y = (x - mean) / sqrt(variance + eps) * weight + bias, row by row.
//
//   x      [rows, width] f32               (read)
//   weight [width] f32, bias [width] f32
//   y      [rows, width] f32               (written; not the buffer of x)
//
// width is a multiple of 4 and at most 24 * WORKGROUP_SIZE.
// Grid: (rows, 1, 1); one workgroup a row, whose threads keep the row in registers between the passes. The variance is
// the biased one (divided by width), taken in a second pass around the mean, as PyTorch's LayerNorm.
// Called by every norm of ViT, Q-Former and OPT (kernels/ops/layer_norm.rs).
// Measured on llvmpipe, CPU time / 2 cores: 257 x 1408 by 64 threads 1.3 ms, 40 x 2560 by 128 0.45 ms,
// 257 x 128 by 8 0.19 ms. Its 256 threads on a GPU are unmeasured.

struct Params {
    width: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

const MAX_KEPT: u32 = 6u;

override WORKGROUP_SIZE: u32 = 64u; // a power of two
override KEPT: u32 = MAX_KEPT;      // vec4s a thread: width / 4 / WORKGROUP_SIZE, rounded up

var<workgroup> partial: array<f32, WORKGROUP_SIZE>;

// The sum of all parts of `value` over the workgroup, in the same order for every row.
fn workgroup_sum(value: vec4<f32>, thread: u32) -> f32 {
    partial[thread] = (value.x + value.y) + (value.z + value.w);
    workgroupBarrier();
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        if thread < half {
            partial[thread] += partial[thread + half];
        }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let columns = params.width / 4u;
    let row = group.x * columns;
    var kept: array<vec4<f32>, MAX_KEPT>;

    var sums = vec4<f32>();
    for (var i = 0u; i < KEPT; i++) {
        let column = thread + i * WORKGROUP_SIZE;
        if column < columns {
            kept[i] = x[row + column];
            sums += kept[i];
        }
    }
    let mean = workgroup_sum(sums, thread) / f32(params.width);

    var squares = vec4<f32>();
    for (var i = 0u; i < KEPT; i++) {
        if thread + i * WORKGROUP_SIZE < columns {
            kept[i] -= mean;
            squares += kept[i] * kept[i];
        }
    }
    let variance = workgroup_sum(squares, thread) / f32(params.width);
    let scale = 1.0 / sqrt(variance + params.eps);

    for (var i = 0u; i < KEPT; i++) {
        let column = thread + i * WORKGROUP_SIZE;
        if column < columns {
            y[row + column] = kept[i] * scale * weight[column] + bias[column];
        }
    }
}
