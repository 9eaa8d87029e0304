// normalize_rows: y = x / max(‖x‖₂, 1e-12) for every row (torch.nn.functional.normalize)
//
//   x, y  f32 [rows, width]
//
// Grid: x = rows; one workgroup of 64 a row, sums in the same order for every row.
// Called for the features of the common space of images and texts (kernels/ops/normalize_rows.rs). Its cost is the dispatch.

struct Params {
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

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
    let scale = 1.0 / max(sqrt(partial[0]), 1e-12);
    for (var i = thread; i < params.width; i += THREADS) {
        y[row + i] = x[row + i] * scale;
    }
}
