// bench_copy: y = x, 16 bytes a thread: what a kernel that reads and writes as much can reach.
//
//   x  [units] of 16 bytes     y  [units] of 16 bytes
//
// Grid: one thread a unit, workgroups of 256 spread over x and y.
// Called by kernels/ceilings.rs, for `bench` only.
// Measured with the kernels it is the ceiling of: benches/RESULTS.md.

struct Params {
    units: u32,
    threads_per_row: u32, // grid.x * 256
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.y * params.threads_per_row + id.x;
    if i < params.units {
        y[i] = x[i];
    }
}
