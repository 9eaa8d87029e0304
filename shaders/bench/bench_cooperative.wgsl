// bench_cooperative: multiplies of cooperative matrices, f16 into f32, and nothing else.
//
//   x  [6, SIZE, SIZE] f16: two left and four right operands, row-major     (read)
//   y  [subgroups, SIZE, SIZE] f32: the eight products, added up     (written)
//
// Grid: (workgroups, 1, 1) of WORKGROUP_SIZE invocations, a multiple of the subgroup size. Each subgroup keeps eight
// accumulators that do not wait for each other: 8 * 2 * SIZE^3 FLOPs a step.
// Called by kernels/ceilings.rs, for `bench` only: the ceiling of products on cooperative matrices.
// Not measured yet: naga validates it in a test, no adapter with cooperative matrices was at hand.

enable subgroups;

#import shared/fragments_{size}

struct Params {
    steps: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f16>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

override WORKGROUP_SIZE: u32 = 128u;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    const AREA = SIZE * SIZE;
    let left_0 = coopLoadT<FragmentA>(&x[0], SIZE);
    let left_1 = coopLoadT<FragmentA>(&x[AREA], SIZE);
    let right_0 = coopLoadT<FragmentB>(&x[2u * AREA], SIZE);
    let right_1 = coopLoadT<FragmentB>(&x[3u * AREA], SIZE);
    let right_2 = coopLoadT<FragmentB>(&x[4u * AREA], SIZE);
    let right_3 = coopLoadT<FragmentB>(&x[5u * AREA], SIZE);
    var sum_0 = FragmentC();
    var sum_1 = FragmentC();
    var sum_2 = FragmentC();
    var sum_3 = FragmentC();
    var sum_4 = FragmentC();
    var sum_5 = FragmentC();
    var sum_6 = FragmentC();
    var sum_7 = FragmentC();
    for (var step = 0u; step < params.steps; step++) {
        sum_0 = coopMultiplyAdd(left_0, right_0, sum_0);
        sum_1 = coopMultiplyAdd(left_0, right_1, sum_1);
        sum_2 = coopMultiplyAdd(left_0, right_2, sum_2);
        sum_3 = coopMultiplyAdd(left_0, right_3, sum_3);
        sum_4 = coopMultiplyAdd(left_1, right_0, sum_4);
        sum_5 = coopMultiplyAdd(left_1, right_1, sum_5);
        sum_6 = coopMultiplyAdd(left_1, right_2, sum_6);
        sum_7 = coopMultiplyAdd(left_1, right_3, sum_7);
    }
    // Bound to names: naga evaluates a store's arguments too late otherwise.
    let total = ((sum_0 + sum_1) + (sum_2 + sum_3)) + ((sum_4 + sum_5) + (sum_6 + sum_7));
    let at = (group.x * subgroups + subgroup) * AREA;
    coopStoreT(total, &y[at], SIZE);
}
