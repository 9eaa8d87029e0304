// gather_rows: y[i, :] = x[index[i], :]
//
//   x      f32 [any, width]
//   index  u32 [rows]
//   y      f32 [rows, width]
//
// Grid: x = ceil(width / 64), y = rows; one thread a value.
// Called for the learned queries (one copy an image) and for the last hidden state of each prompt
// (kernels/ops/gather_rows.rs). A few KiB a call: its cost is the dispatch.

struct Params {
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // [any, width]
@group(0) @binding(2) var<storage, read> index: array<u32>;    // [rows]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // [rows, width]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    let row = id.y;
    if column < params.width {
        y[row * params.width + column] = x[index[row] * params.width + column];
    }
}
