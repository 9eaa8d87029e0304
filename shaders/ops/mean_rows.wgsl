// mean_rows: y[g, :] = the mean of x[g, 0 .. rows, :]
//
//   x  f32 [groups, rows, width]
//   y  f32 [groups, width]
//
// Grid: x = ceil(width / 64), y = groups; one thread a value, rows added in order.
// Called for the logits of the matching head, one row a query (kernels/ops/mean_rows.rs). Its cost is the dispatch.

struct Params {
    width: u32,
    rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    let group = id.y;
    if column >= params.width {
        return;
    }
    var sum = 0.0;
    for (var row = 0u; row < params.rows; row++) {
        sum += x[(group * params.rows + row) * params.width + column];
    }
    y[group * params.width + column] = sum / f32(params.rows);
}
