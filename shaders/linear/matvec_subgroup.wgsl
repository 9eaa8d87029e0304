// matvec_subgroup: y = activation(x · wᵀ + bias) [+ y] for 1 to 8 rows: the weights are read once for all of them.
//
// Tile: COLUMNS columns (rows of the weight) a subgroup: 8, or 4, which makes twice as many subgroups of half the
// registers. The lanes walk along K together, 16 bytes of weight a lane and column.
// With SPLITS above 1 that many subgroups of a workgroup share a tile, each with its slice of K, and add up in workgroup
// memory: more loads under way where there are few columns for a large GPU. SPLITS 0: all subgroups share one tile,
// however many the driver makes of the workgroup.
// Works with any subgroup size; WORKGROUP_SIZE is a multiple of it times SPLITS, at most 8 splits. M is at most ROWS.
// Grid: (ceil(N / (COLUMNS · WORKGROUP_SIZE / subgroup size / splits)), 1, 1).
// A sum's order depends on K, the subgroup size and SPLITS, not on M, ROWS or COLUMNS: a row has the same bits alone
// and among eight.
// Called by kernels/linear/matvec_subgroup.rs for decode steps and beams, where subgroups have more than 16 lanes.
// linear.wgsl has the shapes and bindings; matvec_sums.wgsl walks.
//
// Measured: 10240×2560, 7.8 GB/s of weight for 1 row, 2.7 for 8
// (llvmpipe, Mesa 22.3.6, two 2.6 GHz cores; by CPU time, on a busy machine). Splits and 4 columns are unmeasured on a GPU.

enable subgroups;

#import linear/linear
#import linear/matvec_sums

override WORKGROUP_SIZE: u32 = 8u;
override SPLITS: u32 = 1u; // 0 to 8

// What each split's sums are, where there are several: [tile · splits + split, row, column].
const MOST_SUBGROUPS: u32 = 16u;
override SUMS: u32 = select(MOST_SUBGROUPS * ROWS * COLUMNS, 1u, SPLITS == 1u);
var<workgroup> sums: array<f32, SUMS>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
) {
    let splits = select(SPLITS, subgroups, SPLITS == 0u);
    let split = subgroup % splits;
    let column = (group.x * (subgroups / splits) + subgroup / splits) * COLUMNS;
    add_products(column, split * lanes + lane, splits * lanes);

    // Add up over the subgroup, a row at a time; lane 0 stores. (A scalar each: some drivers do not take a vector's
    // subgroupAdd apart.)
    let rows = min(ROWS, params.rows);
    for (var row = 0u; row < rows; row++) {
        let part = sums_of(row);
        let total_0 = subgroupAdd(part.low.x);
        let total_1 = subgroupAdd(part.low.y);
        let total_2 = subgroupAdd(part.low.z);
        let total_3 = subgroupAdd(part.low.w);
        var total_4 = 0.0;
        var total_5 = 0.0;
        var total_6 = 0.0;
        var total_7 = 0.0;
        if (COLUMNS > 4u) {
            total_4 = subgroupAdd(part.high.x);
            total_5 = subgroupAdd(part.high.y);
            total_6 = subgroupAdd(part.high.z);
            total_7 = subgroupAdd(part.high.w);
        }
        if (SPLITS != 1u) {
            if (lane == 0u) {
                let at = (subgroup * ROWS + row) * COLUMNS;
                sums[at] = total_0;
                sums[at + 1u] = total_1;
                sums[at + 2u] = total_2;
                sums[at + 3u] = total_3;
                if (COLUMNS > 4u) {
                    sums[at + 4u] = total_4;
                    sums[at + 5u] = total_5;
                    sums[at + 6u] = total_6;
                    sums[at + 7u] = total_7;
                }
            }
        } else if (lane == 0u) {
            store(row, column, total_0);
            store(row, column + 1u, total_1);
            store(row, column + 2u, total_2);
            store(row, column + 3u, total_3);
            if (COLUMNS > 4u) {
                store(row, column + 4u, total_4);
                store(row, column + 5u, total_5);
                store(row, column + 6u, total_6);
                store(row, column + 7u, total_7);
            }
        }
    }

    if (SPLITS != 1u) {
        workgroupBarrier();
        // The lanes of all splits of a tile share its rows · COLUMNS values.
        let first = (subgroup - split) * ROWS * COLUMNS;
        for (var at = split * lanes + lane; at < rows * COLUMNS; at += splits * lanes) {
            var sum = 0.0;
            for (var part = 0u; part < splits; part++) {
                sum += sums[first + part * ROWS * COLUMNS + at];
            }
            store(at / COLUMNS, column + at % COLUMNS, sum);
        }
    }
}
