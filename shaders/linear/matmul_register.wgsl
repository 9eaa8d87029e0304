// matmul_register: y = activation(x · wᵀ + bias) [+ y] as an outer product in registers: no shared memory, no barriers.
//
// Tile: ROWS rows × (COLUMNS · WORKGROUP_SIZE) columns a workgroup, 8 of K a step. A lane owns COLUMNS columns side by
// side and all ROWS rows of them; x comes in once a subgroup, a vec4 a lane, and is handed round with subgroupBroadcast.
// Works with any subgroup of 8 lanes or more (8, 16, 32, 64); WORKGROUP_SIZE is a multiple of the subgroup size.
// A step costs about ROWS + 8 on llvmpipe, so ROWS there is what makes ceil(M / ROWS) · (ROWS + 8) smallest.
// Grid: (ceil(N / (COLUMNS · WORKGROUP_SIZE)), ceil(M / ROWS), 1).
// Every sum runs over K in the same order whatever M, ROWS, COLUMNS and the subgroup size are: a row's result has the
// same bits alone and in a batch, in prefill and in decode (the kernel test checks it on each adapter).
// Called by kernels/linear.rs for any number of rows where subgroups have at most 16 lanes.
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

// low_r: columns 0 .. 3 of row r of the tile; high_r: columns 4 .. 7.
var<private> low_0: vec4<f32>; var<private> high_0: vec4<f32>;
var<private> low_1: vec4<f32>; var<private> high_1: vec4<f32>;
var<private> low_2: vec4<f32>; var<private> high_2: vec4<f32>;
var<private> low_3: vec4<f32>; var<private> high_3: vec4<f32>;
var<private> low_4: vec4<f32>; var<private> high_4: vec4<f32>;
var<private> low_5: vec4<f32>; var<private> high_5: vec4<f32>;
var<private> low_6: vec4<f32>; var<private> high_6: vec4<f32>;
var<private> low_7: vec4<f32>; var<private> high_7: vec4<f32>;
var<private> low_8: vec4<f32>; var<private> high_8: vec4<f32>;
var<private> low_9: vec4<f32>; var<private> high_9: vec4<f32>;
var<private> low_10: vec4<f32>; var<private> high_10: vec4<f32>;
var<private> low_11: vec4<f32>; var<private> high_11: vec4<f32>;
var<private> low_12: vec4<f32>; var<private> high_12: vec4<f32>;
var<private> low_13: vec4<f32>; var<private> high_13: vec4<f32>;
var<private> low_14: vec4<f32>; var<private> high_14: vec4<f32>;
var<private> low_15: vec4<f32>; var<private> high_15: vec4<f32>;
var<private> low_16: vec4<f32>; var<private> high_16: vec4<f32>;
var<private> low_17: vec4<f32>; var<private> high_17: vec4<f32>;
var<private> low_18: vec4<f32>; var<private> high_18: vec4<f32>;
var<private> low_19: vec4<f32>; var<private> high_19: vec4<f32>;
var<private> low_20: vec4<f32>; var<private> high_20: vec4<f32>;
var<private> low_21: vec4<f32>; var<private> high_21: vec4<f32>;
var<private> low_22: vec4<f32>; var<private> high_22: vec4<f32>;
var<private> low_23: vec4<f32>; var<private> high_23: vec4<f32>;
var<private> low_24: vec4<f32>; var<private> high_24: vec4<f32>;
var<private> low_25: vec4<f32>; var<private> high_25: vec4<f32>;
var<private> low_26: vec4<f32>; var<private> high_26: vec4<f32>;
var<private> low_27: vec4<f32>; var<private> high_27: vec4<f32>;
var<private> low_28: vec4<f32>; var<private> high_28: vec4<f32>;
var<private> low_29: vec4<f32>; var<private> high_29: vec4<f32>;
var<private> low_30: vec4<f32>; var<private> high_30: vec4<f32>;
var<private> low_31: vec4<f32>; var<private> high_31: vec4<f32>;

// Where the lane's vec4 of x lies for rows 0 .. 3, 4 .. 7, ..
var<private> x_at_0: u32;
var<private> x_at_1: u32;
var<private> x_at_2: u32;
var<private> x_at_3: u32;
var<private> x_at_4: u32;
var<private> x_at_5: u32;
var<private> x_at_6: u32;
var<private> x_at_7: u32;

// Adds what eight values of K give; x has them from vec4 `unit` on.
fn add_eight(w: EightOfK, unit: u32, scale: Columns) {
    // Taken apart once: with w handed on for each row, the first caption of a warm start takes 40 ms more on llvmpipe.
    let low_a = w.low_a;
    let low_b = w.low_b;
    let high_a = w.high_a;
    let high_b = w.high_b;
    let x_0 = x[x_at_0 + unit];
    let x_1 = x[x_at_1 + unit];
    let x_2 = x[x_at_2 + unit];
    let x_3 = x[x_at_3 + unit];
    let x_4 = x[x_at_4 + unit];
    let x_5 = x[x_at_5 + unit];
    let x_6 = x[x_at_6 + unit];
    let x_7 = x[x_at_7 + unit];
    {
        let a = subgroupBroadcast(x_0, 0u);
        let b = subgroupBroadcast(x_0, 1u);
        low_0 += scale.low * (low_a * a + low_b * b);
        high_0 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 1u) {
        let a = subgroupBroadcast(x_0, 2u);
        let b = subgroupBroadcast(x_0, 3u);
        low_1 += scale.low * (low_a * a + low_b * b);
        high_1 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 2u) {
        let a = subgroupBroadcast(x_0, 4u);
        let b = subgroupBroadcast(x_0, 5u);
        low_2 += scale.low * (low_a * a + low_b * b);
        high_2 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 3u) {
        let a = subgroupBroadcast(x_0, 6u);
        let b = subgroupBroadcast(x_0, 7u);
        low_3 += scale.low * (low_a * a + low_b * b);
        high_3 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 4u) {
        let a = subgroupBroadcast(x_1, 0u);
        let b = subgroupBroadcast(x_1, 1u);
        low_4 += scale.low * (low_a * a + low_b * b);
        high_4 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 5u) {
        let a = subgroupBroadcast(x_1, 2u);
        let b = subgroupBroadcast(x_1, 3u);
        low_5 += scale.low * (low_a * a + low_b * b);
        high_5 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 6u) {
        let a = subgroupBroadcast(x_1, 4u);
        let b = subgroupBroadcast(x_1, 5u);
        low_6 += scale.low * (low_a * a + low_b * b);
        high_6 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 7u) {
        let a = subgroupBroadcast(x_1, 6u);
        let b = subgroupBroadcast(x_1, 7u);
        low_7 += scale.low * (low_a * a + low_b * b);
        high_7 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 8u) {
        let a = subgroupBroadcast(x_2, 0u);
        let b = subgroupBroadcast(x_2, 1u);
        low_8 += scale.low * (low_a * a + low_b * b);
        high_8 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 9u) {
        let a = subgroupBroadcast(x_2, 2u);
        let b = subgroupBroadcast(x_2, 3u);
        low_9 += scale.low * (low_a * a + low_b * b);
        high_9 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 10u) {
        let a = subgroupBroadcast(x_2, 4u);
        let b = subgroupBroadcast(x_2, 5u);
        low_10 += scale.low * (low_a * a + low_b * b);
        high_10 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 11u) {
        let a = subgroupBroadcast(x_2, 6u);
        let b = subgroupBroadcast(x_2, 7u);
        low_11 += scale.low * (low_a * a + low_b * b);
        high_11 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 12u) {
        let a = subgroupBroadcast(x_3, 0u);
        let b = subgroupBroadcast(x_3, 1u);
        low_12 += scale.low * (low_a * a + low_b * b);
        high_12 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 13u) {
        let a = subgroupBroadcast(x_3, 2u);
        let b = subgroupBroadcast(x_3, 3u);
        low_13 += scale.low * (low_a * a + low_b * b);
        high_13 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 14u) {
        let a = subgroupBroadcast(x_3, 4u);
        let b = subgroupBroadcast(x_3, 5u);
        low_14 += scale.low * (low_a * a + low_b * b);
        high_14 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 15u) {
        let a = subgroupBroadcast(x_3, 6u);
        let b = subgroupBroadcast(x_3, 7u);
        low_15 += scale.low * (low_a * a + low_b * b);
        high_15 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 16u) {
        let a = subgroupBroadcast(x_4, 0u);
        let b = subgroupBroadcast(x_4, 1u);
        low_16 += scale.low * (low_a * a + low_b * b);
        high_16 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 17u) {
        let a = subgroupBroadcast(x_4, 2u);
        let b = subgroupBroadcast(x_4, 3u);
        low_17 += scale.low * (low_a * a + low_b * b);
        high_17 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 18u) {
        let a = subgroupBroadcast(x_4, 4u);
        let b = subgroupBroadcast(x_4, 5u);
        low_18 += scale.low * (low_a * a + low_b * b);
        high_18 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 19u) {
        let a = subgroupBroadcast(x_4, 6u);
        let b = subgroupBroadcast(x_4, 7u);
        low_19 += scale.low * (low_a * a + low_b * b);
        high_19 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 20u) {
        let a = subgroupBroadcast(x_5, 0u);
        let b = subgroupBroadcast(x_5, 1u);
        low_20 += scale.low * (low_a * a + low_b * b);
        high_20 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 21u) {
        let a = subgroupBroadcast(x_5, 2u);
        let b = subgroupBroadcast(x_5, 3u);
        low_21 += scale.low * (low_a * a + low_b * b);
        high_21 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 22u) {
        let a = subgroupBroadcast(x_5, 4u);
        let b = subgroupBroadcast(x_5, 5u);
        low_22 += scale.low * (low_a * a + low_b * b);
        high_22 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 23u) {
        let a = subgroupBroadcast(x_5, 6u);
        let b = subgroupBroadcast(x_5, 7u);
        low_23 += scale.low * (low_a * a + low_b * b);
        high_23 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 24u) {
        let a = subgroupBroadcast(x_6, 0u);
        let b = subgroupBroadcast(x_6, 1u);
        low_24 += scale.low * (low_a * a + low_b * b);
        high_24 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 25u) {
        let a = subgroupBroadcast(x_6, 2u);
        let b = subgroupBroadcast(x_6, 3u);
        low_25 += scale.low * (low_a * a + low_b * b);
        high_25 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 26u) {
        let a = subgroupBroadcast(x_6, 4u);
        let b = subgroupBroadcast(x_6, 5u);
        low_26 += scale.low * (low_a * a + low_b * b);
        high_26 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 27u) {
        let a = subgroupBroadcast(x_6, 6u);
        let b = subgroupBroadcast(x_6, 7u);
        low_27 += scale.low * (low_a * a + low_b * b);
        high_27 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 28u) {
        let a = subgroupBroadcast(x_7, 0u);
        let b = subgroupBroadcast(x_7, 1u);
        low_28 += scale.low * (low_a * a + low_b * b);
        high_28 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 29u) {
        let a = subgroupBroadcast(x_7, 2u);
        let b = subgroupBroadcast(x_7, 3u);
        low_29 += scale.low * (low_a * a + low_b * b);
        high_29 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 30u) {
        let a = subgroupBroadcast(x_7, 4u);
        let b = subgroupBroadcast(x_7, 5u);
        low_30 += scale.low * (low_a * a + low_b * b);
        high_30 += scale.high * (high_a * a + high_b * b);
    }
    if (ROWS > 31u) {
        let a = subgroupBroadcast(x_7, 6u);
        let b = subgroupBroadcast(x_7, 7u);
        low_31 += scale.low * (low_a * a + low_b * b);
        high_31 += scale.high * (high_a * a + high_b * b);
    }
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
    x_at_0 = min(x_row + 0u, last_row) * x_stride + x_part;
    x_at_1 = min(x_row + 4u, last_row) * x_stride + x_part;
    x_at_2 = min(x_row + 8u, last_row) * x_stride + x_part;
    x_at_3 = min(x_row + 12u, last_row) * x_stride + x_part;
    x_at_4 = min(x_row + 16u, last_row) * x_stride + x_part;
    x_at_5 = min(x_row + 20u, last_row) * x_stride + x_part;
    x_at_6 = min(x_row + 24u, last_row) * x_stride + x_part;
    x_at_7 = min(x_row + 28u, last_row) * x_stride + x_part;

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
        var low = low_0;
        var high = high_0;
        if (ROWS > 1u && row == 1u) { low = low_1; high = high_1; }
        if (ROWS > 2u && row == 2u) { low = low_2; high = high_2; }
        if (ROWS > 3u && row == 3u) { low = low_3; high = high_3; }
        if (ROWS > 4u && row == 4u) { low = low_4; high = high_4; }
        if (ROWS > 5u && row == 5u) { low = low_5; high = high_5; }
        if (ROWS > 6u && row == 6u) { low = low_6; high = high_6; }
        if (ROWS > 7u && row == 7u) { low = low_7; high = high_7; }
        if (ROWS > 8u && row == 8u) { low = low_8; high = high_8; }
        if (ROWS > 9u && row == 9u) { low = low_9; high = high_9; }
        if (ROWS > 10u && row == 10u) { low = low_10; high = high_10; }
        if (ROWS > 11u && row == 11u) { low = low_11; high = high_11; }
        if (ROWS > 12u && row == 12u) { low = low_12; high = high_12; }
        if (ROWS > 13u && row == 13u) { low = low_13; high = high_13; }
        if (ROWS > 14u && row == 14u) { low = low_14; high = high_14; }
        if (ROWS > 15u && row == 15u) { low = low_15; high = high_15; }
        if (ROWS > 16u && row == 16u) { low = low_16; high = high_16; }
        if (ROWS > 17u && row == 17u) { low = low_17; high = high_17; }
        if (ROWS > 18u && row == 18u) { low = low_18; high = high_18; }
        if (ROWS > 19u && row == 19u) { low = low_19; high = high_19; }
        if (ROWS > 20u && row == 20u) { low = low_20; high = high_20; }
        if (ROWS > 21u && row == 21u) { low = low_21; high = high_21; }
        if (ROWS > 22u && row == 22u) { low = low_22; high = high_22; }
        if (ROWS > 23u && row == 23u) { low = low_23; high = high_23; }
        if (ROWS > 24u && row == 24u) { low = low_24; high = high_24; }
        if (ROWS > 25u && row == 25u) { low = low_25; high = high_25; }
        if (ROWS > 26u && row == 26u) { low = low_26; high = high_26; }
        if (ROWS > 27u && row == 27u) { low = low_27; high = high_27; }
        if (ROWS > 28u && row == 28u) { low = low_28; high = high_28; }
        if (ROWS > 29u && row == 29u) { low = low_29; high = high_29; }
        if (ROWS > 30u && row == 30u) { low = low_30; high = high_30; }
        if (ROWS > 31u && row == 31u) { low = low_31; high = high_31; }
        store_row(row_base + row, column, low, high);
    }
}
