// matvec
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
override ROWS: u32 = 1u;
const WORKGROUP_SIZE: u32 = 64u;
var<workgroup> partial: array<vec4<f32>, WORKGROUP_SIZE * 16u>;

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


fn store_rows(first: u32, column: u32, sum: vec4<f32>) {
    store(first, column, sum.x);
    if (ROWS > 1u) {
        store(first + 1u, column, sum.y);
    }
    if (ROWS > 2u) {
        store(first + 2u, column, sum.z);
        store(first + 3u, column, sum.w);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let lanes = WORKGROUP_SIZE;
    let column = group.x * 8u;
    let k_units = params.in_features / 8u;
    let last_row = params.rows - 1u;
    let last_column = params.out_features - 1u;
    let x_at_0 = min(0u, last_row) * k_units * 2u;
    let x_at_1 = min(1u, last_row) * k_units * 2u;
    let x_at_2 = min(2u, last_row) * k_units * 2u;
    let x_at_3 = min(3u, last_row) * k_units * 2u;
    let x_at_4 = min(4u, last_row) * k_units * 2u;
    let x_at_5 = min(5u, last_row) * k_units * 2u;
    let x_at_6 = min(6u, last_row) * k_units * 2u;
    let x_at_7 = min(7u, last_row) * k_units * 2u;
    let w_at_0 = min(column + 0u, last_column) * k_units;
    let w_at_1 = min(column + 1u, last_column) * k_units;
    let w_at_2 = min(column + 2u, last_column) * k_units;
    let w_at_3 = min(column + 3u, last_column) * k_units;
    let w_at_4 = min(column + 4u, last_column) * k_units;
    let w_at_5 = min(column + 5u, last_column) * k_units;
    let w_at_6 = min(column + 6u, last_column) * k_units;
    let w_at_7 = min(column + 7u, last_column) * k_units;
    var sum_0 = vec4<f32>();
    var high_0 = vec4<f32>();
    var sum_1 = vec4<f32>();
    var high_1 = vec4<f32>();
    var sum_2 = vec4<f32>();
    var high_2 = vec4<f32>();
    var sum_3 = vec4<f32>();
    var high_3 = vec4<f32>();
    var sum_4 = vec4<f32>();
    var high_4 = vec4<f32>();
    var sum_5 = vec4<f32>();
    var high_5 = vec4<f32>();
    var sum_6 = vec4<f32>();
    var high_6 = vec4<f32>();
    var sum_7 = vec4<f32>();
    var high_7 = vec4<f32>();

    for (var k = lane; k < k_units; k += lanes) {
        let x_lo = transpose(mat4x4<f32>(x[x_at_0 + 2u * k + 0u], x[x_at_1 + 2u * k + 0u], x[x_at_2 + 2u * k + 0u], x[x_at_3 + 2u * k + 0u]));
        let z_lo = transpose(mat4x4<f32>(x[x_at_4 + 2u * k + 0u], x[x_at_5 + 2u * k + 0u], x[x_at_6 + 2u * k + 0u], x[x_at_7 + 2u * k + 0u]));
        let x_hi = transpose(mat4x4<f32>(x[x_at_0 + 2u * k + 1u], x[x_at_1 + 2u * k + 1u], x[x_at_2 + 2u * k + 1u], x[x_at_3 + 2u * k + 1u]));
        let z_hi = transpose(mat4x4<f32>(x[x_at_4 + 2u * k + 1u], x[x_at_5 + 2u * k + 1u], x[x_at_6 + 2u * k + 1u], x[x_at_7 + 2u * k + 1u]));
        let h_0 = weight[w_at_0 + k];
        let wa_0 = vec4<f32>(unpack2x16float(h_0.x), unpack2x16float(h_0.y));
        let wb_0 = vec4<f32>(unpack2x16float(h_0.z), unpack2x16float(h_0.w));
        sum_0 += x_lo * wa_0 + x_hi * wb_0;
        high_0 += z_lo * wa_0 + z_hi * wb_0;
        let h_1 = weight[w_at_1 + k];
        let wa_1 = vec4<f32>(unpack2x16float(h_1.x), unpack2x16float(h_1.y));
        let wb_1 = vec4<f32>(unpack2x16float(h_1.z), unpack2x16float(h_1.w));
        sum_1 += x_lo * wa_1 + x_hi * wb_1;
        high_1 += z_lo * wa_1 + z_hi * wb_1;
        let h_2 = weight[w_at_2 + k];
        let wa_2 = vec4<f32>(unpack2x16float(h_2.x), unpack2x16float(h_2.y));
        let wb_2 = vec4<f32>(unpack2x16float(h_2.z), unpack2x16float(h_2.w));
        sum_2 += x_lo * wa_2 + x_hi * wb_2;
        high_2 += z_lo * wa_2 + z_hi * wb_2;
        let h_3 = weight[w_at_3 + k];
        let wa_3 = vec4<f32>(unpack2x16float(h_3.x), unpack2x16float(h_3.y));
        let wb_3 = vec4<f32>(unpack2x16float(h_3.z), unpack2x16float(h_3.w));
        sum_3 += x_lo * wa_3 + x_hi * wb_3;
        high_3 += z_lo * wa_3 + z_hi * wb_3;
        let h_4 = weight[w_at_4 + k];
        let wa_4 = vec4<f32>(unpack2x16float(h_4.x), unpack2x16float(h_4.y));
        let wb_4 = vec4<f32>(unpack2x16float(h_4.z), unpack2x16float(h_4.w));
        sum_4 += x_lo * wa_4 + x_hi * wb_4;
        high_4 += z_lo * wa_4 + z_hi * wb_4;
        let h_5 = weight[w_at_5 + k];
        let wa_5 = vec4<f32>(unpack2x16float(h_5.x), unpack2x16float(h_5.y));
        let wb_5 = vec4<f32>(unpack2x16float(h_5.z), unpack2x16float(h_5.w));
        sum_5 += x_lo * wa_5 + x_hi * wb_5;
        high_5 += z_lo * wa_5 + z_hi * wb_5;
        let h_6 = weight[w_at_6 + k];
        let wa_6 = vec4<f32>(unpack2x16float(h_6.x), unpack2x16float(h_6.y));
        let wb_6 = vec4<f32>(unpack2x16float(h_6.z), unpack2x16float(h_6.w));
        sum_6 += x_lo * wa_6 + x_hi * wb_6;
        high_6 += z_lo * wa_6 + z_hi * wb_6;
        let h_7 = weight[w_at_7 + k];
        let wa_7 = vec4<f32>(unpack2x16float(h_7.x), unpack2x16float(h_7.y));
        let wb_7 = vec4<f32>(unpack2x16float(h_7.z), unpack2x16float(h_7.w));
        sum_7 += x_lo * wa_7 + x_hi * wb_7;
        high_7 += z_lo * wa_7 + z_hi * wb_7;
    }

    partial[lane * 16u + 0u] = sum_0;
    partial[lane * 16u + 8u] = high_0;
    partial[lane * 16u + 1u] = sum_1;
    partial[lane * 16u + 9u] = high_1;
    partial[lane * 16u + 2u] = sum_2;
    partial[lane * 16u + 10u] = high_2;
    partial[lane * 16u + 3u] = sum_3;
    partial[lane * 16u + 11u] = high_3;
    partial[lane * 16u + 4u] = sum_4;
    partial[lane * 16u + 12u] = high_4;
    partial[lane * 16u + 5u] = sum_5;
    partial[lane * 16u + 13u] = high_5;
    partial[lane * 16u + 6u] = sum_6;
    partial[lane * 16u + 14u] = high_6;
    partial[lane * 16u + 7u] = sum_7;
    partial[lane * 16u + 15u] = high_7;
    workgroupBarrier();
    if (lane < select(8u, 16u, ROWS > 4u)) {
        var total = vec4<f32>();
        for (var i = 0u; i < WORKGROUP_SIZE; i++) {
            total += partial[i * 16u + lane];
        }
        store_rows(lane / 8u * 4u, column + lane % 8u, total);
    }
}
