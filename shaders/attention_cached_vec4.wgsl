// Causal attention over one layer's paged KV cache, reading four numbers at a time: the contract of
// attention_cached.wgsl, but head_dim, q_stride, q_offset and cache_offset are multiples of 4.
// Row r attends to the positions 0..=position of its own sequence, found through the page table.
//
//   q          row r, head h: q[q_offset + r * q_stride + h * head_dim + d] (the fused qkv buffer)
//   k_cache, v_cache  [physical rows, heads * head_dim] f32, this layer's at cache_offset
//   row_info   [rows]: x = sequence, y = position; position 0xffffffff: an inactive row, zeros out
//   page_table [sequences, max_length] u32: the physical row of (sequence, position)
//   out        [rows, heads * head_dim] f32, dense
//
// The new tokens' own keys and values are in the cache already (store_kv). head_dim <= 128.
// The softmax is streamed over tiles of 32 positions, always from position 0 on: a row's result
// depends on nothing but its own sequence. Grid: (rows, heads, 1); a workgroup of 32 · GROUPS a row and head. With more
// than one, groups of 32 threads take the tiles in turns, each with its own running maximum and sum, and put them
// together in the end: a long sequence is not one long chain of steps.
// Called by OPT where head_dim is a multiple of 4 (80 and 128 in the published models).
// Measured: OPT-2.7B (32 x 80) on llvmpipe, CPU time / 2 cores, a layer: 0.5 ms for 1 row at position 60, 8.6 ms prefilling 40 rows.
// Several groups are unmeasured on a GPU.

struct Params {
    rows: u32,
    heads: u32,
    head_dim: u32,
    q_stride: u32,
    q_offset: u32,
    max_length: u32,
    cache_offset: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k_cache: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v_cache: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> row_info: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> page_table: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;

const THREADS: u32 = 32u; // and positions a step, and vec4s of the longest head
const INACTIVE: u32 = 0xffffffffu;
const LOWEST: f32 = -3.4028235e38;

override GROUPS: u32 = 1u;
override WORKGROUP_SIZE: u32 = 32u; // 32 · GROUPS

var<workgroup> query: array<vec4<f32>, THREADS>;
// Of each position of the step: where its row of this head starts, in vec4s, and its score's bits.
var<workgroup> keys: array<vec2<u32>, WORKGROUP_SIZE>;
// What the groups have in the end: maxima and sums, and outputs.
var<workgroup> parts: array<vec2<f32>, GROUPS>;
var<workgroup> results: array<vec4<f32>, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let thread = invocation % THREADS;
    let group = invocation / THREADS;
    let row = workgroup.x;
    let columns = params.head_dim / 4u;
    let width = params.heads * columns;
    let head = workgroup.y * columns;
    let info = row_info[row];
    let length = select(info.y + 1u, 0u, info.y == INACTIVE);
    let has_column = thread < columns;
    if has_column && group == 0u {
        query[thread] = q[(params.q_offset + row * params.q_stride) / 4u + head + thread];
    }

    var highest = LOWEST;
    var sum = 0.0;
    var result = vec4<f32>();
    for (var step = 0u; step < length; step += WORKGROUP_SIZE) {
        let first = min(step + group * THREADS, length);
        let keys_here = min(THREADS, length - first);
        workgroupBarrier();
        // Each thread the score of one position,
        if thread < keys_here {
            let physical_row = page_table[info.x * params.max_length + first + thread];
            let key_row = params.cache_offset / 4u + physical_row * width + head;
            var products = vec4<f32>();
            for (var d = 0u; d < columns; d++) {
                products += query[d] * k_cache[key_row + d];
            }
            let score = (products.x + products.y + products.z + products.w) * params.scale;
            keys[invocation] = vec2<u32>(key_row, bitcast<u32>(score));
        }
        workgroupBarrier();
        // then four numbers of the output. What was summed under a lower maximum shrinks.
        if has_column {
            for (var i = 0u; i < keys_here; i++) {
                let key = keys[group * THREADS + i];
                let score = bitcast<f32>(key.y);
                let higher = max(highest, score);
                let shrink = exp(highest - higher);
                let weight = exp(score - higher);
                highest = higher;
                sum = sum * shrink + weight;
                result = result * shrink + weight * v_cache[key.x + thread];
            }
        }
    }

    if (GROUPS > 1u) {
        if (thread == 0u) {
            parts[group] = vec2<f32>(highest, sum);
        }
        results[invocation] = result;
        workgroupBarrier();
        var highest_of_all = LOWEST;
        for (var i = 0u; i < GROUPS; i++) {
            highest_of_all = max(highest_of_all, parts[i].x);
        }
        sum = 0.0;
        result = vec4<f32>();
        for (var i = 0u; i < GROUPS; i++) {
            let shrink = exp(parts[i].x - highest_of_all);
            sum += parts[i].y * shrink;
            result += results[i * THREADS + thread] * shrink;
        }
    }
    if has_column && group == 0u {
        out[row * width + head + thread] = result * select(0.0, 1.0 / sum, length > 0u);
    }
}
