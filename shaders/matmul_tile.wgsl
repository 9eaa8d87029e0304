// matmul_tile: y = activation(x · wᵀ + bias) [+ y], for any GPU: shared memory, no subgroups, no f16 feature.
//
// Tile: 64 rows × 64 columns a workgroup of 256, 4 × 4 a thread, 16 of K a step, 10 KiB of workgroup memory.
// Grid: (ceil(N / 64), ceil(M / 64), 1).
// Called by kernels/linear.rs for more than 8 rows, where matmul_register is not.
// Prepended: linear.wgsl, which has the shapes and bindings, and a weights_*.wgsl.
//
// Measured: 256×1024×1024, 7.6 GFLOP/s (llvmpipe, Mesa 22.3.6, two 2.6 GHz cores; by CPU time, on a busy machine).

const TILE: u32 = 64u;
// A row of a shared tile: 16 of K are 4 vec4; the fifth is padding that spreads the rows over the memory banks.
const STRIDE: u32 = 5u;

var<workgroup> x_tile: array<vec4<f32>, TILE * STRIDE>;
var<workgroup> w_tile: array<vec4<f32>, TILE * STRIDE>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_base = tile.y * TILE;
    let column_base = tile.x * TILE;

    // Every thread brings one vec4 of x a step, every second thread 8 values of w. Rows past the end bring the last row.
    let x_row = thread / 4u;
    let x_part = thread % 4u;
    let x_from = min(row_base + x_row, params.rows - 1u) * (params.in_features / 4u);
    let w_row = (thread / 2u) % TILE;
    let w_part = thread % 2u;
    let w_from = min(column_base + w_row, params.out_features - 1u);

    // Thread (tx, ty) owns rows ty, ty + 16, .. and columns tx, tx + 16, ..
    let tx = thread % 16u;
    let ty = thread / 16u;
    var sum_0 = vec4<f32>();
    var sum_1 = vec4<f32>();
    var sum_2 = vec4<f32>();
    var sum_3 = vec4<f32>();

    for (var k = 0u; k < params.in_features; k += 16u) {
        var x_value = vec4<f32>();
        if (k + 4u * x_part < params.in_features) {
            x_value = x[x_from + k / 4u + x_part];
        }
        x_tile[x_row * STRIDE + x_part] = x_value;
        if (thread < 2u * TILE) {
            var values = Eight();
            if (k + 8u * w_part < params.in_features) {
                values = eight_at(params.out_features, params.in_features, w_from, k + 8u * w_part);
            }
            let at = w_row * STRIDE + 2u * w_part;
            w_tile[at] = values.first;
            w_tile[at + 1u] = values.second;
        }
        workgroupBarrier();

        for (var part = 0u; part < 4u; part++) {
            let w_0 = w_tile[tx * STRIDE + part];
            let w_1 = w_tile[(tx + 16u) * STRIDE + part];
            let w_2 = w_tile[(tx + 32u) * STRIDE + part];
            let w_3 = w_tile[(tx + 48u) * STRIDE + part];
            let x_0 = x_tile[ty * STRIDE + part];
            sum_0 += vec4<f32>(dot(x_0, w_0), dot(x_0, w_1), dot(x_0, w_2), dot(x_0, w_3));
            let x_1 = x_tile[(ty + 16u) * STRIDE + part];
            sum_1 += vec4<f32>(dot(x_1, w_0), dot(x_1, w_1), dot(x_1, w_2), dot(x_1, w_3));
            let x_2 = x_tile[(ty + 32u) * STRIDE + part];
            sum_2 += vec4<f32>(dot(x_2, w_0), dot(x_2, w_1), dot(x_2, w_2), dot(x_2, w_3));
            let x_3 = x_tile[(ty + 48u) * STRIDE + part];
            sum_3 += vec4<f32>(dot(x_3, w_0), dot(x_3, w_1), dot(x_3, w_2), dot(x_3, w_3));
        }
        workgroupBarrier();
    }

    let row = row_base + ty;
    let column = column_base + tx;
    store(row, column, sum_0.x);
    store(row, column + 16u, sum_0.y);
    store(row, column + 32u, sum_0.z);
    store(row, column + 48u, sum_0.w);
    store(row + 16u, column, sum_1.x);
    store(row + 16u, column + 16u, sum_1.y);
    store(row + 16u, column + 32u, sum_1.z);
    store(row + 16u, column + 48u, sum_1.w);
    store(row + 32u, column, sum_2.x);
    store(row + 32u, column + 16u, sum_2.y);
    store(row + 32u, column + 32u, sum_2.z);
    store(row + 32u, column + 48u, sum_2.w);
    store(row + 48u, column, sum_3.x);
    store(row + 48u, column + 16u, sum_3.y);
    store(row + 48u, column + 32u, sum_3.z);
    store(row + 48u, column + 48u, sum_3.w);
}
