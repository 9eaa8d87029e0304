// attention_flash: attention without a causal mask, out = softmax(q · kᵀ * scale) · v, for GPUs, where attention.wgsl
// loads too much for what it multiplies. The contract of attention.wgsl, but HEAD_DIM and
// every stride and offset are multiples of 4 (q, k, v and out are read as vec4s). Works on any GPU: no subgroup
// operations, no f16.
//
//   q   row (b, i), head h: q[q_offset + (b * queries + i) * q_stride + h * HEAD_DIM + d]
//   k   row (b, j), head h: k[k_offset + (b * keys + j) * k_stride + h * HEAD_DIM + d];  v alike
//   key_lengths [batch] u32: keys j >= key_lengths[b] are masked (0 keys: the output is 0)
//   out [batch * queries, heads * HEAD_DIM] f32, dense
//
// Grid: (ceil(queries / QUERIES), heads, batch); a workgroup of 2 · QUERIES threads owns QUERIES (32, or 64 where there is
// enough to do) queries of one head. HEAD_DIM: at most 128.
// The softmax is streamed over tiles of 32 keys (Milakov & Gimelshein, 2018; Dao et al., 2022). Q, K and V come through
// workgroup memory in slices of 32 dimensions. A thread has 4 × 4 scores (8 loads for 64 multiply-adds), then the
// outputs of its 4 queries in every eighth vec4 of the head (2 loads for 16, in registers all the while).
// Workgroup memory: 6.5 KiB + 144 bytes a query, 15.5 KiB at most.
// Called by kernels/attention.rs where subgroups are not known to be narrow (up to 16 lanes: a CPU's).
// Unmeasured on a GPU.

#import shared/lowest

override HEAD_DIM: u32 = 64u;
override QUERIES: u32 = 32u;        // 32 or 64
override WORKGROUP_SIZE: u32 = 64u; // 2 · QUERIES

struct Params {
    queries: u32,
    keys: u32,
    heads: u32,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    q_offset: u32,
    k_offset: u32,
    v_offset: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> key_lengths: array<u32>;
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
    var out_0_0 = vec4<f32>();
    var out_0_1 = vec4<f32>();
    var out_0_2 = vec4<f32>();
    var out_0_3 = vec4<f32>();
    var out_1_0 = vec4<f32>();
    var out_1_1 = vec4<f32>();
    var out_1_2 = vec4<f32>();
    var out_1_3 = vec4<f32>();
    var out_2_0 = vec4<f32>();
    var out_2_1 = vec4<f32>();
    var out_2_2 = vec4<f32>();
    var out_2_3 = vec4<f32>();
    var out_3_0 = vec4<f32>();
    var out_3_1 = vec4<f32>();
    var out_3_2 = vec4<f32>();
    var out_3_3 = vec4<f32>();

    for (var first_key = 0u; first_key < key_length; first_key += KEYS) {
        let first_row = item * params.keys + first_key;
        let last = min(KEYS, key_length - first_key) - 1u;

        // score_j: of the 4 queries with key across + 8j.
        var score_0 = vec4<f32>();
        var score_1 = vec4<f32>();
        var score_2 = vec4<f32>();
        var score_3 = vec4<f32>();
        for (var first_part = 0u; first_part < PARTS; first_part += DEPTH) {
            workgroupBarrier();
            stage_q(thread, item, first_query, head, first_part);
            stage_k(thread, first_row, last, head, first_part);
            workgroupBarrier();
            for (var part = 0u; part < min(DEPTH, PARTS - first_part); part++) {
                let q_0 = left[(4u * four) * ROW + part];
                let q_1 = left[(4u * four + 1u) * ROW + part];
                let q_2 = left[(4u * four + 2u) * ROW + part];
                let q_3 = left[(4u * four + 3u) * ROW + part];
                let k_0 = right[across * ROW + part];
                let k_1 = right[(across + 8u) * ROW + part];
                let k_2 = right[(across + 16u) * ROW + part];
                let k_3 = right[(across + 24u) * ROW + part];
                score_0 += vec4<f32>(dot(q_0, k_0), dot(q_1, k_0), dot(q_2, k_0), dot(q_3, k_0));
                score_1 += vec4<f32>(dot(q_0, k_1), dot(q_1, k_1), dot(q_2, k_1), dot(q_3, k_1));
                score_2 += vec4<f32>(dot(q_0, k_2), dot(q_1, k_2), dot(q_2, k_2), dot(q_3, k_2));
                score_3 += vec4<f32>(dot(q_0, k_3), dot(q_1, k_3), dot(q_2, k_3), dot(q_3, k_3));
            }
        }
        score_0 = select(vec4<f32>(LOWEST), score_0 * params.scale, across <= last);
        score_1 = select(vec4<f32>(LOWEST), score_1 * params.scale, across + 8u <= last);
        score_2 = select(vec4<f32>(LOWEST), score_2 * params.scale, across + 16u <= last);
        score_3 = select(vec4<f32>(LOWEST), score_3 * params.scale, across + 24u <= last);

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
        out_0_0 *= shrink[0];
        out_0_1 *= shrink[1];
        out_0_2 *= shrink[2];
        out_0_3 *= shrink[3];
        if (PARTS > 8u) {
            out_1_0 *= shrink[0];
            out_1_1 *= shrink[1];
            out_1_2 *= shrink[2];
            out_1_3 *= shrink[3];
        }
        if (PARTS > 16u) {
            out_2_0 *= shrink[0];
            out_2_1 *= shrink[1];
            out_2_2 *= shrink[2];
            out_2_3 *= shrink[3];
        }
        if (PARTS > 24u) {
            out_3_0 *= shrink[0];
            out_3_1 *= shrink[1];
            out_3_2 *= shrink[2];
            out_3_3 *= shrink[3];
        }
        left[across * WEIGHT_ROW + four] = exp(score_0 - highest);
        left[(across + 8u) * WEIGHT_ROW + four] = exp(score_1 - highest);
        left[(across + 16u) * WEIGHT_ROW + four] = exp(score_2 - highest);
        left[(across + 24u) * WEIGHT_ROW + four] = exp(score_3 - highest);
        stage_v(thread, first_row, last, head, 0u);
        workgroupBarrier();
        for (var key = 0u; key < KEYS; key++) {
            let weight = left[key * WEIGHT_ROW + four];
            let value = right[key * ROW + across];
            sum += weight;
            out_0_0 += weight[0] * value;
            out_0_1 += weight[1] * value;
            out_0_2 += weight[2] * value;
            out_0_3 += weight[3] * value;
        }
        if (PARTS > 8u) {
            workgroupBarrier();
            stage_v(thread, first_row, last, head, 8u);
            workgroupBarrier();
            for (var key = 0u; key < KEYS; key++) {
                let weight = left[key * WEIGHT_ROW + four];
                let value = right[key * ROW + across];
                out_1_0 += weight[0] * value;
                out_1_1 += weight[1] * value;
                out_1_2 += weight[2] * value;
                out_1_3 += weight[3] * value;
            }
        }
        if (PARTS > 16u) {
            workgroupBarrier();
            stage_v(thread, first_row, last, head, 16u);
            workgroupBarrier();
            for (var key = 0u; key < KEYS; key++) {
                let weight = left[key * WEIGHT_ROW + four];
                let value = right[key * ROW + across];
                out_2_0 += weight[0] * value;
                out_2_1 += weight[1] * value;
                out_2_2 += weight[2] * value;
                out_2_3 += weight[3] * value;
            }
        }
        if (PARTS > 24u) {
            workgroupBarrier();
            stage_v(thread, first_row, last, head, 24u);
            workgroupBarrier();
            for (var key = 0u; key < KEYS; key++) {
                let weight = left[key * WEIGHT_ROW + four];
                let value = right[key * ROW + across];
                out_3_0 += weight[0] * value;
                out_3_1 += weight[1] * value;
                out_3_2 += weight[2] * value;
                out_3_3 += weight[3] * value;
            }
        }
    }

    let norm = select(vec4<f32>(), 1.0 / sum, sum > vec4<f32>());
    let query = first_query + 4u * four;
    store(query, item, head, across, out_0_0 * norm[0]);
    store(query + 1u, item, head, across, out_0_1 * norm[1]);
    store(query + 2u, item, head, across, out_0_2 * norm[2]);
    store(query + 3u, item, head, across, out_0_3 * norm[3]);
    if (PARTS > 8u) {
        store(query, item, head, across + 8u, out_1_0 * norm[0]);
        store(query + 1u, item, head, across + 8u, out_1_1 * norm[1]);
        store(query + 2u, item, head, across + 8u, out_1_2 * norm[2]);
        store(query + 3u, item, head, across + 8u, out_1_3 * norm[3]);
    }
    if (PARTS > 16u) {
        store(query, item, head, across + 16u, out_2_0 * norm[0]);
        store(query + 1u, item, head, across + 16u, out_2_1 * norm[1]);
        store(query + 2u, item, head, across + 16u, out_2_2 * norm[2]);
        store(query + 3u, item, head, across + 16u, out_2_3 * norm[3]);
    }
    if (PARTS > 24u) {
        store(query, item, head, across + 24u, out_3_0 * norm[0]);
        store(query + 1u, item, head, across + 24u, out_3_1 * norm[1]);
        store(query + 2u, item, head, across + 24u, out_3_2 * norm[2]);
        store(query + 3u, item, head, across + 24u, out_3_3 * norm[3]);
    }
}
