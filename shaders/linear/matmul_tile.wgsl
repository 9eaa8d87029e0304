// matmul_tile: y = activation(x · wᵀ + bias) [+ y], for any GPU: shared memory, no subgroups, no f16 feature.
//
// Tile: TILE_ROWS (32, 64 or 128) × TILE_COLUMNS (32 or 64) a workgroup of 4 · TILE_COLUMNS, TILE_ROWS / 16 × 4 a
// thread, 16 of K a step; 80 · (TILE_ROWS + TILE_COLUMNS) bytes of workgroup memory. Sums have one order for all sizes.
// Grid: (ceil(N / TILE_COLUMNS), ceil(M / TILE_ROWS), 1).
// Called by kernels/linear/tile.rs for more than 8 rows, where matmul_register is not.
// linear.wgsl has the shapes and bindings.
//
// Measured: 256×1024×1024, 7.6 GFLOP/s (llvmpipe, Mesa 22.3.6, two 2.6 GHz cores; by CPU time, on a busy machine).
// Other sizes than 64×64 are unmeasured on a GPU.

#import linear/linear
#import shared/weights_{weights}

override TILE_ROWS: u32 = 64u;
override TILE_COLUMNS: u32 = 64u;
override WORKGROUP_SIZE: u32 = 256u; // 4 · TILE_COLUMNS
override ACROSS: u32 = TILE_COLUMNS / 4u; // threads side by side; 16 above each other

// A row of a shared tile: 16 of K are 4 vec4; the fifth is padding that spreads the rows over the memory banks.
const STRIDE: u32 = 5u;

var<workgroup> x_tile: array<vec4<f32>, TILE_ROWS * STRIDE>;
var<workgroup> w_tile: array<vec4<f32>, TILE_COLUMNS * STRIDE>;

// Four columns' products with a piece of row `row` of x.
fn products(row: u32, part: u32, w_0: vec4<f32>, w_1: vec4<f32>, w_2: vec4<f32>, w_3: vec4<f32>) -> vec4<f32> {
    let value = x_tile[row * STRIDE + part];
    return vec4<f32>(dot(value, w_0), dot(value, w_1), dot(value, w_2), dot(value, w_3));
}

fn store_four(row: u32, column: u32, sum: vec4<f32>) {
    store(row, column, sum.x);
    store(row, column + ACROSS, sum.y);
    store(row, column + 2u * ACROSS, sum.z);
    store(row, column + 3u * ACROSS, sum.w);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(workgroup_id) tile: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_base = tile.y * TILE_ROWS;
    let column_base = tile.x * TILE_COLUMNS;

    // Threads bring a vec4 of x at a time, the first half of them 8 values of w. Rows past the end bring the last row.
    let w_row = thread / 2u;
    let w_part = thread % 2u;
    let w_from = min(column_base + w_row, params.out_features - 1u);

    // Thread (tx, ty) owns rows ty, ty + 16, .. and columns tx, tx + ACROSS, ..
    let tx = thread % ACROSS;
    let ty = thread / ACROSS;
    var sum_0 = vec4<f32>();
    var sum_1 = vec4<f32>();
    var sum_2 = vec4<f32>();
    var sum_3 = vec4<f32>();
    var sum_4 = vec4<f32>();
    var sum_5 = vec4<f32>();
    var sum_6 = vec4<f32>();
    var sum_7 = vec4<f32>();

    for (var k = 0u; k < params.in_features; k += 16u) {
        for (var unit = thread; unit < 4u * TILE_ROWS; unit += WORKGROUP_SIZE) {
            let x_row = min(row_base + unit / 4u, params.rows - 1u);
            let x_part = unit % 4u;
            var x_value = vec4<f32>();
            if (k + 4u * x_part < params.in_features) {
                x_value = x[x_row * (params.in_features / 4u) + k / 4u + x_part];
            }
            x_tile[unit / 4u * STRIDE + x_part] = x_value;
        }
        if (thread < 2u * TILE_COLUMNS) {
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
            let w_1 = w_tile[(tx + ACROSS) * STRIDE + part];
            let w_2 = w_tile[(tx + 2u * ACROSS) * STRIDE + part];
            let w_3 = w_tile[(tx + 3u * ACROSS) * STRIDE + part];
            sum_0 += products(ty, part, w_0, w_1, w_2, w_3);
            sum_1 += products(ty + 16u, part, w_0, w_1, w_2, w_3);
            if (TILE_ROWS > 32u) {
                sum_2 += products(ty + 32u, part, w_0, w_1, w_2, w_3);
                sum_3 += products(ty + 48u, part, w_0, w_1, w_2, w_3);
            }
            if (TILE_ROWS > 64u) {
                sum_4 += products(ty + 64u, part, w_0, w_1, w_2, w_3);
                sum_5 += products(ty + 80u, part, w_0, w_1, w_2, w_3);
                sum_6 += products(ty + 96u, part, w_0, w_1, w_2, w_3);
                sum_7 += products(ty + 112u, part, w_0, w_1, w_2, w_3);
            }
        }
        workgroupBarrier();
    }

    let row = row_base + ty;
    let column = column_base + tx;
    store_four(row, column, sum_0);
    store_four(row + 16u, column, sum_1);
    if (TILE_ROWS > 32u) {
        store_four(row + 32u, column, sum_2);
        store_four(row + 48u, column, sum_3);
    }
    if (TILE_ROWS > 64u) {
        store_four(row + 64u, column, sum_4);
        store_four(row + 80u, column, sum_5);
        store_four(row + 96u, column, sum_6);
        store_four(row + 112u, column, sum_7);
    }
}
