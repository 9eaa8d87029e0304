// rms_norm: root-mean-square normalisation, y = x / sqrt(mean(x^2) + eps) * weight * factor, row by row: no mean is taken
// away and nothing added (Zhang & Sennrich, 2019). factor is 1, but for the output of T5 before v1.1.
//
//   x      [rows, width] f32    (read)
//   weight [width] f32
//   y      [rows, width] f32    (written; not the buffer of x)
//
// width is a multiple of 4 and at most 24 * WORKGROUP_SIZE.
// Grid: (rows, 1, 1); one workgroup a row, whose threads keep the row in registers. Called by every norm of T5
// (kernels/ops/rms_norm.rs).
// Measured on llvmpipe, CPU time / 2 cores: 32 x 2048 by 128 threads 0.25 ms.

struct Params {
    width: u32,
    eps: f32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

const MAX_KEPT: u32 = 6u;

override WORKGROUP_SIZE: u32 = 64u; // a power of two
override KEPT: u32 = MAX_KEPT;      // vec4s a thread: width / 4 / WORKGROUP_SIZE, rounded up

var<workgroup> partial: array<f32, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let columns = params.width / 4u;
    let row = group.x * columns;
    var kept: array<vec4<f32>, MAX_KEPT>;

    var squares = vec4<f32>();
    for (var i = 0u; i < KEPT; i++) {
        let column = thread + i * WORKGROUP_SIZE;
        if column < columns {
            kept[i] = x[row + column];
            squares += kept[i] * kept[i];
        }
    }
    partial[thread] = (squares.x + squares.y) + (squares.z + squares.w);
    workgroupBarrier();
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        if thread < half {
            partial[thread] += partial[thread + half];
        }
        workgroupBarrier();
    }
    let scale = params.factor / sqrt(partial[0] / f32(params.width) + params.eps);

    for (var i = 0u; i < KEPT; i++) {
        let column = thread + i * WORKGROUP_SIZE;
        if column < columns {
            y[row + column] = kept[i] * scale * weight[column];
        }
    }
}
