// bench_read: reads a buffer once, as a matrix–vector kernel reads its weights, and does as little as can be with it.
//
//   x     [rows, units] of 16 bytes, rows a multiple of 8     (read)
//   sums  [rows / 8 * 64] u32, a thread's sum of all it read, modulo 2^32     (written)
//
// Grid: (rows / 8, 1, 1), workgroups of 64: each reads eight rows side by side, the threads walking along them together,
// eight loads of 16 bytes a thread under way at a time. The sums are 1/128 of what is read where rows have 256 units.
// Called by kernels/ceilings.rs, for `bench` only: the ceiling of decode.
// Measured with the kernels it is the ceiling of: benches/RESULTS.md.

struct Params {
    units: u32, // of a row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<u32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let units = params.units;
    let first = group.x * 8u * units;
    var sum = vec4<u32>();
    for (var unit = thread; unit < units; unit += 64u) {
        let at = first + unit;
        let x_0 = x[at];
        let x_1 = x[at + units];
        let x_2 = x[at + 2u * units];
        let x_3 = x[at + 3u * units];
        let x_4 = x[at + 4u * units];
        let x_5 = x[at + 5u * units];
        let x_6 = x[at + 6u * units];
        let x_7 = x[at + 7u * units];
        sum += ((x_0 + x_1) + (x_2 + x_3)) + ((x_4 + x_5) + (x_6 + x_7));
    }
    sums[group.x * 64u + thread] = sum.x + sum.y + sum.z + sum.w;
}
