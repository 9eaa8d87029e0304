// matvec: y = activation(x · wᵀ + bias) [+ y] for 1 to 8 rows, for any GPU: shared memory, no subgroups, no f16 feature.
//
// Tile: 8 columns (rows of the weight) a workgroup of 64, which walks along K together; 2 KiB of workgroup memory times
// ROWS. M is at most ROWS.
// Grid: (ceil(N / 8), 1, 1).
// A sum's order depends on K alone, not on M or ROWS: a row has the same bits alone and among eight.
// Called by kernels/linear.rs for decode steps and beams, where subgroups are missing or vary in size.
// Prepended: linear.wgsl, which has the shapes and bindings, and a weights_*.wgsl.
//
// Measured: 10240×2560, 4.4 GB/s of weight for 1 row, 1.7 for 8
// (llvmpipe, Mesa 22.3.6, two 2.6 GHz cores; by CPU time, on a busy machine).

override ROWS: u32 = 1u; // 1, 2, 4 or 8

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
    let elements = params.in_features / WEIGHT_K;
    let x_stride = params.in_features / 4u;
    let last_row = params.rows - 1u;
    let last_column = params.out_features - 1u;

    // Rows and columns past the end read the last one and are not stored.
    let x_at_0 = 0u;
    let x_at_1 = min(1u, last_row) * x_stride;
    let x_at_2 = min(2u, last_row) * x_stride;
    let x_at_3 = min(3u, last_row) * x_stride;
    let x_at_4 = min(4u, last_row) * x_stride;
    let x_at_5 = min(5u, last_row) * x_stride;
    let x_at_6 = min(6u, last_row) * x_stride;
    let x_at_7 = min(7u, last_row) * x_stride;
    let w_at_0 = min(column, last_column) * elements;
    let w_at_1 = min(column + 1u, last_column) * elements;
    let w_at_2 = min(column + 2u, last_column) * elements;
    let w_at_3 = min(column + 3u, last_column) * elements;
    let w_at_4 = min(column + 4u, last_column) * elements;
    let w_at_5 = min(column + 5u, last_column) * elements;
    let w_at_6 = min(column + 6u, last_column) * elements;
    let w_at_7 = min(column + 7u, last_column) * elements;

    // sum_r_c: row r, column c.
    var sum_0_0 = 0.0;
    var sum_0_1 = 0.0;
    var sum_0_2 = 0.0;
    var sum_0_3 = 0.0;
    var sum_0_4 = 0.0;
    var sum_0_5 = 0.0;
    var sum_0_6 = 0.0;
    var sum_0_7 = 0.0;
    var sum_1_0 = 0.0;
    var sum_1_1 = 0.0;
    var sum_1_2 = 0.0;
    var sum_1_3 = 0.0;
    var sum_1_4 = 0.0;
    var sum_1_5 = 0.0;
    var sum_1_6 = 0.0;
    var sum_1_7 = 0.0;
    var sum_2_0 = 0.0;
    var sum_2_1 = 0.0;
    var sum_2_2 = 0.0;
    var sum_2_3 = 0.0;
    var sum_2_4 = 0.0;
    var sum_2_5 = 0.0;
    var sum_2_6 = 0.0;
    var sum_2_7 = 0.0;
    var sum_3_0 = 0.0;
    var sum_3_1 = 0.0;
    var sum_3_2 = 0.0;
    var sum_3_3 = 0.0;
    var sum_3_4 = 0.0;
    var sum_3_5 = 0.0;
    var sum_3_6 = 0.0;
    var sum_3_7 = 0.0;
    var sum_4_0 = 0.0;
    var sum_4_1 = 0.0;
    var sum_4_2 = 0.0;
    var sum_4_3 = 0.0;
    var sum_4_4 = 0.0;
    var sum_4_5 = 0.0;
    var sum_4_6 = 0.0;
    var sum_4_7 = 0.0;
    var sum_5_0 = 0.0;
    var sum_5_1 = 0.0;
    var sum_5_2 = 0.0;
    var sum_5_3 = 0.0;
    var sum_5_4 = 0.0;
    var sum_5_5 = 0.0;
    var sum_5_6 = 0.0;
    var sum_5_7 = 0.0;
    var sum_6_0 = 0.0;
    var sum_6_1 = 0.0;
    var sum_6_2 = 0.0;
    var sum_6_3 = 0.0;
    var sum_6_4 = 0.0;
    var sum_6_5 = 0.0;
    var sum_6_6 = 0.0;
    var sum_6_7 = 0.0;
    var sum_7_0 = 0.0;
    var sum_7_1 = 0.0;
    var sum_7_2 = 0.0;
    var sum_7_3 = 0.0;
    var sum_7_4 = 0.0;
    var sum_7_5 = 0.0;
    var sum_7_6 = 0.0;
    var sum_7_7 = 0.0;

    for (var element = thread; element < elements; element += WORKGROUP_SIZE) {
        var h_0 = weight[w_at_0 + element];
        var h_1 = weight[w_at_1 + element];
        var h_2 = weight[w_at_2 + element];
        var h_3 = weight[w_at_3 + element];
        var h_4 = weight[w_at_4 + element];
        var h_5 = weight[w_at_5 + element];
        var h_6 = weight[w_at_6 + element];
        var h_7 = weight[w_at_7 + element];
        let scales = eight_scales(params.out_features, params.in_features, min(column, last_column), element * WEIGHT_K);
        let low_scale = low_scales(scales);
        let high_scale = high_scales(scales);

        for (var piece = 0u; piece < WEIGHT_K / 8u; piece++) {
            let a_0 = first_four(h_0);
            let b_0 = second_four(h_0);
            let a_1 = first_four(h_1);
            let b_1 = second_four(h_1);
            let a_2 = first_four(h_2);
            let b_2 = second_four(h_2);
            let a_3 = first_four(h_3);
            let b_3 = second_four(h_3);
            let a_4 = first_four(h_4);
            let b_4 = second_four(h_4);
            let a_5 = first_four(h_5);
            let b_5 = second_four(h_5);
            let a_6 = first_four(h_6);
            let b_6 = second_four(h_6);
            let a_7 = first_four(h_7);
            let b_7 = second_four(h_7);
            h_0 = next_eight(h_0);
            h_1 = next_eight(h_1);
            h_2 = next_eight(h_2);
            h_3 = next_eight(h_3);
            h_4 = next_eight(h_4);
            h_5 = next_eight(h_5);
            h_6 = next_eight(h_6);
            h_7 = next_eight(h_7);
            let unit = element * (WEIGHT_K / 4u) + 2u * piece;
            let xa_0 = x[x_at_0 + unit];
            let xb_0 = x[x_at_0 + unit + 1u];
            sum_0_0 += low_scale.x * (dot(a_0, xa_0) + dot(b_0, xb_0));
            sum_0_1 += low_scale.y * (dot(a_1, xa_0) + dot(b_1, xb_0));
            sum_0_2 += low_scale.z * (dot(a_2, xa_0) + dot(b_2, xb_0));
            sum_0_3 += low_scale.w * (dot(a_3, xa_0) + dot(b_3, xb_0));
            sum_0_4 += high_scale.x * (dot(a_4, xa_0) + dot(b_4, xb_0));
            sum_0_5 += high_scale.y * (dot(a_5, xa_0) + dot(b_5, xb_0));
            sum_0_6 += high_scale.z * (dot(a_6, xa_0) + dot(b_6, xb_0));
            sum_0_7 += high_scale.w * (dot(a_7, xa_0) + dot(b_7, xb_0));
            if (ROWS > 1u) {
                let xa_1 = x[x_at_1 + unit];
                let xb_1 = x[x_at_1 + unit + 1u];
                sum_1_0 += low_scale.x * (dot(a_0, xa_1) + dot(b_0, xb_1));
                sum_1_1 += low_scale.y * (dot(a_1, xa_1) + dot(b_1, xb_1));
                sum_1_2 += low_scale.z * (dot(a_2, xa_1) + dot(b_2, xb_1));
                sum_1_3 += low_scale.w * (dot(a_3, xa_1) + dot(b_3, xb_1));
                sum_1_4 += high_scale.x * (dot(a_4, xa_1) + dot(b_4, xb_1));
                sum_1_5 += high_scale.y * (dot(a_5, xa_1) + dot(b_5, xb_1));
                sum_1_6 += high_scale.z * (dot(a_6, xa_1) + dot(b_6, xb_1));
                sum_1_7 += high_scale.w * (dot(a_7, xa_1) + dot(b_7, xb_1));
            }
            if (ROWS > 2u) {
                let xa_2 = x[x_at_2 + unit];
                let xb_2 = x[x_at_2 + unit + 1u];
                sum_2_0 += low_scale.x * (dot(a_0, xa_2) + dot(b_0, xb_2));
                sum_2_1 += low_scale.y * (dot(a_1, xa_2) + dot(b_1, xb_2));
                sum_2_2 += low_scale.z * (dot(a_2, xa_2) + dot(b_2, xb_2));
                sum_2_3 += low_scale.w * (dot(a_3, xa_2) + dot(b_3, xb_2));
                sum_2_4 += high_scale.x * (dot(a_4, xa_2) + dot(b_4, xb_2));
                sum_2_5 += high_scale.y * (dot(a_5, xa_2) + dot(b_5, xb_2));
                sum_2_6 += high_scale.z * (dot(a_6, xa_2) + dot(b_6, xb_2));
                sum_2_7 += high_scale.w * (dot(a_7, xa_2) + dot(b_7, xb_2));
            }
            if (ROWS > 3u) {
                let xa_3 = x[x_at_3 + unit];
                let xb_3 = x[x_at_3 + unit + 1u];
                sum_3_0 += low_scale.x * (dot(a_0, xa_3) + dot(b_0, xb_3));
                sum_3_1 += low_scale.y * (dot(a_1, xa_3) + dot(b_1, xb_3));
                sum_3_2 += low_scale.z * (dot(a_2, xa_3) + dot(b_2, xb_3));
                sum_3_3 += low_scale.w * (dot(a_3, xa_3) + dot(b_3, xb_3));
                sum_3_4 += high_scale.x * (dot(a_4, xa_3) + dot(b_4, xb_3));
                sum_3_5 += high_scale.y * (dot(a_5, xa_3) + dot(b_5, xb_3));
                sum_3_6 += high_scale.z * (dot(a_6, xa_3) + dot(b_6, xb_3));
                sum_3_7 += high_scale.w * (dot(a_7, xa_3) + dot(b_7, xb_3));
            }
            if (ROWS > 4u) {
                let xa_4 = x[x_at_4 + unit];
                let xb_4 = x[x_at_4 + unit + 1u];
                sum_4_0 += low_scale.x * (dot(a_0, xa_4) + dot(b_0, xb_4));
                sum_4_1 += low_scale.y * (dot(a_1, xa_4) + dot(b_1, xb_4));
                sum_4_2 += low_scale.z * (dot(a_2, xa_4) + dot(b_2, xb_4));
                sum_4_3 += low_scale.w * (dot(a_3, xa_4) + dot(b_3, xb_4));
                sum_4_4 += high_scale.x * (dot(a_4, xa_4) + dot(b_4, xb_4));
                sum_4_5 += high_scale.y * (dot(a_5, xa_4) + dot(b_5, xb_4));
                sum_4_6 += high_scale.z * (dot(a_6, xa_4) + dot(b_6, xb_4));
                sum_4_7 += high_scale.w * (dot(a_7, xa_4) + dot(b_7, xb_4));
            }
            if (ROWS > 5u) {
                let xa_5 = x[x_at_5 + unit];
                let xb_5 = x[x_at_5 + unit + 1u];
                sum_5_0 += low_scale.x * (dot(a_0, xa_5) + dot(b_0, xb_5));
                sum_5_1 += low_scale.y * (dot(a_1, xa_5) + dot(b_1, xb_5));
                sum_5_2 += low_scale.z * (dot(a_2, xa_5) + dot(b_2, xb_5));
                sum_5_3 += low_scale.w * (dot(a_3, xa_5) + dot(b_3, xb_5));
                sum_5_4 += high_scale.x * (dot(a_4, xa_5) + dot(b_4, xb_5));
                sum_5_5 += high_scale.y * (dot(a_5, xa_5) + dot(b_5, xb_5));
                sum_5_6 += high_scale.z * (dot(a_6, xa_5) + dot(b_6, xb_5));
                sum_5_7 += high_scale.w * (dot(a_7, xa_5) + dot(b_7, xb_5));
            }
            if (ROWS > 6u) {
                let xa_6 = x[x_at_6 + unit];
                let xb_6 = x[x_at_6 + unit + 1u];
                sum_6_0 += low_scale.x * (dot(a_0, xa_6) + dot(b_0, xb_6));
                sum_6_1 += low_scale.y * (dot(a_1, xa_6) + dot(b_1, xb_6));
                sum_6_2 += low_scale.z * (dot(a_2, xa_6) + dot(b_2, xb_6));
                sum_6_3 += low_scale.w * (dot(a_3, xa_6) + dot(b_3, xb_6));
                sum_6_4 += high_scale.x * (dot(a_4, xa_6) + dot(b_4, xb_6));
                sum_6_5 += high_scale.y * (dot(a_5, xa_6) + dot(b_5, xb_6));
                sum_6_6 += high_scale.z * (dot(a_6, xa_6) + dot(b_6, xb_6));
                sum_6_7 += high_scale.w * (dot(a_7, xa_6) + dot(b_7, xb_6));
            }
            if (ROWS > 7u) {
                let xa_7 = x[x_at_7 + unit];
                let xb_7 = x[x_at_7 + unit + 1u];
                sum_7_0 += low_scale.x * (dot(a_0, xa_7) + dot(b_0, xb_7));
                sum_7_1 += low_scale.y * (dot(a_1, xa_7) + dot(b_1, xb_7));
                sum_7_2 += low_scale.z * (dot(a_2, xa_7) + dot(b_2, xb_7));
                sum_7_3 += low_scale.w * (dot(a_3, xa_7) + dot(b_3, xb_7));
                sum_7_4 += high_scale.x * (dot(a_4, xa_7) + dot(b_4, xb_7));
                sum_7_5 += high_scale.y * (dot(a_5, xa_7) + dot(b_5, xb_7));
                sum_7_6 += high_scale.z * (dot(a_6, xa_7) + dot(b_6, xb_7));
                sum_7_7 += high_scale.w * (dot(a_7, xa_7) + dot(b_7, xb_7));
            }
        }
    }

    partial[partial_at(thread, 0u, 0u)] = sum_0_0;
    partial[partial_at(thread, 0u, 1u)] = sum_0_1;
    partial[partial_at(thread, 0u, 2u)] = sum_0_2;
    partial[partial_at(thread, 0u, 3u)] = sum_0_3;
    partial[partial_at(thread, 0u, 4u)] = sum_0_4;
    partial[partial_at(thread, 0u, 5u)] = sum_0_5;
    partial[partial_at(thread, 0u, 6u)] = sum_0_6;
    partial[partial_at(thread, 0u, 7u)] = sum_0_7;
    if (ROWS > 1u) {
        partial[partial_at(thread, 1u, 0u)] = sum_1_0;
        partial[partial_at(thread, 1u, 1u)] = sum_1_1;
        partial[partial_at(thread, 1u, 2u)] = sum_1_2;
        partial[partial_at(thread, 1u, 3u)] = sum_1_3;
        partial[partial_at(thread, 1u, 4u)] = sum_1_4;
        partial[partial_at(thread, 1u, 5u)] = sum_1_5;
        partial[partial_at(thread, 1u, 6u)] = sum_1_6;
        partial[partial_at(thread, 1u, 7u)] = sum_1_7;
    }
    if (ROWS > 2u) {
        partial[partial_at(thread, 2u, 0u)] = sum_2_0;
        partial[partial_at(thread, 2u, 1u)] = sum_2_1;
        partial[partial_at(thread, 2u, 2u)] = sum_2_2;
        partial[partial_at(thread, 2u, 3u)] = sum_2_3;
        partial[partial_at(thread, 2u, 4u)] = sum_2_4;
        partial[partial_at(thread, 2u, 5u)] = sum_2_5;
        partial[partial_at(thread, 2u, 6u)] = sum_2_6;
        partial[partial_at(thread, 2u, 7u)] = sum_2_7;
    }
    if (ROWS > 3u) {
        partial[partial_at(thread, 3u, 0u)] = sum_3_0;
        partial[partial_at(thread, 3u, 1u)] = sum_3_1;
        partial[partial_at(thread, 3u, 2u)] = sum_3_2;
        partial[partial_at(thread, 3u, 3u)] = sum_3_3;
        partial[partial_at(thread, 3u, 4u)] = sum_3_4;
        partial[partial_at(thread, 3u, 5u)] = sum_3_5;
        partial[partial_at(thread, 3u, 6u)] = sum_3_6;
        partial[partial_at(thread, 3u, 7u)] = sum_3_7;
    }
    if (ROWS > 4u) {
        partial[partial_at(thread, 4u, 0u)] = sum_4_0;
        partial[partial_at(thread, 4u, 1u)] = sum_4_1;
        partial[partial_at(thread, 4u, 2u)] = sum_4_2;
        partial[partial_at(thread, 4u, 3u)] = sum_4_3;
        partial[partial_at(thread, 4u, 4u)] = sum_4_4;
        partial[partial_at(thread, 4u, 5u)] = sum_4_5;
        partial[partial_at(thread, 4u, 6u)] = sum_4_6;
        partial[partial_at(thread, 4u, 7u)] = sum_4_7;
    }
    if (ROWS > 5u) {
        partial[partial_at(thread, 5u, 0u)] = sum_5_0;
        partial[partial_at(thread, 5u, 1u)] = sum_5_1;
        partial[partial_at(thread, 5u, 2u)] = sum_5_2;
        partial[partial_at(thread, 5u, 3u)] = sum_5_3;
        partial[partial_at(thread, 5u, 4u)] = sum_5_4;
        partial[partial_at(thread, 5u, 5u)] = sum_5_5;
        partial[partial_at(thread, 5u, 6u)] = sum_5_6;
        partial[partial_at(thread, 5u, 7u)] = sum_5_7;
    }
    if (ROWS > 6u) {
        partial[partial_at(thread, 6u, 0u)] = sum_6_0;
        partial[partial_at(thread, 6u, 1u)] = sum_6_1;
        partial[partial_at(thread, 6u, 2u)] = sum_6_2;
        partial[partial_at(thread, 6u, 3u)] = sum_6_3;
        partial[partial_at(thread, 6u, 4u)] = sum_6_4;
        partial[partial_at(thread, 6u, 5u)] = sum_6_5;
        partial[partial_at(thread, 6u, 6u)] = sum_6_6;
        partial[partial_at(thread, 6u, 7u)] = sum_6_7;
    }
    if (ROWS > 7u) {
        partial[partial_at(thread, 7u, 0u)] = sum_7_0;
        partial[partial_at(thread, 7u, 1u)] = sum_7_1;
        partial[partial_at(thread, 7u, 2u)] = sum_7_2;
        partial[partial_at(thread, 7u, 3u)] = sum_7_3;
        partial[partial_at(thread, 7u, 4u)] = sum_7_4;
        partial[partial_at(thread, 7u, 5u)] = sum_7_5;
        partial[partial_at(thread, 7u, 6u)] = sum_7_6;
        partial[partial_at(thread, 7u, 7u)] = sum_7_7;
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
