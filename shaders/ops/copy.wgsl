// copy: y[i] = x[i]
//
//   x  f32 [count]     y  f32 [count]
//
// Grid: one thread a value, workgroups of 256 spread over x and y.
// Called where a result leaves its program: image tokens, projected queries, all scores, stages kept for a parity check
// (kernels/ops/copy.rs). Bandwidth-bound.

struct Params {
    count: u32,
    threads_per_row: u32, // grid.x * 256: values that one row of workgroups covers
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // [count]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // [count]

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.y * params.threads_per_row + id.x;
    if i < params.count {
        y[i] = x[i];
    }
}
