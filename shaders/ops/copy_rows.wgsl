// copy_rows: the same rows of every group: y[g, y_first + i, :] = x[g, x_first + i, :] for i < count
//
//   x  f32 [groups, x_rows, width]
//   y  f32 [groups, y_rows, width], other rows of y stay
//
// Grid: x = ceil(width / 64), y = count, z = groups; one thread a value.
// Called by the Q-Former where queries and text tokens of a sequence meet and part, and for a text's first token
// (kernels/ops/copy_rows.rs). A few MiB a call at most: its cost is the dispatch.

struct Params {
    width: u32,
    x_rows: u32,
    x_first: u32,
    y_rows: u32,
    y_first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    if column < params.width {
        let x_row = id.z * params.x_rows + params.x_first + id.y;
        let y_row = id.z * params.y_rows + params.y_first + id.y;
        y[y_row * params.width + column] = x[x_row * params.width + column];
    }
}
