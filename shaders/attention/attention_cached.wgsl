// Causal attention over one layer's paged KV cache, for prefill and decode alike: row r attends
// to the positions 0..=position of its own sequence, found through the page table.
//
//   qkv        row r, head h: the query at qkv[r * qkv_stride + h * head_dim + d]
//   k_cache, v_cache  [physical rows, heads * head_dim] f32
//   row_info   [rows]: x = sequence, y = position; position 0xffffffff: an inactive row, zeros out
//   page_table [sequences, max_length] u32: the physical row of (sequence, position)
//   out        [rows, heads * head_dim] f32, dense
//
// The new tokens' own keys and values are in the cache already (store_kv). head_dim <= 128.
// The softmax is streamed over tiles of 64 positions, always from position 0 on: a row's result
// depends on nothing but its own sequence. Grid: (rows, heads, 1); a workgroup of 64 a row and head.
// Called by OPT where head_dim is no multiple of 4.
// Measured: OPT-2.7B (32 x 80) on llvmpipe, CPU time / 2 cores, a layer: 1.1 ms for 1 row at position 60, 16 ms prefilling 40 rows.

#import shared/lowest

struct Params {
    heads: u32,
    head_dim: u32,
    qkv_stride: u32,
    max_length: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> k_cache: array<f32>;
@group(0) @binding(3) var<storage, read> v_cache: array<f32>;
@group(0) @binding(4) var<storage, read> row_info: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> page_table: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

const THREADS: u32 = 64u; // and positions a step
const INACTIVE: u32 = 0xffffffffu;

var<workgroup> query: array<f32, 128>;
var<workgroup> rows_of_keys: array<u32, THREADS>; // where a position's row of this head starts
var<workgroup> weights: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x;
    let width = params.heads * params.head_dim;
    let head = group.y * params.head_dim;
    let info = row_info[row];
    // In the output a thread owns the dimensions `thread` and `thread + 64`.
    let has_low = thread < params.head_dim;
    let has_high = thread + THREADS < params.head_dim;
    let length = select(info.y + 1u, 0u, info.y == INACTIVE);

    let q_row = row * params.qkv_stride + head;
    if has_low {
        query[thread] = qkv[q_row + thread];
    }
    if has_high {
        query[thread + THREADS] = qkv[q_row + thread + THREADS];
    }

    var highest = LOWEST;
    var sum = 0.0;
    var out_low = 0.0;
    var out_high = 0.0;
    for (var first = 0u; first < length; first += THREADS) {
        let keys_here = min(THREADS, length - first);
        workgroupBarrier();
        var score = LOWEST;
        if thread < keys_here {
            let physical_row = page_table[info.x * params.max_length + first + thread];
            let key_row = physical_row * width + head;
            rows_of_keys[thread] = key_row;
            var dot = 0.0;
            for (var d = 0u; d < params.head_dim; d++) {
                dot += query[d] * k_cache[key_row + d];
            }
            score = dot * params.scale;
        }
        weights[thread] = score;
        workgroupBarrier();

        var higher = highest;
        for (var key = 0u; key < keys_here; key++) {
            higher = max(higher, weights[key]);
        }
        let shrink = exp(highest - higher);
        highest = higher;
        sum *= shrink;
        out_low *= shrink;
        out_high *= shrink;
        workgroupBarrier();
        weights[thread] = exp(score - highest);
        workgroupBarrier();

        for (var key = 0u; key < keys_here; key++) {
            let weight = weights[key];
            let value_row = rows_of_keys[key];
            sum += weight;
            if has_low {
                out_low += weight * v_cache[value_row + thread];
            }
            if has_high {
                out_high += weight * v_cache[value_row + thread + THREADS];
            }
        }
    }

    let norm = select(0.0, 1.0 / sum, length > 0u);
    let out_row = row * width + head;
    if has_low {
        out[out_row + thread] = out_low * norm;
    }
    if has_high {
        out[out_row + thread + THREADS] = out_high * norm;
    }
}
