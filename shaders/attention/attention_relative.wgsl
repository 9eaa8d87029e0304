// attention_relative: attention with a bias by relative position over one layer's paged cache: T5's three kinds. A request's pages hold
// its prompt first (positions 0..prompt_length: what the encoder read), then the decoded text.
//
//   q              row r, head h: q[r * q_stride + h * head_dim + d] (queries alone, or fused qkv: the row's key and value
//                  one and two widths behind)
//   k_cache, v_cache  [physical rows, heads * head_dim] f32
//   row_info       [rows]: x = sequence, y = position; position 0xffffffff: an inactive row, zeros out
//   page_table     [sequences, max_length] u32: the physical row of (sequence, position)
//   prompt_lengths [sequences] u32
//   bias           [heads, 2 * reach + 1] f32: what is added for key - query, from -reach to reach and as there beyond
//   out            [rows, heads * head_dim] f32, dense
//
// SPAN says which positions a row attends to: 0 the encoder's: the whole prompt; 1 the decoder's own: from the prompt's
// end to the row itself; 2 cross-attention: the whole prompt, without bias. The keys and values are in the cache already
// (store_kv), but for the decoder's own: each workgroup first puts its row's there, as no row of a step attends to another.
// Scores are not scaled. head_dim and q_stride are multiples of 4, head_dim <= 128. The softmax is streamed over tiles
// of 32 positions, always from the span's first on: a row's result depends on nothing but its own sequence.
// Grid: (rows, heads, 1); a workgroup of 32 a row and head. Called by T5. Its cost is that of attention_cached.wgsl.

#import shared/lowest

struct Params {
    heads: u32,
    head_dim: u32,
    q_stride: u32,
    max_length: u32,
    reach: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> k_cache: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> v_cache: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> row_info: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> page_table: array<u32>;
@group(0) @binding(6) var<storage, read> prompt_lengths: array<u32>;
@group(0) @binding(7) var<storage, read> bias: array<f32>;
@group(0) @binding(8) var<storage, read_write> out: array<vec4<f32>>;

override SPAN: u32 = 0u;

const THREADS: u32 = 32u; // and positions a step, and vec4s of the longest head
const INACTIVE: u32 = 0xffffffffu;
const CAUSAL: u32 = 1u;
const CROSS: u32 = 2u;

var<workgroup> query: array<vec4<f32>, THREADS>;
// Of each position of the step: where its row of this head starts, in vec4s, and its score's bits.
var<workgroup> keys: array<vec2<u32>, THREADS>;

fn relative_bias(head: u32, key: u32, position: u32) -> f32 {
    let reach = i32(params.reach);
    let distance = clamp(i32(key) - i32(position), -reach, reach) + reach;
    return bias[head * (2u * params.reach + 1u) + u32(distance)];
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x;
    let columns = params.head_dim / 4u;
    let width = params.heads * columns;
    let head = group.y * columns;
    let info = row_info[row];
    let pages = info.x * params.max_length;
    let is_active = info.y != INACTIVE;
    var start = 0u;
    var end = 0u;
    if is_active {
        end = prompt_lengths[info.x];
        if SPAN == CAUSAL {
            start = end;
            end = info.y + 1u;
        }
    }
    let own = row * params.q_stride / 4u + head + thread;
    let has_column = thread < columns;
    if has_column {
        query[thread] = q[own];
        if SPAN == CAUSAL && is_active {
            let own_row = page_table[pages + info.y] * width + head;
            k_cache[own_row + thread] = q[own + width];
            v_cache[own_row + thread] = q[own + 2u * width];
        }
    }
    if SPAN == CAUSAL {
        storageBarrier();
    }

    var highest = LOWEST;
    var sum = 0.0;
    var result = vec4<f32>();
    for (var first = start; first < end; first += THREADS) {
        let keys_here = min(THREADS, end - first);
        workgroupBarrier();
        // Each thread the score of one position,
        if thread < keys_here {
            let position = first + thread;
            let key_row = page_table[pages + position] * width + head;
            var products = vec4<f32>();
            for (var d = 0u; d < columns; d++) {
                products += query[d] * k_cache[key_row + d];
            }
            var score = products.x + products.y + products.z + products.w;
            if SPAN != CROSS {
                score += relative_bias(group.y, position, info.y);
            }
            keys[thread] = vec2<u32>(key_row, bitcast<u32>(score));
        }
        workgroupBarrier();
        // then four numbers of the output. What was summed under a lower maximum shrinks.
        if has_column {
            for (var i = 0u; i < keys_here; i++) {
                let key = keys[i];
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

    if has_column {
        out[row * width + head + thread] = result * select(0.0, 1.0 / sum, end > start);
    }
}
