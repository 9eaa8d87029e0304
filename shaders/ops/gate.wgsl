// The gate of a gated feed-forward block (Shazeer, 2020): y = activate(x[:, ..width]) * x[:, width..].
//
//   x  [rows, 2 * width] f32    (read) the gate, then what it lets through
//   y  [rows, width] f32        (written)
//
// Grid: x = ceil(width / 64), y = rows; one thread a value. Any width >= 1. Called by T5. Its cost is the dispatch.

#import shared/activate

struct Params {
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.width {
        return;
    }
    let row = id.y * 2u * params.width;
    y[id.y * params.width + id.x] = activate(x[row + id.x]) * x[row + params.width + id.x];
}
