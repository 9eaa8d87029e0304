// Layer normalisation: y = (x - mean) / sqrt(variance + eps) * weight + bias, row by row.
//
//   x      [rows, width] f32               (read)
//   weight [width] f32, bias [width] f32
//   y      [rows, width] f32               (written; not the buffer of x)
//
// Grid: (rows, 1, 1); one workgroup of 64 a row. Any width >= 1. The variance is the biased one
// (divided by width), taken in a second pass around the mean, as PyTorch's LayerNorm.
// Called by the norms of ViT, Q-Former and OPT whose rows layer_norm_vec4.wgsl cannot keep (kernels/layer_norm.rs).
// Measured: 257 x 1408 on llvmpipe, CPU time / 2 cores: 2.8 ms; 40 x 2560: 0.7 ms.

struct Params {
    width: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const THREADS: u32 = 64u;

var<workgroup> partial: array<f32, THREADS>;

// The sum of `value` over the workgroup, in the same order for every row.
fn workgroup_sum(value: f32, thread: u32) -> f32 {
    partial[thread] = value;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if thread < half {
            partial[thread] += partial[thread + half];
        }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x * params.width;

    var sum = 0.0;
    for (var i = thread; i < params.width; i += THREADS) {
        sum += x[row + i];
    }
    let mean = workgroup_sum(sum, thread) / f32(params.width);

    var squares = 0.0;
    for (var i = thread; i < params.width; i += THREADS) {
        let centred = x[row + i] - mean;
        squares += centred * centred;
    }
    let variance = workgroup_sum(squares, thread) / f32(params.width);
    let scale = 1.0 / sqrt(variance + params.eps);

    for (var i = thread; i < params.width; i += THREADS) {
        y[row + i] = (x[row + i] - mean) * scale * weight[i] + bias[i];
    }
}
