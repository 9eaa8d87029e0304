// round_to_f16: y = x rounded to f16, values beyond its range to the largest.
//
//   x  [eights, 8] f32     y  [eights, 8] f16
//
// Grid: any number of workgroups of 256 in x; they take turns.
// Called by kernels/linear/passes.rs before matmul_cooperative, where its workgroups would each convert the same rows again.
//
// Unmeasured on a GPU.

#import shared/halves

struct Params {
    eights: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<Halves>;

const WORKGROUP_SIZE: u32 = 256u;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(global_invocation_id) thread: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var at = thread.x; at < params.eights; at += groups.x * WORKGROUP_SIZE) {
        y[at] = Halves(to_f16(x[2u * at]), to_f16(x[2u * at + 1u]));
    }
}
