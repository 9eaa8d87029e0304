// bench_multiply: f32 multiply-adds in registers, and nothing else: c = c * scale + shift, over and over.
//
//   y  [threads] f32, a thread's eight chains added up
//
// Grid: (threads / 64, 1, 1). Eight chains a thread that do not wait for each other, 64 multiply-adds (128 FLOPs) a step.
// (More chains than eight would spill out of a CPU's 16 vector registers.) Chain c of thread t begins at
// (t mod 64 + c) / 64.
// Called by kernels/ceilings.rs, for `bench` only: the ceiling of products in f32.
// Measured with the kernels it is the ceiling of: benches/RESULTS.md.

struct Params {
    steps: u32,
    scale: f32, // below 1: the chains stay bounded
    shift: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let scale = vec4<f32>(params.scale);
    let shift = vec4<f32>(params.shift);
    var low = (vec4<f32>(f32(thread)) + vec4<f32>(0.0, 1.0, 2.0, 3.0)) / 64.0;
    var high = (vec4<f32>(f32(thread)) + vec4<f32>(4.0, 5.0, 6.0, 7.0)) / 64.0;
    for (var step = 0u; step < params.steps; step++) {
        low = fma(low, scale, shift);
        high = fma(high, scale, shift);
        low = fma(low, scale, shift);
        high = fma(high, scale, shift);
        low = fma(low, scale, shift);
        high = fma(high, scale, shift);
        low = fma(low, scale, shift);
        high = fma(high, scale, shift);
        low = fma(low, scale, shift);
        high = fma(high, scale, shift);
        low = fma(low, scale, shift);
        high = fma(high, scale, shift);
        low = fma(low, scale, shift);
        high = fma(high, scale, shift);
        low = fma(low, scale, shift);
        high = fma(high, scale, shift);
    }
    let sum = low + high;
    y[id.x] = sum.x + sum.y + sum.z + sum.w;
}
