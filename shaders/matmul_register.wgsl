// matmul_register: y = activation(x · wᵀ + bias) [+ y], an outer product in registers: no shared memory, no barriers.
//
struct Params {
    rows: u32,         // M
    out_features: u32, // N
    in_features: u32,  // K
    y_stride: u32,
    y_offset: u32,
    bias_offset: u32,
    pad_0: u32,
    pad_1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

override HAS_BIAS: bool = false;
override ACCUMULATE: bool = false;
override WORKGROUP_SIZE: u32 = 8u;

fn store(row: u32, column: u32, sum: f32) {
    if (row >= params.rows || column >= params.out_features) {
        return;
    }
    var v = sum;
    if (HAS_BIAS) {
        v += bias[params.bias_offset + column];
    }
    v = activate(v);
    let at = row * params.y_stride + params.y_offset + column;
    if (ACCUMULATE) {
        v += y[at];
    }
    y[at] = v;
}

fn store_row(row: u32, column: u32, sum: vec4<f32>) {
    store(row, column, sum.x);
    store(row, column + WORKGROUP_SIZE, sum.y);
    store(row, column + 2u * WORKGROUP_SIZE, sum.z);
    store(row, column + 3u * WORKGROUP_SIZE, sum.w);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) tile: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let k_units = params.in_features / 8u;
    let row_base = tile.y * 16u;
    let column = tile.x * 4u * WORKGROUP_SIZE + thread;
    let last_row = params.rows - 1u;
    let last_column = params.out_features - 1u;

    var w_at = min(vec4<u32>(column) + vec4<u32>(0u, 1u, 2u, 3u) * WORKGROUP_SIZE, vec4<u32>(last_column)) * k_units;
    var x_at_0 = min(row_base + lane % 8u, last_row) * k_units * 2u;
    var x_at_1 = min(row_base + 8u + lane % 8u, last_row) * k_units * 2u;

    var sum_0 = vec4<f32>();
    var sum_1 = vec4<f32>();
    var sum_2 = vec4<f32>();
    var sum_3 = vec4<f32>();
    var sum_4 = vec4<f32>();
    var sum_5 = vec4<f32>();
    var sum_6 = vec4<f32>();
    var sum_7 = vec4<f32>();
    var sum_8 = vec4<f32>();
    var sum_9 = vec4<f32>();
    var sum_10 = vec4<f32>();
    var sum_11 = vec4<f32>();
    var sum_12 = vec4<f32>();
    var sum_13 = vec4<f32>();
    var sum_14 = vec4<f32>();
    var sum_15 = vec4<f32>();

    for (var k = 0u; k < k_units; k++) {
        let h_0 = weight[w_at.x];
        let h_1 = weight[w_at.y];
        let h_2 = weight[w_at.z];
        let h_3 = weight[w_at.w];
        w_at += vec4<u32>(1u);
        let p_00 = unpack2x16float(h_0.x);
        let p_10 = unpack2x16float(h_1.x);
        let p_20 = unpack2x16float(h_2.x);
        let p_30 = unpack2x16float(h_3.x);
        let p_01 = unpack2x16float(h_0.y);
        let p_11 = unpack2x16float(h_1.y);
        let p_21 = unpack2x16float(h_2.y);
        let p_31 = unpack2x16float(h_3.y);
        let p_02 = unpack2x16float(h_0.z);
        let p_12 = unpack2x16float(h_1.z);
        let p_22 = unpack2x16float(h_2.z);
        let p_32 = unpack2x16float(h_3.z);
        let p_03 = unpack2x16float(h_0.w);
        let p_13 = unpack2x16float(h_1.w);
        let p_23 = unpack2x16float(h_2.w);
        let p_33 = unpack2x16float(h_3.w);
        let w_lo = mat4x4<f32>(vec4<f32>(p_00.x, p_10.x, p_20.x, p_30.x), vec4<f32>(p_00.y, p_10.y, p_20.y, p_30.y), vec4<f32>(p_01.x, p_11.x, p_21.x, p_31.x), vec4<f32>(p_01.y, p_11.y, p_21.y, p_31.y));
        let w_hi = mat4x4<f32>(vec4<f32>(p_02.x, p_12.x, p_22.x, p_32.x), vec4<f32>(p_02.y, p_12.y, p_22.y, p_32.y), vec4<f32>(p_03.x, p_13.x, p_23.x, p_33.x), vec4<f32>(p_03.y, p_13.y, p_23.y, p_33.y));
        let x_lo_0 = x[x_at_0];
        let x_hi_0 = x[x_at_0 + 1u];
        x_at_0 += 2u;
        let x_lo_1 = x[x_at_1];
        let x_hi_1 = x[x_at_1 + 1u];
        x_at_1 += 2u;
        sum_0 += w_lo * subgroupBroadcast(x_lo_0, 0u) + w_hi * subgroupBroadcast(x_hi_0, 0u);
        sum_1 += w_lo * subgroupBroadcast(x_lo_0, 1u) + w_hi * subgroupBroadcast(x_hi_0, 1u);
        sum_2 += w_lo * subgroupBroadcast(x_lo_0, 2u) + w_hi * subgroupBroadcast(x_hi_0, 2u);
        sum_3 += w_lo * subgroupBroadcast(x_lo_0, 3u) + w_hi * subgroupBroadcast(x_hi_0, 3u);
        sum_4 += w_lo * subgroupBroadcast(x_lo_0, 4u) + w_hi * subgroupBroadcast(x_hi_0, 4u);
        sum_5 += w_lo * subgroupBroadcast(x_lo_0, 5u) + w_hi * subgroupBroadcast(x_hi_0, 5u);
        sum_6 += w_lo * subgroupBroadcast(x_lo_0, 6u) + w_hi * subgroupBroadcast(x_hi_0, 6u);
        sum_7 += w_lo * subgroupBroadcast(x_lo_0, 7u) + w_hi * subgroupBroadcast(x_hi_0, 7u);
        sum_8 += w_lo * subgroupBroadcast(x_lo_1, 0u) + w_hi * subgroupBroadcast(x_hi_1, 0u);
        sum_9 += w_lo * subgroupBroadcast(x_lo_1, 1u) + w_hi * subgroupBroadcast(x_hi_1, 1u);
        sum_10 += w_lo * subgroupBroadcast(x_lo_1, 2u) + w_hi * subgroupBroadcast(x_hi_1, 2u);
        sum_11 += w_lo * subgroupBroadcast(x_lo_1, 3u) + w_hi * subgroupBroadcast(x_hi_1, 3u);
        sum_12 += w_lo * subgroupBroadcast(x_lo_1, 4u) + w_hi * subgroupBroadcast(x_hi_1, 4u);
        sum_13 += w_lo * subgroupBroadcast(x_lo_1, 5u) + w_hi * subgroupBroadcast(x_hi_1, 5u);
        sum_14 += w_lo * subgroupBroadcast(x_lo_1, 6u) + w_hi * subgroupBroadcast(x_hi_1, 6u);
        sum_15 += w_lo * subgroupBroadcast(x_lo_1, 7u) + w_hi * subgroupBroadcast(x_hi_1, 7u);
    }

    store_row(row_base + 0u, column, sum_0);
    store_row(row_base + 1u, column, sum_1);
    store_row(row_base + 2u, column, sum_2);
    store_row(row_base + 3u, column, sum_3);
    store_row(row_base + 4u, column, sum_4);
    store_row(row_base + 5u, column, sum_5);
    store_row(row_base + 6u, column, sum_6);
    store_row(row_base + 7u, column, sum_7);
    store_row(row_base + 8u, column, sum_8);
    store_row(row_base + 9u, column, sum_9);
    store_row(row_base + 10u, column, sum_10);
    store_row(row_base + 11u, column, sum_11);
    store_row(row_base + 12u, column, sum_12);
    store_row(row_base + 13u, column, sum_13);
    store_row(row_base + 14u, column, sum_14);
    store_row(row_base + 15u, column, sum_15);
}
