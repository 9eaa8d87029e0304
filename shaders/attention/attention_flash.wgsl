// attention_flash: attention without a causal mask, out = softmax(q · kᵀ * scale) · v. Works on any GPU: no subgroup
// operations, no f16. inputs.wgsl has layouts and bindings.
//
// Grid: (ceil(queries / QUERIES), heads, batch); a workgroup of 2 · QUERIES threads owns QUERIES (32, or 64 where there is
// enough to do) queries of one head.
// The softmax is streamed over tiles of 32 keys (Milakov & Gimelshein, 2018; Dao et al., 2022). Q, K and V come through
// workgroup memory in slices of 32 dimensions. A thread has 4 × 4 scores (8 loads for 64 multiply-adds), then the
// outputs of its 4 queries in every eighth vec4 of the head (2 loads for 16, in registers all the while).
// Workgroup memory: 6.5 KiB + 144 bytes a query, 15.5 KiB at most.
// Called by kernels/attention/flash.rs wherever nothing faster serves.
// Unmeasured on a GPU.

#import attention/inputs

override QUERIES: u32 = 32u;        // 32 or 64
override WORKGROUP_SIZE: u32 = 64u; // 2 · QUERIES

@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

const KEYS: u32 = 32u; // a step
const DEPTH: u32 = 8u; // vec4s of a slice
const ROW: u32 = 9u;   // odd: rows of a slice start in different banks
const ACROSS: u32 = 8u; // threads that share 4 queries

override PARTS: u32 = HEAD_DIM / 4u;      // vec4s of a head
override FOURS: u32 = QUERIES / 4u;       // threads above each other, each with 4 queries
override WEIGHT_ROW: u32 = QUERIES / 4u + 1u;

// A slice of the queries [query, depth]; then the weights [key, four queries].
var<workgroup> left: array<vec4<f32>, QUERIES * ROW>;
// A slice of the keys, then of the values [key, depth].
var<workgroup> right: array<vec4<f32>, KEYS * ROW>;
var<workgroup> highest_of: array<vec4<f32>, FOURS * ACROSS>; // [four queries, thread across]

// Puts a slice of the queries into `left`. Rows past the end repeat the last one.
fn stage_q(thread: u32, item: u32, first_query: u32, head: u32, first_part: u32) {
    for (var unit = thread; unit < QUERIES * DEPTH; unit += WORKGROUP_SIZE) {
        let part = first_part + unit % DEPTH;
        if (part < PARTS) {
            let row = item * params.queries + min(first_query + unit / DEPTH, params.queries - 1u);
            left[unit / DEPTH * ROW + unit % DEPTH] = q[(params.q_offset + row * params.q_stride + head) / 4u + part];
        }
    }
}

// Puts a slice of the keys into `right`. Those past the end repeat the last one, and get no weight.
fn stage_k(thread: u32, first_row: u32, last: u32, head: u32, first_part: u32) {
    for (var unit = thread; unit < KEYS * DEPTH; unit += WORKGROUP_SIZE) {
        let part = first_part + unit % DEPTH;
        if (part < PARTS) {
            let row = first_row + min(unit / DEPTH, last);
            right[unit / DEPTH * ROW + unit % DEPTH] = k[(params.k_offset + row * params.k_stride + head) / 4u + part];
        }
    }
}

fn stage_v(thread: u32, first_row: u32, last: u32, head: u32, first_part: u32) {
    for (var unit = thread; unit < KEYS * DEPTH; unit += WORKGROUP_SIZE) {
        let part = min(first_part + unit % DEPTH, PARTS - 1u);
        let row = first_row + min(unit / DEPTH, last);
        right[unit / DEPTH * ROW + unit % DEPTH] = v[(params.v_offset + row * params.v_stride + head) / 4u + part];
    }
}

fn store(query: u32, item: u32, head: u32, part: u32, value: vec4<f32>) {
    if (query < params.queries && part < PARTS) {
        let row = item * params.queries + query;
        out[(row * params.heads * HEAD_DIM + head) / 4u + part] = value;
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_query = group.x * QUERIES;
    let head = group.y * HEAD_DIM;
    let item = group.z;
    let key_length = min(key_lengths[item], params.keys);

    // Thread (across, four) owns the queries 4 · four .. + 3, and of a step the keys across, across + 8, + 16, + 24.
    let across = thread % ACROSS;
    let four = thread / ACROSS;

    var highest = vec4<f32>(LOWEST);
    var sum = vec4<f32>();
    // out_s_i: query i, vec4 number 8s + across of the head.
#for s in 0..4
#for i in 0..4
    var out_$s_$i = vec4<f32>();
#end
#end

    for (var first_key = 0u; first_key < key_length; first_key += KEYS) {
        let first_row = item * params.keys + first_key;
        let last = min(KEYS, key_length - first_key) - 1u;

        // score_j: of the 4 queries with key across + 8j.
#for j in 0..4
        var score_$j = vec4<f32>();
#end
        for (var first_part = 0u; first_part < PARTS; first_part += DEPTH) {
            workgroupBarrier();
            stage_q(thread, item, first_query, head, first_part);
            stage_k(thread, first_row, last, head, first_part);
            workgroupBarrier();
            for (var part = 0u; part < min(DEPTH, PARTS - first_part); part++) {
#for i in 0..4
                let q_$i = left[(4u * four + $iu) * ROW + part];
#end
#for j in 0..4
                let k_$j = right[(across + 8u * $ju) * ROW + part];
#end
#for j in 0..4
                score_$j += vec4<f32>(dot(q_0, k_$j), dot(q_1, k_$j), dot(q_2, k_$j), dot(q_3, k_$j));
#end
            }
        }
#for j in 0..4
        score_$j = select(vec4<f32>(LOWEST), score_$j * params.scale, across + 8u * $ju <= last);
#end

        // The new maximum, over the threads across; what was summed under the old one shrinks.
        highest_of[thread] = max(max(score_0, score_1), max(score_2, score_3));
        workgroupBarrier();
        var higher = highest;
        for (var i = 0u; i < ACROSS; i++) {
            higher = max(higher, highest_of[four * ACROSS + i]);
        }
        let shrink = exp(highest - higher);
        highest = higher;
        sum *= shrink;
#for s in 0..4
        if (PARTS > 8u * $su) {
#for i in 0..4
            out_$s_$i *= shrink[$i];
#end
        }
#end
#for j in 0..4
        left[(across + 8u * $ju) * WEIGHT_ROW + four] = exp(score_$j - highest);
#end
        stage_v(thread, first_row, last, head, 0u);
        workgroupBarrier();
        for (var key = 0u; key < KEYS; key++) {
            let weight = left[key * WEIGHT_ROW + four];
            let value = right[key * ROW + across];
            sum += weight;
#for i in 0..4
            out_0_$i += weight[$i] * value;
#end
        }
#for s in 1..4
        if (PARTS > 8u * $su) {
            workgroupBarrier();
            stage_v(thread, first_row, last, head, 8u * $su);
            workgroupBarrier();
            for (var key = 0u; key < KEYS; key++) {
                let weight = left[key * WEIGHT_ROW + four];
                let value = right[key * ROW + across];
#for i in 0..4
                out_$s_$i += weight[$i] * value;
#end
            }
        }
#end
    }

    let norm = select(vec4<f32>(), 1.0 / sum, sum > vec4<f32>());
    let query = first_query + 4u * four;
#for s in 0..4
    if (PARTS > 8u * $su) {
#for i in 0..4
        store(query + $iu, item, head, across + 8u * $su, out_$s_$i * norm[$i]);
#end
    }
#end
}
