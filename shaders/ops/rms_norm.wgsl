// Root-mean-square normalisation over rows: y = x / sqrt(mean(x^2) + eps) * weight * factor.
//
//   x      [rows, width] f32    (read)
//   weight [width] f32
//   y      [rows, width] f32    (written; not the buffer of x)
//
// Grid: (rows, 1, 1); one workgroup of 64 a row. Any width >= 1. No mean is taken away and nothing added (Zhang &
// Sennrich, 2019). factor is 1, but for the output of T5 before v1.1. Called by the norms
// of T5 whose rows rms_norm_vec4.wgsl cannot keep.
// Its cost is that of layer_norm.wgsl less one pass over the row.

struct Params {
    width: u32,
    eps: f32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

const THREADS: u32 = 64u;

var<workgroup> partial: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x * params.width;
    var squares = 0.0;
    for (var i = thread; i < params.width; i += THREADS) {
        squares += x[row + i] * x[row + i];
    }
    partial[thread] = squares;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if thread < half {
            partial[thread] += partial[thread + half];
        }
        workgroupBarrier();
    }
    let scale = params.factor / sqrt(partial[0] / f32(params.width) + params.eps);
    for (var i = thread; i < params.width; i += THREADS) {
        y[row + i] = x[row + i] * scale * weight[i];
    }
}
