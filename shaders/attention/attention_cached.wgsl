// attention_cached: causal attention over one layer's paged KV cache, for prefill and decode alike. Row r attends to the positions 0..=position of its own sequence, found through the page table.
//
//   qkv        row r, head h: the query at qkv[r * qkv_stride + h * head_dim + d], its key and its value one and two widths behind
//   k_cache, v_cache  [physical rows, heads * head_dim] f32
//   row_info   [rows]: x = sequence, y = position; position 0xffffffff: an inactive row, zeros out
//   page_table [sequences, max_length] u32: the physical row of (sequence, position)
//   out        [rows, heads * head_dim] f32, dense
//
// head_dim is a multiple of 4, at most 128. The new tokens' own keys and values are in the cache already (store_kv), or, with STORES, each workgroup
// first puts its row's own there: only where no row attends to another's of the same dispatch, as in decoding.
// The softmax is streamed over tiles of WORKGROUP_SIZE positions, always from position 0 on: a row's result depends on
// nothing but its own sequence. Grid: (rows, heads, 1); a workgroup a row and head. Scores take a thread a position; then
// groups of 32 threads, one four numbers of the output each, share the tile's positions among them, each with its own
// running maximum and sum, and put them together in the end: a sequence is not one long chain of steps.
// Called by OPT (kernels/attention/cached.rs): heads of 80 and 128 in the published models.
// Measured: OPT-2.7B (32 x 80) on llvmpipe, one group, CPU time / 2 cores, a layer: 0.53 ms for 1 row at position 59, 8.8 ms
// prefilling 40 rows; two groups 0.59 and 12.5 ms. Several are for GPUs, where they are unmeasured.

#import shared/lowest

struct Params {
    heads: u32,
    head_dim: u32,
    qkv_stride: u32,
    max_length: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> k_cache: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> v_cache: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> row_info: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> page_table: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;

const GROUP: u32 = 32u; // threads, and vec4s of the longest head
const INACTIVE: u32 = 0xffffffffu;

override WORKGROUP_SIZE: u32 = 32u; // threads, and positions a tile
override GROUPS: u32 = 1u;          // WORKGROUP_SIZE / 32
override STORES: bool = false;

var<workgroup> query: array<vec4<f32>, GROUP>;
// Of each position of the tile: where its row of this head starts, in vec4s, and its score's bits.
var<workgroup> keys: array<vec2<u32>, WORKGROUP_SIZE>;
// What the groups have in the end: maxima and sums, and outputs.
var<workgroup> parts: array<vec2<f32>, GROUPS>;
var<workgroup> results: array<vec4<f32>, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let thread = invocation % GROUP;
    let group = invocation / GROUP;
    let row = workgroup.x;
    let columns = params.head_dim / 4u;
    let width = params.heads * columns;
    let head = workgroup.y * columns;
    let info = row_info[row];
    let length = select(info.y + 1u, 0u, info.y == INACTIVE);
    let pages = info.x * params.max_length;
    let own = row * params.qkv_stride / 4u + head + thread;
    let has_column = thread < columns;
    if has_column && group == 0u {
        query[thread] = qkv[own];
        if STORES && length > 0u {
            let target_row = page_table[pages + info.y] * width + head;
            k_cache[target_row + thread] = qkv[own + width];
            v_cache[target_row + thread] = qkv[own + 2u * width];
        }
    }
    if STORES {
        storageBarrier();
    }

    var highest = LOWEST;
    var sum = 0.0;
    var result = vec4<f32>();
    for (var first = 0u; first < length; first += WORKGROUP_SIZE) {
        let keys_here = min(WORKGROUP_SIZE, length - first);
        workgroupBarrier();
        // Each thread the score of one position,
        if invocation < keys_here {
            let key_row = page_table[pages + first + invocation] * width + head;
            var products = vec4<f32>();
            for (var d = 0u; d < columns; d++) {
                products += query[d] * k_cache[key_row + d];
            }
            let score = (products.x + products.y + products.z + products.w) * params.scale;
            keys[invocation] = vec2<u32>(key_row, bitcast<u32>(score));
        }
        workgroupBarrier();
        // then four numbers of the output, each group over its share of the positions.
        if has_column {
            for (var i = group; i < keys_here; i += GROUPS) {
                let key = keys[i];
                let score = bitcast<f32>(key.y);
                // One exponential a position: either what was summed shrinks to a new maximum or the position joins it.
                let e = exp(-abs(score - highest));
                let shrink = select(1.0, e, score > highest);
                let weight = select(e, 1.0, score > highest);
                highest = max(highest, score);
                sum = sum * shrink + weight;
                result = result * shrink + weight * v_cache[key.x + thread];
            }
        }
    }

    if GROUPS > 1u {
        if thread == 0u {
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
            result += results[i * GROUP + thread] * shrink;
        }
    }
    if has_column && group == 0u {
        out[row * width + head + thread] = result * select(0.0, 1.0 / sum, length > 0u);
    }
}
