// add_ranges: y = activation(sum over ranges of K + bias) [+ y]: ends products whose K several workgroups share.
//
//   x  [ranges, M, y's columns rounded up to a multiple of four] f32: what matmul_cooperative leaves of each range
//
// A sum runs over the ranges in their order. Four columns a thread, columns along the lanes.
// Grid: (ceil(N / 4 / 64), M, 1) of 64.
// Called by kernels/linear/passes.rs.
// linear.wgsl's `in_features` is the number of ranges, its `weight` is not read.
//
// Unmeasured on a GPU.

#import linear/linear

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) thread: vec3<u32>) {
    let column = 4u * thread.x;
    let row = thread.y;
    if (column >= params.out_features) {
        return;
    }
    let stride = (params.out_features + 3u) / 4u;
    var sum = vec4<f32>();
    for (var range = 0u; range < params.in_features; range++) {
        sum += x[(range * params.rows + row) * stride + thread.x];
    }
    store(row, column, sum.x);
    store(row, column + 1u, sum.y);
    store(row, column + 2u, sum.z);
    store(row, column + 3u, sum.w);
}
