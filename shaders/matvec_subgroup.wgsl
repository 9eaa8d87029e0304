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
// Called by kernels/linear.rs for decode steps and beams, where subgroups have more than 16 lanes.
// Prepended: linear.wgsl, which has the shapes and bindings, and a weights_*.wgsl.
//
// Measured: 10240×2560, 7.8 GB/s of weight for 1 row, 2.7 for 8
// (llvmpipe, Mesa 22.3.6, two 2.6 GHz cores; by CPU time, on a busy machine). Splits and 4 columns are unmeasured on a GPU.

override ROWS: u32 = 1u; // 1 to 8
override WORKGROUP_SIZE: u32 = 8u;
override SPLITS: u32 = 1u; // 0 to 8
override COLUMNS: u32 = 8u; // 4 or 8

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

    for (var element = split * lanes + lane; element < elements; element += splits * lanes) {
        var h_0 = weight[w_at_0 + element];
        var h_1 = weight[w_at_1 + element];
        var h_2 = weight[w_at_2 + element];
        var h_3 = weight[w_at_3 + element];
        var h_4 = vec4<u32>();
        var h_5 = vec4<u32>();
        var h_6 = vec4<u32>();
        var h_7 = vec4<u32>();
        if (COLUMNS > 4u) {
            h_4 = weight[w_at_4 + element];
            h_5 = weight[w_at_5 + element];
            h_6 = weight[w_at_6 + element];
            h_7 = weight[w_at_7 + element];
        }
        let scales = eight_scales(params.out_features, params.in_features, min(column, last_column), element * WEIGHT_K);
        let high_scale = high_scales(scales);
        // Scales come by eight columns: four may be the last of them.
        let low_scale = select(low_scales(scales), high_scale, COLUMNS == 4u && column % 8u == 4u);

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
            if (COLUMNS > 4u) {
                sum_0_4 += high_scale.x * (dot(a_4, xa_0) + dot(b_4, xb_0));
                sum_0_5 += high_scale.y * (dot(a_5, xa_0) + dot(b_5, xb_0));
                sum_0_6 += high_scale.z * (dot(a_6, xa_0) + dot(b_6, xb_0));
                sum_0_7 += high_scale.w * (dot(a_7, xa_0) + dot(b_7, xb_0));
            }
            if (ROWS > 1u) {
                let xa_1 = x[x_at_1 + unit];
                let xb_1 = x[x_at_1 + unit + 1u];
                sum_1_0 += low_scale.x * (dot(a_0, xa_1) + dot(b_0, xb_1));
                sum_1_1 += low_scale.y * (dot(a_1, xa_1) + dot(b_1, xb_1));
                sum_1_2 += low_scale.z * (dot(a_2, xa_1) + dot(b_2, xb_1));
                sum_1_3 += low_scale.w * (dot(a_3, xa_1) + dot(b_3, xb_1));
                if (COLUMNS > 4u) {
                    sum_1_4 += high_scale.x * (dot(a_4, xa_1) + dot(b_4, xb_1));
                    sum_1_5 += high_scale.y * (dot(a_5, xa_1) + dot(b_5, xb_1));
                    sum_1_6 += high_scale.z * (dot(a_6, xa_1) + dot(b_6, xb_1));
                    sum_1_7 += high_scale.w * (dot(a_7, xa_1) + dot(b_7, xb_1));
                }
            }
            if (ROWS > 2u) {
                let xa_2 = x[x_at_2 + unit];
                let xb_2 = x[x_at_2 + unit + 1u];
                sum_2_0 += low_scale.x * (dot(a_0, xa_2) + dot(b_0, xb_2));
                sum_2_1 += low_scale.y * (dot(a_1, xa_2) + dot(b_1, xb_2));
                sum_2_2 += low_scale.z * (dot(a_2, xa_2) + dot(b_2, xb_2));
                sum_2_3 += low_scale.w * (dot(a_3, xa_2) + dot(b_3, xb_2));
                if (COLUMNS > 4u) {
                    sum_2_4 += high_scale.x * (dot(a_4, xa_2) + dot(b_4, xb_2));
                    sum_2_5 += high_scale.y * (dot(a_5, xa_2) + dot(b_5, xb_2));
                    sum_2_6 += high_scale.z * (dot(a_6, xa_2) + dot(b_6, xb_2));
                    sum_2_7 += high_scale.w * (dot(a_7, xa_2) + dot(b_7, xb_2));
                }
            }
            if (ROWS > 3u) {
                let xa_3 = x[x_at_3 + unit];
                let xb_3 = x[x_at_3 + unit + 1u];
                sum_3_0 += low_scale.x * (dot(a_0, xa_3) + dot(b_0, xb_3));
                sum_3_1 += low_scale.y * (dot(a_1, xa_3) + dot(b_1, xb_3));
                sum_3_2 += low_scale.z * (dot(a_2, xa_3) + dot(b_2, xb_3));
                sum_3_3 += low_scale.w * (dot(a_3, xa_3) + dot(b_3, xb_3));
                if (COLUMNS > 4u) {
                    sum_3_4 += high_scale.x * (dot(a_4, xa_3) + dot(b_4, xb_3));
                    sum_3_5 += high_scale.y * (dot(a_5, xa_3) + dot(b_5, xb_3));
                    sum_3_6 += high_scale.z * (dot(a_6, xa_3) + dot(b_6, xb_3));
                    sum_3_7 += high_scale.w * (dot(a_7, xa_3) + dot(b_7, xb_3));
                }
            }
            if (ROWS > 4u) {
                let xa_4 = x[x_at_4 + unit];
                let xb_4 = x[x_at_4 + unit + 1u];
                sum_4_0 += low_scale.x * (dot(a_0, xa_4) + dot(b_0, xb_4));
                sum_4_1 += low_scale.y * (dot(a_1, xa_4) + dot(b_1, xb_4));
                sum_4_2 += low_scale.z * (dot(a_2, xa_4) + dot(b_2, xb_4));
                sum_4_3 += low_scale.w * (dot(a_3, xa_4) + dot(b_3, xb_4));
                if (COLUMNS > 4u) {
                    sum_4_4 += high_scale.x * (dot(a_4, xa_4) + dot(b_4, xb_4));
                    sum_4_5 += high_scale.y * (dot(a_5, xa_4) + dot(b_5, xb_4));
                    sum_4_6 += high_scale.z * (dot(a_6, xa_4) + dot(b_6, xb_4));
                    sum_4_7 += high_scale.w * (dot(a_7, xa_4) + dot(b_7, xb_4));
                }
            }
            if (ROWS > 5u) {
                let xa_5 = x[x_at_5 + unit];
                let xb_5 = x[x_at_5 + unit + 1u];
                sum_5_0 += low_scale.x * (dot(a_0, xa_5) + dot(b_0, xb_5));
                sum_5_1 += low_scale.y * (dot(a_1, xa_5) + dot(b_1, xb_5));
                sum_5_2 += low_scale.z * (dot(a_2, xa_5) + dot(b_2, xb_5));
                sum_5_3 += low_scale.w * (dot(a_3, xa_5) + dot(b_3, xb_5));
                if (COLUMNS > 4u) {
                    sum_5_4 += high_scale.x * (dot(a_4, xa_5) + dot(b_4, xb_5));
                    sum_5_5 += high_scale.y * (dot(a_5, xa_5) + dot(b_5, xb_5));
                    sum_5_6 += high_scale.z * (dot(a_6, xa_5) + dot(b_6, xb_5));
                    sum_5_7 += high_scale.w * (dot(a_7, xa_5) + dot(b_7, xb_5));
                }
            }
            if (ROWS > 6u) {
                let xa_6 = x[x_at_6 + unit];
                let xb_6 = x[x_at_6 + unit + 1u];
                sum_6_0 += low_scale.x * (dot(a_0, xa_6) + dot(b_0, xb_6));
                sum_6_1 += low_scale.y * (dot(a_1, xa_6) + dot(b_1, xb_6));
                sum_6_2 += low_scale.z * (dot(a_2, xa_6) + dot(b_2, xb_6));
                sum_6_3 += low_scale.w * (dot(a_3, xa_6) + dot(b_3, xb_6));
                if (COLUMNS > 4u) {
                    sum_6_4 += high_scale.x * (dot(a_4, xa_6) + dot(b_4, xb_6));
                    sum_6_5 += high_scale.y * (dot(a_5, xa_6) + dot(b_5, xb_6));
                    sum_6_6 += high_scale.z * (dot(a_6, xa_6) + dot(b_6, xb_6));
                    sum_6_7 += high_scale.w * (dot(a_7, xa_6) + dot(b_7, xb_6));
                }
            }
            if (ROWS > 7u) {
                let xa_7 = x[x_at_7 + unit];
                let xb_7 = x[x_at_7 + unit + 1u];
                sum_7_0 += low_scale.x * (dot(a_0, xa_7) + dot(b_0, xb_7));
                sum_7_1 += low_scale.y * (dot(a_1, xa_7) + dot(b_1, xb_7));
                sum_7_2 += low_scale.z * (dot(a_2, xa_7) + dot(b_2, xb_7));
                sum_7_3 += low_scale.w * (dot(a_3, xa_7) + dot(b_3, xb_7));
                if (COLUMNS > 4u) {
                    sum_7_4 += high_scale.x * (dot(a_4, xa_7) + dot(b_4, xb_7));
                    sum_7_5 += high_scale.y * (dot(a_5, xa_7) + dot(b_5, xb_7));
                    sum_7_6 += high_scale.z * (dot(a_6, xa_7) + dot(b_6, xb_7));
                    sum_7_7 += high_scale.w * (dot(a_7, xa_7) + dot(b_7, xb_7));
                }
            }
        }
    }

    // Add up over the subgroup, a row at a time; lane 0 stores. (A scalar each: some drivers do not take a vector's
    // subgroupAdd apart. One copy for all rows: written out for each, it would be most of the compile time.)
    let rows = min(ROWS, params.rows);
    for (var row = 0u; row < rows; row++) {
        var c_0 = sum_0_0;
        var c_1 = sum_0_1;
        var c_2 = sum_0_2;
        var c_3 = sum_0_3;
        var c_4 = sum_0_4;
        var c_5 = sum_0_5;
        var c_6 = sum_0_6;
        var c_7 = sum_0_7;
        if (ROWS > 1u && row == 1u) {
            c_0 = sum_1_0; c_1 = sum_1_1; c_2 = sum_1_2; c_3 = sum_1_3;
            c_4 = sum_1_4; c_5 = sum_1_5; c_6 = sum_1_6; c_7 = sum_1_7;
        }
        if (ROWS > 2u && row == 2u) {
            c_0 = sum_2_0; c_1 = sum_2_1; c_2 = sum_2_2; c_3 = sum_2_3;
            c_4 = sum_2_4; c_5 = sum_2_5; c_6 = sum_2_6; c_7 = sum_2_7;
        }
        if (ROWS > 3u && row == 3u) {
            c_0 = sum_3_0; c_1 = sum_3_1; c_2 = sum_3_2; c_3 = sum_3_3;
            c_4 = sum_3_4; c_5 = sum_3_5; c_6 = sum_3_6; c_7 = sum_3_7;
        }
        if (ROWS > 4u && row == 4u) {
            c_0 = sum_4_0; c_1 = sum_4_1; c_2 = sum_4_2; c_3 = sum_4_3;
            c_4 = sum_4_4; c_5 = sum_4_5; c_6 = sum_4_6; c_7 = sum_4_7;
        }
        if (ROWS > 5u && row == 5u) {
            c_0 = sum_5_0; c_1 = sum_5_1; c_2 = sum_5_2; c_3 = sum_5_3;
            c_4 = sum_5_4; c_5 = sum_5_5; c_6 = sum_5_6; c_7 = sum_5_7;
        }
        if (ROWS > 6u && row == 6u) {
            c_0 = sum_6_0; c_1 = sum_6_1; c_2 = sum_6_2; c_3 = sum_6_3;
            c_4 = sum_6_4; c_5 = sum_6_5; c_6 = sum_6_6; c_7 = sum_6_7;
        }
        if (ROWS > 7u && row == 7u) {
            c_0 = sum_7_0; c_1 = sum_7_1; c_2 = sum_7_2; c_3 = sum_7_3;
            c_4 = sum_7_4; c_5 = sum_7_5; c_6 = sum_7_6; c_7 = sum_7_7;
        }
        let total_0 = subgroupAdd(c_0);
        let total_1 = subgroupAdd(c_1);
        let total_2 = subgroupAdd(c_2);
        let total_3 = subgroupAdd(c_3);
        var total_4 = 0.0;
        var total_5 = 0.0;
        var total_6 = 0.0;
        var total_7 = 0.0;
        if (COLUMNS > 4u) {
            total_4 = subgroupAdd(c_4);
            total_5 = subgroupAdd(c_5);
            total_6 = subgroupAdd(c_6);
            total_7 = subgroupAdd(c_7);
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
