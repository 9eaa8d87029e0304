// matmul_cooperative: y = activation(x · wᵀ + bias) [+ y] on cooperative matrices: f16 products, f32 sums.
//
// x is rounded to f16, and so are weights, which changes only quantised ones (a value times its block's scale has more
// bits than a half): the relative error of a product is about 3e-4, at most 1e-3. Values of x beyond f16's range count
// as its largest.
//
// A fragment is SIZE × SIZE. A subgroup owns FRAGMENT_ROWS × FRAGMENT_COLUMNS of them (at most 4 × 4: named variables,
// as arrays of fragments are not to be had), a workgroup SUBGROUP_ROWS × SUBGROUP_COLUMNS subgroups, times SPLITS that
// share one tile: each takes every SPLITS-th fragment along K, for products too small to fill the GPU otherwise. Where
// the driver chooses how wide subgroups are, SPLITS is 0: as many as the workgroup turns out to have.
// The tile is SIZE · FRAGMENT_ROWS · SUBGROUP_ROWS rows × SIZE · FRAGMENT_COLUMNS · SUBGROUP_COLUMNS columns.
//
// DEPTH of K at a time, a slice, goes through workgroup memory; the next slice is fetched into registers meanwhile. With
// two STAGES there is room for two slices, so that no thread waits for the others before it stores one: one barrier a
// slice instead of two. DEPTH is a multiple of SIZE. No thread brings more than four times eight values of x or of w:
// tile rows (columns) · DEPTH / 8 ≤ 4 · WORKGROUP_SIZE. Workgroup memory, bytes:
// 2 · (DEPTH + 8) · (tile rows + tile columns) · STAGES + 4 · SIZE² · MOST_SUBGROUPS.
// WORKGROUP_SIZE is a multiple of SUBGROUP_ROWS · SUBGROUP_COLUMNS · the widest subgroup.
//
// Where few tiles would leave a GPU idle, workgroups along z share a tile: each takes `params.range` of K, a multiple of
// DEPTH, and leaves its sums in y as [range, M, N rounded up to a multiple of four], without bias, activation or residual;
// add_ranges.wgsl ends them. Otherwise params.range is K at least.
//
// A sum's order depends on K, SIZE, the splits and params.range, where DEPTH is a multiple of SIZE · SPLITS.
// Grid: (ceil(N / tile columns), ceil(M / tile rows), ceil(K / params.range)).
// Called by kernels/linear/cooperative.rs where the adapter lists such fragments (`Capabilities::cooperative_matrices`).
// linear.wgsl has the shapes and bindings.
//
// Unmeasured on a GPU. Tested with fragments of 8 × 8 on llvmpipe (Mesa 26.2), which computes them lane by lane.

enable subgroups;

#import shared/fragments_{size}
#import shared/weights_{weights}
#import linear/linear
#import linear/cooperative_{x}
#import linear/cooperative_weights_{weight_halves}
#import linear/cooperative_{tile}

override WORKGROUP_SIZE: u32 = 128u;
override MOST_SUBGROUPS: u32 = 4u; // that a workgroup can have
override FRAGMENT_ROWS: u32 = 4u;    // 1 to 4
override FRAGMENT_COLUMNS: u32 = 4u; // 1 to 4
override SUBGROUP_ROWS: u32 = 2u;
override SUBGROUP_COLUMNS: u32 = 2u;
override SPLITS: u32 = 1u;           // 0: as many as there are
override DEPTH: u32 = 32u;
override STAGES: u32 = 1u;           // 1 or 2

override TILE_ROWS: u32 = SIZE * FRAGMENT_ROWS * SUBGROUP_ROWS;
override TILE_COLUMNS: u32 = SIZE * FRAGMENT_COLUMNS * SUBGROUP_COLUMNS;
override SUBGROUPS: u32 = SUBGROUP_ROWS * SUBGROUP_COLUMNS;
override PARTS: u32 = DEPTH / 8u; // eights in a row of a slice
// Eight halves of padding spread the rows over the memory banks and keep them at 16 bytes.
override STRIDE: u32 = DEPTH + 8u;
override X_UNITS: u32 = TILE_ROWS * PARTS;
override W_UNITS: u32 = TILE_COLUMNS * PARTS;

override X_STAGE: u32 = TILE_ROWS * STRIDE;
override W_STAGE: u32 = TILE_COLUMNS * STRIDE;
override X_PIECES: u32 = STAGES * X_STAGE / PIECE;
override W_PIECES: u32 = STAGES * W_STAGE / PIECE;
override RESULTS: u32 = MOST_SUBGROUPS * SIZE * SIZE;

var<workgroup> x_tile: array<Piece, X_PIECES>; // [stage, row, k]
var<workgroup> w_tile: array<Piece, W_PIECES>; // [stage, column, k]
var<workgroup> results: array<f32, RESULTS>;    // a fragment for each

// The unit-th eight values of the slice of x from column k on; zeros beyond K and beyond the slice. Rows past the end repeat
// the last one.
fn fetch_x(first_row: u32, unit: u32, k: u32) -> Halves {
    let column = k + unit % PARTS * 8u;
    if (unit >= X_UNITS || column >= params.in_features) {
        return Halves();
    }
    return x_halves_at(min(first_row + unit / PARTS, params.rows - 1u), column);
}

fn fetch_w(first_column: u32, unit: u32, k: u32) -> Halves {
    let column = k + unit % PARTS * 8u;
    if (unit >= W_UNITS || column >= params.in_features) {
        return Halves();
    }
    return weight_halves_at(min(first_column + unit / PARTS, params.out_features - 1u), column);
}

fn put_x(stage: u32, unit: u32, halves: Halves) {
    if (unit < X_UNITS) {
        put_x_halves(stage * X_STAGE + unit / PARTS * STRIDE + unit % PARTS * 8u, halves);
    }
}

fn put_w(stage: u32, unit: u32, halves: Halves) {
    if (unit < W_UNITS) {
        put_w_halves(stage * W_STAGE + unit / PARTS * STRIDE + unit % PARTS * 8u, halves);
    }
}

// Ends a sum, or leaves it for add_ranges where it is that of one range.
fn store_sum(range: u32, row: u32, column: u32, sum: f32) {
    if (params.range >= params.in_features) {
        store(row, column, sum);
    } else if (row < params.rows && column < params.out_features) {
        let stride = (params.out_features + 3u) / 4u * 4u;
        y[(range * params.rows + row) * stride + column] = sum;
    }
}

// Adds up and stores the fragments that all splits of a subgroup have put into `results`; their lanes, of which this is
// number `lane` of `lanes`, share the work. Between two barriers: results are whole before they are read, and read
// before the next ones come.
fn store_fragment(range: u32, subgroup: u32, splits: u32, lane: u32, lanes: u32, row: u32, column: u32) {
    workgroupBarrier();
    for (var at = lane; at < SIZE * SIZE; at += lanes) {
        var sum = 0.0;
        for (var split = 0u; split < splits; split++) {
            sum += results[(split * SUBGROUPS + subgroup) * SIZE * SIZE + at];
        }
        store_sum(range, row + at / SIZE, column + at % SIZE, sum);
    }
    workgroupBarrier();
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup_index: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_size) subgroup_lanes: u32,
) {
    let first_row = group.y * TILE_ROWS;
    let first_column = group.x * TILE_COLUMNS;
    let begin = group.z * params.range;
    let end = min(begin + params.range, params.in_features);
    let splits = select(SPLITS, subgroups / SUBGROUPS, SPLITS == 0u);
    let split = subgroup_index / SUBGROUPS;
    let subgroup = subgroup_index % SUBGROUPS;
    // Where the subgroup's fragments start within the tile.
    let own_row = subgroup / SUBGROUP_COLUMNS * SIZE * FRAGMENT_ROWS;
    let own_column = subgroup % SUBGROUP_COLUMNS * SIZE * FRAGMENT_COLUMNS;

    // sum_r_c: fragment row r, fragment column c.
#for r in 0..4
#for c in 0..4
    var sum_$r_$c: FragmentC;
#end
#end
#for r in 0..4
    var a_$r: FragmentA;
#end
    var b: FragmentB;

    // What this thread brings of the next slice: units thread, thread + WORKGROUP_SIZE, ..
#for i in 0..4
    var x_$i = Halves();
#end
#for i in 0..4
    var w_$i = Halves();
#end
#for i in 0..4
    if (X_UNITS > $iu * WORKGROUP_SIZE) {
        x_$i = fetch_x(first_row, thread + $iu * WORKGROUP_SIZE, begin);
    }
#end
#for i in 0..4
    if (W_UNITS > $iu * WORKGROUP_SIZE) {
        w_$i = fetch_w(first_column, thread + $iu * WORKGROUP_SIZE, begin);
    }
#end

    var stage = 0u;
    for (var k = begin; k < end; k += DEPTH) {
        if (STAGES == 1u) {
            workgroupBarrier();
        }
#for i in 0..4
        if (X_UNITS > $iu * WORKGROUP_SIZE) {
            put_x(stage, thread + $iu * WORKGROUP_SIZE, x_$i);
        }
#end
#for i in 0..4
        if (W_UNITS > $iu * WORKGROUP_SIZE) {
            put_w(stage, thread + $iu * WORKGROUP_SIZE, w_$i);
        }
#end
        workgroupBarrier();
        let next = k + DEPTH;
        if (next < end) {
#for i in 0..4
            if (X_UNITS > $iu * WORKGROUP_SIZE) {
                x_$i = fetch_x(first_row, thread + $iu * WORKGROUP_SIZE, next);
            }
#end
#for i in 0..4
            if (W_UNITS > $iu * WORKGROUP_SIZE) {
                w_$i = fetch_w(first_column, thread + $iu * WORKGROUP_SIZE, next);
            }
#end
        }

        // x_tile is row-major (coopLoadT); w_tile is [column, k], so that w's transpose is column-major (coopLoad).
        for (var step = split * SIZE; step < DEPTH; step += splits * SIZE) {
            let x_from = stage * X_STAGE + own_row * STRIDE + step;
            let w_from = stage * W_STAGE + own_column * STRIDE + step;
#for r in 0..4
            if (FRAGMENT_ROWS > $ru) {
                a_$r = coopLoadT<FragmentA>(&x_tile[(x_from + $ru * SIZE * STRIDE) / PIECE], STRIDE / PIECE);
            }
#end
#for c in 0..4
            if (FRAGMENT_COLUMNS > $cu) {
                b = coopLoad<FragmentB>(&w_tile[(w_from + $cu * SIZE * STRIDE) / PIECE], STRIDE / PIECE);
#for r in 0..4
                if (FRAGMENT_ROWS > $ru) {
                    sum_$r_$c = coopMultiplyAdd(a_$r, b, sum_$r_$c);
                }
#end
            }
#end
        }
        stage = STAGES - 1u - stage;
    }

    // Every argument of coopStoreT is bound first: naga 30 stores before it evaluates what stands in the call.
    let own_results = subgroup_index * SIZE * SIZE;
    let results_stride = SIZE;
    let lane = split * subgroup_lanes + subgroup_lane;
    let lanes = splits * subgroup_lanes;
    let row = first_row + own_row;
    let column = first_column + own_column;
#for r in 0..4
    if (FRAGMENT_ROWS > $ru) {
#for c in 0..4
        if (FRAGMENT_COLUMNS > $cu) {
            let sum = sum_$r_$c;
            coopStoreT(sum, &results[own_results], results_stride);
            store_fragment(group.z, subgroup, splits, lane, lanes, row + $ru * SIZE, column + $cu * SIZE);
        }
#end
    }
#end
}
