// matvec_subgroup: y = activation(x · wᵀ + bias) [+ y] for 1 to 8 rows: the weights are read once for all of them.
//
// Tile: 8 columns (rows of the weight) a subgroup. The lanes walk along K together, 16 bytes of weight a lane and column.
// Works with any subgroup size; WORKGROUP_SIZE is a multiple of it. M is at most ROWS.
// Grid: (ceil(N / (8 · WORKGROUP_SIZE / subgroup size)), 1, 1).
// A sum's order depends on K and the subgroup size, not on M or ROWS: a row has the same bits alone and among eight.
// Called by kernels/linear.rs for decode steps and beams, where all subgroups have one size above 16 lanes.
// Prepended: linear.wgsl, which has the shapes and bindings.
//
// Measured: 10240×2560, 7.8 GB/s of weight for 1 row, 2.7 for 8
// (llvmpipe, Mesa 22.3.6, two 2.6 GHz cores; by CPU time, on a busy machine).

override ROWS: u32 = 1u; // 1 to 8
override WORKGROUP_SIZE: u32 = 8u;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
) {
    let column = (group.x * subgroups + subgroup) * 8u;
    let units = params.in_features / 8u;
    let last_row = params.rows - 1u;
    let last_column = params.out_features - 1u;

    // Rows and columns past the end read the last one and are not stored.
    let x_at_0 = 0u;
    let x_at_1 = min(1u, last_row) * units * 2u;
    let x_at_2 = min(2u, last_row) * units * 2u;
    let x_at_3 = min(3u, last_row) * units * 2u;
    let x_at_4 = min(4u, last_row) * units * 2u;
    let x_at_5 = min(5u, last_row) * units * 2u;
    let x_at_6 = min(6u, last_row) * units * 2u;
    let x_at_7 = min(7u, last_row) * units * 2u;
    let w_at_0 = min(column, last_column) * units;
    let w_at_1 = min(column + 1u, last_column) * units;
    let w_at_2 = min(column + 2u, last_column) * units;
    let w_at_3 = min(column + 3u, last_column) * units;
    let w_at_4 = min(column + 4u, last_column) * units;
    let w_at_5 = min(column + 5u, last_column) * units;
    let w_at_6 = min(column + 6u, last_column) * units;
    let w_at_7 = min(column + 7u, last_column) * units;

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

    for (var unit = lane; unit < units; unit += lanes) {
        let h_0 = weight[w_at_0 + unit];
        let h_1 = weight[w_at_1 + unit];
        let h_2 = weight[w_at_2 + unit];
        let h_3 = weight[w_at_3 + unit];
        let h_4 = weight[w_at_4 + unit];
        let h_5 = weight[w_at_5 + unit];
        let h_6 = weight[w_at_6 + unit];
        let h_7 = weight[w_at_7 + unit];
        let a_0 = vec4<f32>(unpack2x16float(h_0.x), unpack2x16float(h_0.y));
        let b_0 = vec4<f32>(unpack2x16float(h_0.z), unpack2x16float(h_0.w));
        let a_1 = vec4<f32>(unpack2x16float(h_1.x), unpack2x16float(h_1.y));
        let b_1 = vec4<f32>(unpack2x16float(h_1.z), unpack2x16float(h_1.w));
        let a_2 = vec4<f32>(unpack2x16float(h_2.x), unpack2x16float(h_2.y));
        let b_2 = vec4<f32>(unpack2x16float(h_2.z), unpack2x16float(h_2.w));
        let a_3 = vec4<f32>(unpack2x16float(h_3.x), unpack2x16float(h_3.y));
        let b_3 = vec4<f32>(unpack2x16float(h_3.z), unpack2x16float(h_3.w));
        let a_4 = vec4<f32>(unpack2x16float(h_4.x), unpack2x16float(h_4.y));
        let b_4 = vec4<f32>(unpack2x16float(h_4.z), unpack2x16float(h_4.w));
        let a_5 = vec4<f32>(unpack2x16float(h_5.x), unpack2x16float(h_5.y));
        let b_5 = vec4<f32>(unpack2x16float(h_5.z), unpack2x16float(h_5.w));
        let a_6 = vec4<f32>(unpack2x16float(h_6.x), unpack2x16float(h_6.y));
        let b_6 = vec4<f32>(unpack2x16float(h_6.z), unpack2x16float(h_6.w));
        let a_7 = vec4<f32>(unpack2x16float(h_7.x), unpack2x16float(h_7.y));
        let b_7 = vec4<f32>(unpack2x16float(h_7.z), unpack2x16float(h_7.w));
        let xa_0 = x[x_at_0 + 2u * unit];
        let xb_0 = x[x_at_0 + 2u * unit + 1u];
        sum_0_0 += dot(a_0, xa_0) + dot(b_0, xb_0);
        sum_0_1 += dot(a_1, xa_0) + dot(b_1, xb_0);
        sum_0_2 += dot(a_2, xa_0) + dot(b_2, xb_0);
        sum_0_3 += dot(a_3, xa_0) + dot(b_3, xb_0);
        sum_0_4 += dot(a_4, xa_0) + dot(b_4, xb_0);
        sum_0_5 += dot(a_5, xa_0) + dot(b_5, xb_0);
        sum_0_6 += dot(a_6, xa_0) + dot(b_6, xb_0);
        sum_0_7 += dot(a_7, xa_0) + dot(b_7, xb_0);
        if (ROWS > 1u) {
            let xa_1 = x[x_at_1 + 2u * unit];
            let xb_1 = x[x_at_1 + 2u * unit + 1u];
            sum_1_0 += dot(a_0, xa_1) + dot(b_0, xb_1);
            sum_1_1 += dot(a_1, xa_1) + dot(b_1, xb_1);
            sum_1_2 += dot(a_2, xa_1) + dot(b_2, xb_1);
            sum_1_3 += dot(a_3, xa_1) + dot(b_3, xb_1);
            sum_1_4 += dot(a_4, xa_1) + dot(b_4, xb_1);
            sum_1_5 += dot(a_5, xa_1) + dot(b_5, xb_1);
            sum_1_6 += dot(a_6, xa_1) + dot(b_6, xb_1);
            sum_1_7 += dot(a_7, xa_1) + dot(b_7, xb_1);
        }
        if (ROWS > 2u) {
            let xa_2 = x[x_at_2 + 2u * unit];
            let xb_2 = x[x_at_2 + 2u * unit + 1u];
            sum_2_0 += dot(a_0, xa_2) + dot(b_0, xb_2);
            sum_2_1 += dot(a_1, xa_2) + dot(b_1, xb_2);
            sum_2_2 += dot(a_2, xa_2) + dot(b_2, xb_2);
            sum_2_3 += dot(a_3, xa_2) + dot(b_3, xb_2);
            sum_2_4 += dot(a_4, xa_2) + dot(b_4, xb_2);
            sum_2_5 += dot(a_5, xa_2) + dot(b_5, xb_2);
            sum_2_6 += dot(a_6, xa_2) + dot(b_6, xb_2);
            sum_2_7 += dot(a_7, xa_2) + dot(b_7, xb_2);
        }
        if (ROWS > 3u) {
            let xa_3 = x[x_at_3 + 2u * unit];
            let xb_3 = x[x_at_3 + 2u * unit + 1u];
            sum_3_0 += dot(a_0, xa_3) + dot(b_0, xb_3);
            sum_3_1 += dot(a_1, xa_3) + dot(b_1, xb_3);
            sum_3_2 += dot(a_2, xa_3) + dot(b_2, xb_3);
            sum_3_3 += dot(a_3, xa_3) + dot(b_3, xb_3);
            sum_3_4 += dot(a_4, xa_3) + dot(b_4, xb_3);
            sum_3_5 += dot(a_5, xa_3) + dot(b_5, xb_3);
            sum_3_6 += dot(a_6, xa_3) + dot(b_6, xb_3);
            sum_3_7 += dot(a_7, xa_3) + dot(b_7, xb_3);
        }
        if (ROWS > 4u) {
            let xa_4 = x[x_at_4 + 2u * unit];
            let xb_4 = x[x_at_4 + 2u * unit + 1u];
            sum_4_0 += dot(a_0, xa_4) + dot(b_0, xb_4);
            sum_4_1 += dot(a_1, xa_4) + dot(b_1, xb_4);
            sum_4_2 += dot(a_2, xa_4) + dot(b_2, xb_4);
            sum_4_3 += dot(a_3, xa_4) + dot(b_3, xb_4);
            sum_4_4 += dot(a_4, xa_4) + dot(b_4, xb_4);
            sum_4_5 += dot(a_5, xa_4) + dot(b_5, xb_4);
            sum_4_6 += dot(a_6, xa_4) + dot(b_6, xb_4);
            sum_4_7 += dot(a_7, xa_4) + dot(b_7, xb_4);
        }
        if (ROWS > 5u) {
            let xa_5 = x[x_at_5 + 2u * unit];
            let xb_5 = x[x_at_5 + 2u * unit + 1u];
            sum_5_0 += dot(a_0, xa_5) + dot(b_0, xb_5);
            sum_5_1 += dot(a_1, xa_5) + dot(b_1, xb_5);
            sum_5_2 += dot(a_2, xa_5) + dot(b_2, xb_5);
            sum_5_3 += dot(a_3, xa_5) + dot(b_3, xb_5);
            sum_5_4 += dot(a_4, xa_5) + dot(b_4, xb_5);
            sum_5_5 += dot(a_5, xa_5) + dot(b_5, xb_5);
            sum_5_6 += dot(a_6, xa_5) + dot(b_6, xb_5);
            sum_5_7 += dot(a_7, xa_5) + dot(b_7, xb_5);
        }
        if (ROWS > 6u) {
            let xa_6 = x[x_at_6 + 2u * unit];
            let xb_6 = x[x_at_6 + 2u * unit + 1u];
            sum_6_0 += dot(a_0, xa_6) + dot(b_0, xb_6);
            sum_6_1 += dot(a_1, xa_6) + dot(b_1, xb_6);
            sum_6_2 += dot(a_2, xa_6) + dot(b_2, xb_6);
            sum_6_3 += dot(a_3, xa_6) + dot(b_3, xb_6);
            sum_6_4 += dot(a_4, xa_6) + dot(b_4, xb_6);
            sum_6_5 += dot(a_5, xa_6) + dot(b_5, xb_6);
            sum_6_6 += dot(a_6, xa_6) + dot(b_6, xb_6);
            sum_6_7 += dot(a_7, xa_6) + dot(b_7, xb_6);
        }
        if (ROWS > 7u) {
            let xa_7 = x[x_at_7 + 2u * unit];
            let xb_7 = x[x_at_7 + 2u * unit + 1u];
            sum_7_0 += dot(a_0, xa_7) + dot(b_0, xb_7);
            sum_7_1 += dot(a_1, xa_7) + dot(b_1, xb_7);
            sum_7_2 += dot(a_2, xa_7) + dot(b_2, xb_7);
            sum_7_3 += dot(a_3, xa_7) + dot(b_3, xb_7);
            sum_7_4 += dot(a_4, xa_7) + dot(b_4, xb_7);
            sum_7_5 += dot(a_5, xa_7) + dot(b_5, xb_7);
            sum_7_6 += dot(a_6, xa_7) + dot(b_6, xb_7);
            sum_7_7 += dot(a_7, xa_7) + dot(b_7, xb_7);
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
        let total_4 = subgroupAdd(c_4);
        let total_5 = subgroupAdd(c_5);
        let total_6 = subgroupAdd(c_6);
        let total_7 = subgroupAdd(c_7);
        if (lane == 0u) {
            store(row, column, total_0);
            store(row, column + 1u, total_1);
            store(row, column + 2u, total_2);
            store(row, column + 3u, total_3);
            store(row, column + 4u, total_4);
            store(row, column + 5u, total_5);
            store(row, column + 6u, total_6);
            store(row, column + 7u, total_7);
        }
    }
}
