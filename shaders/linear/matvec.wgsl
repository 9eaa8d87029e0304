// matvec: y = activation(x · wᵀ + bias) [+ y] for 1 to 8 rows, for any GPU: shared memory, no subgroups, no f16 feature.
//
// Tile: 8 columns (rows of the weight) a workgroup of 64, which walks along K together; 2 KiB of workgroup memory times
// ROWS. M is at most ROWS.
// Grid: (ceil(N / 8), 1, 1).
// A sum's order depends on K alone, not on M or ROWS: a row has the same bits alone and among eight.
// Called by kernels/linear/matvec.rs for decode steps and beams, where subgroups are missing or vary in size.
// linear.wgsl has the shapes and bindings; matvec_sums.wgsl walks.
//
// Measured: 10240×2560, 4.4 GB/s of weight for 1 row, 1.7 for 8
// (llvmpipe, Mesa 22.3.6, two 2.6 GHz cores; by CPU time, on a busy machine).

#import linear/linear
#import linear/matvec_sums

const WORKGROUP_SIZE: u32 = 64u;

// The sum of each thread for each (column, row) of the tile. Its size decides how many workgroups a GPU runs at once.
override OUTPUTS: u32 = 8u * ROWS;
var<workgroup> partial: array<f32, WORKGROUP_SIZE * OUTPUTS>;

// Where a thread keeps its sum for a row and a column: shuffled so that neither writing one output from all threads nor
// reading one thread's outputs from all threads meets in a memory bank.
fn partial_at(thread: u32, row: u32, column: u32) -> u32 {
    return thread * OUTPUTS + ((column * ROWS + row) ^ (thread % min(OUTPUTS, 32u)));
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * 8u;
    add_products(column, thread, WORKGROUP_SIZE);
    for (var row = 0u; row < ROWS; row++) {
        let sums = sums_of(row);
        partial[partial_at(thread, row, 0u)] = sums.low.x;
        partial[partial_at(thread, row, 1u)] = sums.low.y;
        partial[partial_at(thread, row, 2u)] = sums.low.z;
        partial[partial_at(thread, row, 3u)] = sums.low.w;
        partial[partial_at(thread, row, 4u)] = sums.high.x;
        partial[partial_at(thread, row, 5u)] = sums.high.y;
        partial[partial_at(thread, row, 6u)] = sums.high.z;
        partial[partial_at(thread, row, 7u)] = sums.high.w;
    }
    workgroupBarrier();

    // Thread ROWS · c + r adds up column c of row r.
    if (thread < OUTPUTS) {
        let row = thread % ROWS;
        let own_column = thread / ROWS;
        var total = 0.0;
        for (var i = 0u; i < WORKGROUP_SIZE; i++) {
            total += partial[partial_at(i, row, own_column)];
        }
        store(row, column + own_column, total);
    }
}
