// matmul_register: y = activation(x · wᵀ + bias) [+ y] as an outer product in registers: no shared memory, no barriers.
//
// Tile: ROWS rows × (COLUMNS · WORKGROUP_SIZE) columns a workgroup, 8 of K a step. A lane owns COLUMNS columns side by
// side and all ROWS rows of them; x comes in once a subgroup, a vec4 a lane, and is handed round with subgroupBroadcast.
// Works with any subgroup of 8 lanes or more (8, 16, 32, 64); WORKGROUP_SIZE is a multiple of the subgroup size.
// A step costs about ROWS + 8 on llvmpipe, so ROWS there is what makes ceil(M / ROWS) · (ROWS + 8) smallest.
// Grid: (ceil(N / (COLUMNS · WORKGROUP_SIZE)), ceil(M / ROWS), 1).
// Every sum runs over K in the same order whatever M, ROWS, COLUMNS and the subgroup size are: a row's result has the
// same bits alone and in a batch, in prefill and in decode (the kernel test checks it on each adapter).
// Called by kernels/linear/register.rs for any number of rows where subgroups have at most 16 lanes.
// linear.wgsl has the shapes and bindings.
//
// Measured: 256×1024×1024, ROWS 32: 58 GFLOP/s, matmul_tile beside it 7.6; 10240×2560: 7.7 GB/s of weight for 1 row,
// 4.8 for 8; 1 row in q8 1.5 times as fast, in q4 2.1 times (llvmpipe, Mesa 22.3.6, two 2.6 GHz cores; by CPU time, on a busy machine).

enable subgroups;

#import linear/linear
#import linear/columns

override ROWS: u32 = 16u;          // 1 to 32
override WORKGROUP_SIZE: u32 = 8u;

// One row of a tile.
fn store_row(row: u32, column: u32, low: vec4<f32>, high: vec4<f32>) {
    store(row, column, low.x);
    store(row, column + 1u, low.y);
    store(row, column + 2u, low.z);
    store(row, column + 3u, low.w);
    if (COLUMNS > 4u) {
        store(row, column + 4u, high.x);
        store(row, column + 5u, high.y);
        store(row, column + 6u, high.z);
        store(row, column + 7u, high.w);
    }
}

// low_i_j: columns 0 .. 3 of row 4i + j of the tile; high_i_j: columns 4 .. 7.
// x_at_i: where the lane's vec4 of x lies for rows 4i .. 4i + 3.
#for i in 0..8
var<private> x_at_$i: u32;
#for j in 0..4
var<private> low_$i_$j: vec4<f32>; var<private> high_$i_$j: vec4<f32>;
#end
#end

// Adds what eight values of K give; x has them from vec4 `unit` on.
fn add_eight(w: EightOfK, unit: u32, scale: Columns) {
    // Taken apart once: with w handed on for each row, the first caption of a warm start takes 40 ms more on llvmpipe.
    let low_a = w.low_a;
    let low_b = w.low_b;
    let high_a = w.high_a;
    let high_b = w.high_b;
#for i in 0..8
    let x_$i = x[x_at_$i + unit];
#end
#for i in 0..8
#for j in 0..4
    if (ROWS > 4u * $iu + $ju) {
        let a = subgroupBroadcast(x_$i, 2u * $ju);
        let b = subgroupBroadcast(x_$i, 2u * $ju + 1u);
        low_$i_$j += scale.low * (low_a * a + low_b * b);
        high_$i_$j += scale.high * (high_a * a + high_b * b);
    }
#end
#end
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) tile: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let row_base = tile.y * ROWS;
    let column = (tile.x * WORKGROUP_SIZE + thread) * COLUMNS; // and the next ones
    let last_row = params.rows - 1u;

    begin_columns(column);
    let x_stride = params.in_features / 4u;
    // Eight lanes hold four rows × eight of K: lane 2r the first four of K of row r, lane 2r + 1 the other four.
    // A subgroup of more lanes holds copies. Rows past the end read the last row and are not stored.
    // (What only rows beyond ROWS would use is dead code, and drivers drop it.)
    let x_row = row_base + lane % 8u / 2u;
    let x_part = lane % 2u;
#for i in 0..8
    x_at_$i = min(x_row + 4u * $iu, last_row) * x_stride + x_part;
#end

    let elements = params.in_features / WEIGHT_K;
    for (var element = 0u; element < elements; element++) {
        var e = elements_at(element);
        let scale = column_scales(column, element);
        // Not a loop: it would carry all sums, which cost half as much again on llvmpipe.
        let unit = element * (WEIGHT_K / 4u);
        add_eight(eight_of_k(e), unit, scale);
        if (WEIGHT_K > 8u) {
            e = next_eights(e);
            add_eight(eight_of_k(e), unit + 2u, scale);
        }
        if (WEIGHT_K > 16u) {
            e = next_eights(e);
            add_eight(eight_of_k(e), unit + 4u, scale);
            e = next_eights(e);
            add_eight(eight_of_k(e), unit + 6u, scale);
        }
    }

    // One copy of the epilogue for all rows: written out for each of them, it would be most of the driver's compile time.
    let rows = min(ROWS, params.rows - row_base);
    for (var row = 0u; row < rows; row++) {
        var low = low_0_0;
        var high = high_0_0;
#for i in 0..8
#for j in 0..4
        if (ROWS > 4u * $iu + $ju && row == 4u * $iu + $ju) { low = low_$i_$j; high = high_$i_$j; }
#end
#end
        store_row(row_base + row, column, low, high);
    }
}
