// matmul_register: y = activation(x · wᵀ + bias) [+ y] as an outer product in registers: no shared memory, no barriers.
//
// Tile: ROWS rows × (COLUMNS · WORKGROUP_SIZE) columns a workgroup, 8 of K a step. A lane owns COLUMNS columns and all
// ROWS rows of them; x comes in once a subgroup, a vec4 a lane, and is handed round with subgroupBroadcast.
// Works with any subgroup of 8 lanes or more (8, 16, 32, 64); WORKGROUP_SIZE is a multiple of the subgroup size.
// A step costs about ROWS + 8 on llvmpipe, so ROWS there is what makes ceil(M / ROWS) · (ROWS + 8) smallest.
// Grid: (ceil(N / (COLUMNS · WORKGROUP_SIZE)), ceil(M / ROWS), 1).
// Every sum runs over K in the same order whatever M, ROWS, COLUMNS and the subgroup size are: a row's result has the
// same bits alone and in a batch, in prefill and in decode (the kernel test checks it on each adapter).
// Called by kernels/linear.rs for any number of rows where subgroups have at most 16 lanes.
// Prepended: linear.wgsl, which has the shapes and bindings.
//
// Measured: 256×1024×1024, ROWS 32: 58 GFLOP/s, matmul_tile beside it 7.6; 10240×2560: 7.7 GB/s of weight for 1 row,
// 4.8 for 8 (llvmpipe, Mesa 22.3.6, two 2.6 GHz cores; by CPU time, on a busy machine).

override ROWS: u32 = 16u;          // 1 to 32
override COLUMNS: u32 = 8u;        // 4 or 8
override WORKGROUP_SIZE: u32 = 8u;

// One row of a tile: the lane's columns are WORKGROUP_SIZE apart, so that neighbouring lanes write neighbouring floats.
fn store_row(row: u32, column: u32, low: vec4<f32>, high: vec4<f32>) {
    store(row, column, low.x);
    store(row, column + WORKGROUP_SIZE, low.y);
    store(row, column + 2u * WORKGROUP_SIZE, low.z);
    store(row, column + 3u * WORKGROUP_SIZE, low.w);
    if (COLUMNS > 4u) {
        store(row, column + 4u * WORKGROUP_SIZE, high.x);
        store(row, column + 5u * WORKGROUP_SIZE, high.y);
        store(row, column + 6u * WORKGROUP_SIZE, high.z);
        store(row, column + 7u * WORKGROUP_SIZE, high.w);
    }
}

// Four of K of four columns of w, from a pair of halves each in a and in b. Times four of K of a row of x, it is that
// row's part of the four sums.
fn four_k(a: vec4<u32>, b: vec4<u32>) -> mat4x4<f32> {
    let a_0 = unpack2x16float(a.x);
    let a_1 = unpack2x16float(a.y);
    let a_2 = unpack2x16float(a.z);
    let a_3 = unpack2x16float(a.w);
    let b_0 = unpack2x16float(b.x);
    let b_1 = unpack2x16float(b.y);
    let b_2 = unpack2x16float(b.z);
    let b_3 = unpack2x16float(b.w);
    return mat4x4<f32>(
        a_0.x, a_1.x, a_2.x, a_3.x,
        a_0.y, a_1.y, a_2.y, a_3.y,
        b_0.x, b_1.x, b_2.x, b_3.x,
        b_0.y, b_1.y, b_2.y, b_3.y,
    );
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) tile: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let row_base = tile.y * ROWS;
    let column = tile.x * COLUMNS * WORKGROUP_SIZE + thread;
    let last_row = params.rows - 1u;
    let last_column = params.out_features - 1u;

    // Where the lane's weight rows begin. Columns past the end read the last column and are not stored.
    let units = params.in_features / 8u;
    let w_at_0 = min(column, last_column) * units;
    let w_at_1 = min(column + WORKGROUP_SIZE, last_column) * units;
    let w_at_2 = min(column + 2u * WORKGROUP_SIZE, last_column) * units;
    let w_at_3 = min(column + 3u * WORKGROUP_SIZE, last_column) * units;
    let w_at_4 = min(column + 4u * WORKGROUP_SIZE, last_column) * units;
    let w_at_5 = min(column + 5u * WORKGROUP_SIZE, last_column) * units;
    let w_at_6 = min(column + 6u * WORKGROUP_SIZE, last_column) * units;
    let w_at_7 = min(column + 7u * WORKGROUP_SIZE, last_column) * units;

    // Eight lanes hold four rows × eight of K: lane 2r the first four of K of row r, lane 2r + 1 the other four.
    // A subgroup of more lanes holds copies. Rows past the end read the last row and are not stored.
    // (What only rows beyond ROWS would use is dead code, and drivers drop it.)
    let x_row = row_base + lane % 8u / 2u;
    let x_part = lane % 2u;
    let x_at_0 = min(x_row + 0u, last_row) * units * 2u + x_part;
    let x_at_1 = min(x_row + 4u, last_row) * units * 2u + x_part;
    let x_at_2 = min(x_row + 8u, last_row) * units * 2u + x_part;
    let x_at_3 = min(x_row + 12u, last_row) * units * 2u + x_part;
    let x_at_4 = min(x_row + 16u, last_row) * units * 2u + x_part;
    let x_at_5 = min(x_row + 20u, last_row) * units * 2u + x_part;
    let x_at_6 = min(x_row + 24u, last_row) * units * 2u + x_part;
    let x_at_7 = min(x_row + 28u, last_row) * units * 2u + x_part;

    // low_r: columns 0 .. 3 of row r; high_r: columns 4 .. 7.
    var low_0 = vec4<f32>(); var high_0 = vec4<f32>();
    var low_1 = vec4<f32>(); var high_1 = vec4<f32>();
    var low_2 = vec4<f32>(); var high_2 = vec4<f32>();
    var low_3 = vec4<f32>(); var high_3 = vec4<f32>();
    var low_4 = vec4<f32>(); var high_4 = vec4<f32>();
    var low_5 = vec4<f32>(); var high_5 = vec4<f32>();
    var low_6 = vec4<f32>(); var high_6 = vec4<f32>();
    var low_7 = vec4<f32>(); var high_7 = vec4<f32>();
    var low_8 = vec4<f32>(); var high_8 = vec4<f32>();
    var low_9 = vec4<f32>(); var high_9 = vec4<f32>();
    var low_10 = vec4<f32>(); var high_10 = vec4<f32>();
    var low_11 = vec4<f32>(); var high_11 = vec4<f32>();
    var low_12 = vec4<f32>(); var high_12 = vec4<f32>();
    var low_13 = vec4<f32>(); var high_13 = vec4<f32>();
    var low_14 = vec4<f32>(); var high_14 = vec4<f32>();
    var low_15 = vec4<f32>(); var high_15 = vec4<f32>();
    var low_16 = vec4<f32>(); var high_16 = vec4<f32>();
    var low_17 = vec4<f32>(); var high_17 = vec4<f32>();
    var low_18 = vec4<f32>(); var high_18 = vec4<f32>();
    var low_19 = vec4<f32>(); var high_19 = vec4<f32>();
    var low_20 = vec4<f32>(); var high_20 = vec4<f32>();
    var low_21 = vec4<f32>(); var high_21 = vec4<f32>();
    var low_22 = vec4<f32>(); var high_22 = vec4<f32>();
    var low_23 = vec4<f32>(); var high_23 = vec4<f32>();
    var low_24 = vec4<f32>(); var high_24 = vec4<f32>();
    var low_25 = vec4<f32>(); var high_25 = vec4<f32>();
    var low_26 = vec4<f32>(); var high_26 = vec4<f32>();
    var low_27 = vec4<f32>(); var high_27 = vec4<f32>();
    var low_28 = vec4<f32>(); var high_28 = vec4<f32>();
    var low_29 = vec4<f32>(); var high_29 = vec4<f32>();
    var low_30 = vec4<f32>(); var high_30 = vec4<f32>();
    var low_31 = vec4<f32>(); var high_31 = vec4<f32>();

    for (var unit = 0u; unit < units; unit++) {
        let h_0 = weight[w_at_0 + unit];
        let h_1 = weight[w_at_1 + unit];
        let h_2 = weight[w_at_2 + unit];
        let h_3 = weight[w_at_3 + unit];
        let low_a = four_k(vec4<u32>(h_0.x, h_1.x, h_2.x, h_3.x), vec4<u32>(h_0.y, h_1.y, h_2.y, h_3.y));
        let low_b = four_k(vec4<u32>(h_0.z, h_1.z, h_2.z, h_3.z), vec4<u32>(h_0.w, h_1.w, h_2.w, h_3.w));
        var high_a = mat4x4<f32>();
        var high_b = mat4x4<f32>();
        if (COLUMNS > 4u) {
            let h_4 = weight[w_at_4 + unit];
            let h_5 = weight[w_at_5 + unit];
            let h_6 = weight[w_at_6 + unit];
            let h_7 = weight[w_at_7 + unit];
            high_a = four_k(vec4<u32>(h_4.x, h_5.x, h_6.x, h_7.x), vec4<u32>(h_4.y, h_5.y, h_6.y, h_7.y));
            high_b = four_k(vec4<u32>(h_4.z, h_5.z, h_6.z, h_7.z), vec4<u32>(h_4.w, h_5.w, h_6.w, h_7.w));
        }

        let x_0 = x[x_at_0 + 2u * unit];
        let x_1 = x[x_at_1 + 2u * unit];
        let x_2 = x[x_at_2 + 2u * unit];
        let x_3 = x[x_at_3 + 2u * unit];
        let x_4 = x[x_at_4 + 2u * unit];
        let x_5 = x[x_at_5 + 2u * unit];
        let x_6 = x[x_at_6 + 2u * unit];
        let x_7 = x[x_at_7 + 2u * unit];
        {
            let a = subgroupBroadcast(x_0, 0u);
            let b = subgroupBroadcast(x_0, 1u);
            low_0 += low_a * a + low_b * b;
            high_0 += high_a * a + high_b * b;
        }
        if (ROWS > 1u) {
            let a = subgroupBroadcast(x_0, 2u);
            let b = subgroupBroadcast(x_0, 3u);
            low_1 += low_a * a + low_b * b;
            high_1 += high_a * a + high_b * b;
        }
        if (ROWS > 2u) {
            let a = subgroupBroadcast(x_0, 4u);
            let b = subgroupBroadcast(x_0, 5u);
            low_2 += low_a * a + low_b * b;
            high_2 += high_a * a + high_b * b;
        }
        if (ROWS > 3u) {
            let a = subgroupBroadcast(x_0, 6u);
            let b = subgroupBroadcast(x_0, 7u);
            low_3 += low_a * a + low_b * b;
            high_3 += high_a * a + high_b * b;
        }
        if (ROWS > 4u) {
            let a = subgroupBroadcast(x_1, 0u);
            let b = subgroupBroadcast(x_1, 1u);
            low_4 += low_a * a + low_b * b;
            high_4 += high_a * a + high_b * b;
        }
        if (ROWS > 5u) {
            let a = subgroupBroadcast(x_1, 2u);
            let b = subgroupBroadcast(x_1, 3u);
            low_5 += low_a * a + low_b * b;
            high_5 += high_a * a + high_b * b;
        }
        if (ROWS > 6u) {
            let a = subgroupBroadcast(x_1, 4u);
            let b = subgroupBroadcast(x_1, 5u);
            low_6 += low_a * a + low_b * b;
            high_6 += high_a * a + high_b * b;
        }
        if (ROWS > 7u) {
            let a = subgroupBroadcast(x_1, 6u);
            let b = subgroupBroadcast(x_1, 7u);
            low_7 += low_a * a + low_b * b;
            high_7 += high_a * a + high_b * b;
        }
        if (ROWS > 8u) {
            let a = subgroupBroadcast(x_2, 0u);
            let b = subgroupBroadcast(x_2, 1u);
            low_8 += low_a * a + low_b * b;
            high_8 += high_a * a + high_b * b;
        }
        if (ROWS > 9u) {
            let a = subgroupBroadcast(x_2, 2u);
            let b = subgroupBroadcast(x_2, 3u);
            low_9 += low_a * a + low_b * b;
            high_9 += high_a * a + high_b * b;
        }
        if (ROWS > 10u) {
            let a = subgroupBroadcast(x_2, 4u);
            let b = subgroupBroadcast(x_2, 5u);
            low_10 += low_a * a + low_b * b;
            high_10 += high_a * a + high_b * b;
        }
        if (ROWS > 11u) {
            let a = subgroupBroadcast(x_2, 6u);
            let b = subgroupBroadcast(x_2, 7u);
            low_11 += low_a * a + low_b * b;
            high_11 += high_a * a + high_b * b;
        }
        if (ROWS > 12u) {
            let a = subgroupBroadcast(x_3, 0u);
            let b = subgroupBroadcast(x_3, 1u);
            low_12 += low_a * a + low_b * b;
            high_12 += high_a * a + high_b * b;
        }
        if (ROWS > 13u) {
            let a = subgroupBroadcast(x_3, 2u);
            let b = subgroupBroadcast(x_3, 3u);
            low_13 += low_a * a + low_b * b;
            high_13 += high_a * a + high_b * b;
        }
        if (ROWS > 14u) {
            let a = subgroupBroadcast(x_3, 4u);
            let b = subgroupBroadcast(x_3, 5u);
            low_14 += low_a * a + low_b * b;
            high_14 += high_a * a + high_b * b;
        }
        if (ROWS > 15u) {
            let a = subgroupBroadcast(x_3, 6u);
            let b = subgroupBroadcast(x_3, 7u);
            low_15 += low_a * a + low_b * b;
            high_15 += high_a * a + high_b * b;
        }
        if (ROWS > 16u) {
            let a = subgroupBroadcast(x_4, 0u);
            let b = subgroupBroadcast(x_4, 1u);
            low_16 += low_a * a + low_b * b;
            high_16 += high_a * a + high_b * b;
        }
        if (ROWS > 17u) {
            let a = subgroupBroadcast(x_4, 2u);
            let b = subgroupBroadcast(x_4, 3u);
            low_17 += low_a * a + low_b * b;
            high_17 += high_a * a + high_b * b;
        }
        if (ROWS > 18u) {
            let a = subgroupBroadcast(x_4, 4u);
            let b = subgroupBroadcast(x_4, 5u);
            low_18 += low_a * a + low_b * b;
            high_18 += high_a * a + high_b * b;
        }
        if (ROWS > 19u) {
            let a = subgroupBroadcast(x_4, 6u);
            let b = subgroupBroadcast(x_4, 7u);
            low_19 += low_a * a + low_b * b;
            high_19 += high_a * a + high_b * b;
        }
        if (ROWS > 20u) {
            let a = subgroupBroadcast(x_5, 0u);
            let b = subgroupBroadcast(x_5, 1u);
            low_20 += low_a * a + low_b * b;
            high_20 += high_a * a + high_b * b;
        }
        if (ROWS > 21u) {
            let a = subgroupBroadcast(x_5, 2u);
            let b = subgroupBroadcast(x_5, 3u);
            low_21 += low_a * a + low_b * b;
            high_21 += high_a * a + high_b * b;
        }
        if (ROWS > 22u) {
            let a = subgroupBroadcast(x_5, 4u);
            let b = subgroupBroadcast(x_5, 5u);
            low_22 += low_a * a + low_b * b;
            high_22 += high_a * a + high_b * b;
        }
        if (ROWS > 23u) {
            let a = subgroupBroadcast(x_5, 6u);
            let b = subgroupBroadcast(x_5, 7u);
            low_23 += low_a * a + low_b * b;
            high_23 += high_a * a + high_b * b;
        }
        if (ROWS > 24u) {
            let a = subgroupBroadcast(x_6, 0u);
            let b = subgroupBroadcast(x_6, 1u);
            low_24 += low_a * a + low_b * b;
            high_24 += high_a * a + high_b * b;
        }
        if (ROWS > 25u) {
            let a = subgroupBroadcast(x_6, 2u);
            let b = subgroupBroadcast(x_6, 3u);
            low_25 += low_a * a + low_b * b;
            high_25 += high_a * a + high_b * b;
        }
        if (ROWS > 26u) {
            let a = subgroupBroadcast(x_6, 4u);
            let b = subgroupBroadcast(x_6, 5u);
            low_26 += low_a * a + low_b * b;
            high_26 += high_a * a + high_b * b;
        }
        if (ROWS > 27u) {
            let a = subgroupBroadcast(x_6, 6u);
            let b = subgroupBroadcast(x_6, 7u);
            low_27 += low_a * a + low_b * b;
            high_27 += high_a * a + high_b * b;
        }
        if (ROWS > 28u) {
            let a = subgroupBroadcast(x_7, 0u);
            let b = subgroupBroadcast(x_7, 1u);
            low_28 += low_a * a + low_b * b;
            high_28 += high_a * a + high_b * b;
        }
        if (ROWS > 29u) {
            let a = subgroupBroadcast(x_7, 2u);
            let b = subgroupBroadcast(x_7, 3u);
            low_29 += low_a * a + low_b * b;
            high_29 += high_a * a + high_b * b;
        }
        if (ROWS > 30u) {
            let a = subgroupBroadcast(x_7, 4u);
            let b = subgroupBroadcast(x_7, 5u);
            low_30 += low_a * a + low_b * b;
            high_30 += high_a * a + high_b * b;
        }
        if (ROWS > 31u) {
            let a = subgroupBroadcast(x_7, 6u);
            let b = subgroupBroadcast(x_7, 7u);
            low_31 += low_a * a + low_b * b;
            high_31 += high_a * a + high_b * b;
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
