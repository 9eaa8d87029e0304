// attention_cooperative: attention without a causal mask, out = softmax(q · kᵀ * scale) · v, on cooperative matrices: the
// contract of attention_flash.wgsl with f16 products and f32 sums. q, k, v and the softmax's weights are rounded to f16:
// relative error about 5e-4 where scores are below 10 or so, as in any attention in f16.
//
//   q   row (b, i), head h: q[q_offset + (b * queries + i) * q_stride + h * HEAD_DIM + d]
//   k   row (b, j), head h: k[k_offset + (b * keys + j) * k_stride + h * HEAD_DIM + d];  v alike
//   key_lengths [batch] u32: keys j >= key_lengths[b] are masked (0 keys: the output is 0)
//   out [batch * queries, heads * HEAD_DIM] f32, dense
//
// Grid: (ceil(queries / (SIZE · SUBGROUPS)), heads, batch); each of SUBGROUPS subgroups has SIZE queries of one head.
// HEAD_DIM: a multiple of 4, at most 128; heads are padded with zeros to DEPTH, a multiple of SIZE (88 to 96).
// The keys are gone through twice, 32 at a time: first for each query's maximum and sum, then for the outputs. So no
// output is ever rescaled, which fragments cannot do row by row; the scores' second product is the price.
// Workgroup memory, bytes: 2 · (DEPTH + 8) · (SIZE · SUBGROUPS + 64) + SIZE · SUBGROUPS · (228 + 8 · LANES / SIZE).
// LANES, the width of every subgroup, is a multiple of SIZE.
// Called by kernels/attention.rs where the adapter lists such fragments and all subgroups are equally wide.
//
// Unmeasured on a GPU. Tested with fragments of 8 × 8 on llvmpipe (Mesa 26.2), which computes them lane by lane.

enable subgroups;

#import shared/fragments_{size}
#import shared/lowest

override HEAD_DIM: u32 = 64u;
override DEPTH: u32 = 64u; // HEAD_DIM, up to the next multiple of SIZE
override LANES: u32 = 32u;
override SUBGROUPS: u32 = 4u;
override WORKGROUP_SIZE: u32 = 128u; // LANES · SUBGROUPS

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
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

const KEYS: u32 = 32u; // a step
const SCORE_ROW: u32 = KEYS + 4u;
const WEIGHT_ROW: u32 = KEYS + 8u;
const LARGEST: f32 = 65504.0;

override QUERIES: u32 = SIZE * SUBGROUPS;
// Eight halves of padding spread the rows over the memory banks and keep them at 16 bytes.
override ROW: u32 = DEPTH + 8u;
override UNITS: u32 = DEPTH / 4u; // vec4s of a padded head
override SHARERS: u32 = LANES / SIZE; // lanes that share a query

var<workgroup> q_tile: array<f16, QUERIES * ROW>; // [query, d], times the scale
var<workgroup> k_tile: array<f16, KEYS * ROW>;    // [key, d]
var<workgroup> v_tile: array<f16, KEYS * ROW>;
var<workgroup> weights: array<f16, QUERIES * WEIGHT_ROW>; // [query, key]
var<workgroup> scores: array<f32, QUERIES * SCORE_ROW>;   // [query, key]; in the end fragments of the output
var<workgroup> parts: array<vec2<f32>, QUERIES * SHARERS>; // maxima and sums [query, sharer]
var<workgroup> norms: array<f32, QUERIES>;

fn to_f16(value: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(value, vec4<f32>(-LARGEST), vec4<f32>(LARGEST)));
}

// Rows past the end repeat the last one, and are not stored.
fn stage_q(thread: u32, item: u32, first: u32, head: u32) {
    for (var unit = thread; unit < QUERIES * UNITS; unit += WORKGROUP_SIZE) {
        let d = unit % UNITS * 4u;
        var value = vec4<f16>();
        if (d < HEAD_DIM) {
            let row = item * params.queries + min(first + unit / UNITS, params.queries - 1u);
            value = to_f16(q[(params.q_offset + row * params.q_stride + head + d) / 4u] * params.scale);
        }
        let at = unit / UNITS * ROW + d;
        q_tile[at] = value.x;
        q_tile[at + 1u] = value.y;
        q_tile[at + 2u] = value.z;
        q_tile[at + 3u] = value.w;
    }
}

// Keys past the last repeat it, and get no weight.
fn stage_k(thread: u32, first: u32, last: u32, head: u32) {
    for (var unit = thread; unit < KEYS * UNITS; unit += WORKGROUP_SIZE) {
        let d = unit % UNITS * 4u;
        var value = vec4<f16>();
        if (d < HEAD_DIM) {
            let row = first + min(unit / UNITS, last);
            value = to_f16(k[(params.k_offset + row * params.k_stride + head + d) / 4u]);
        }
        let at = unit / UNITS * ROW + d;
        k_tile[at] = value.x;
        k_tile[at + 1u] = value.y;
        k_tile[at + 2u] = value.z;
        k_tile[at + 3u] = value.w;
    }
}

fn stage_v(thread: u32, first: u32, last: u32, head: u32) {
    for (var unit = thread; unit < KEYS * UNITS; unit += WORKGROUP_SIZE) {
        let d = unit % UNITS * 4u;
        var value = vec4<f16>();
        if (d < HEAD_DIM) {
            let row = first + min(unit / UNITS, last);
            value = to_f16(v[(params.v_offset + row * params.v_stride + head + d) / 4u]);
        }
        let at = unit / UNITS * ROW + d;
        v_tile[at] = value.x;
        v_tile[at + 1u] = value.y;
        v_tile[at + 2u] = value.z;
        v_tile[at + 3u] = value.w;
    }
}

// The scores of this subgroup's queries, which start at `own`, with the keys in `k_tile`.
fn multiply_scores(own: u32) {
    for (var key = 0u; key < KEYS; key += SIZE) {
        var sum: FragmentC;
        sum = FragmentC();
        for (var d = 0u; d < DEPTH; d += SIZE) {
            let q_from = own * ROW + d;
            let k_from = key * ROW + d;
            let a = coopLoadT<FragmentA>(&q_tile[q_from], ROW);
            let b = coopLoad<FragmentB>(&k_tile[k_from], ROW);
            sum = coopMultiplyAdd(a, b, sum);
        }
        // Every argument of coopStoreT is bound first: naga 30 stores before it evaluates what stands in the call.
        let result = sum;
        let at = own * SCORE_ROW + key;
        let stride = SCORE_ROW;
        coopStoreT(result, &scores[at], stride);
    }
}

// Stores the fragment that this subgroup has put into `scores`: dimensions d .. d + SIZE of its queries.
fn store_fragment(own: u32, lane: u32, first_query: u32, item: u32, head: u32, d: u32) {
    workgroupBarrier();
    for (var at = lane; at < SIZE * SIZE; at += LANES) {
        let row = own + at / SIZE;
        let column = d + at % SIZE;
        if (first_query + row < params.queries && column < HEAD_DIM) {
            let out_row = item * params.queries + first_query + row;
            out[out_row * params.heads * HEAD_DIM + head + column] = scores[row * SCORE_ROW + at % SIZE] * norms[row];
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let first_query = group.x * QUERIES;
    let head = group.y * HEAD_DIM;
    let item = group.z;
    let key_length = min(key_lengths[item], params.keys);

    // The subgroup owns the queries from `own` on; the lane shares query `row` with those a multiple of SIZE away.
    let own = subgroup * SIZE;
    let row = own + lane % SIZE;
    let sharer = lane / SIZE;

    stage_q(thread, item, first_query, head);
    var highest = LOWEST;
    var sum = 0.0;
    for (var first_key = 0u; first_key < key_length; first_key += KEYS) {
        let keys_here = min(KEYS, key_length - first_key);
        workgroupBarrier();
        stage_k(thread, item * params.keys + first_key, keys_here - 1u, head);
        workgroupBarrier();
        multiply_scores(own);
        workgroupBarrier();
        for (var key = sharer; key < keys_here; key += SHARERS) {
            let score = scores[row * SCORE_ROW + key];
            let higher = max(highest, score);
            sum = sum * exp(highest - higher) + exp(score - higher);
            highest = higher;
        }
    }
    parts[row * SHARERS + sharer] = vec2<f32>(highest, sum);
    workgroupBarrier();
    for (var i = 0u; i < SHARERS; i++) {
        highest = max(highest, parts[row * SHARERS + i].x);
    }
    sum = 0.0;
    for (var i = 0u; i < SHARERS; i++) {
        let part = parts[row * SHARERS + i];
        sum += part.y * exp(part.x - highest);
    }
    if (sharer == 0u) {
        norms[row] = select(0.0, 1.0 / sum, key_length > 0u);
    }

    var out_0: FragmentC;
    var out_1: FragmentC;
    var out_2: FragmentC;
    var out_3: FragmentC;
    var out_4: FragmentC;
    var out_5: FragmentC;
    var out_6: FragmentC;
    var out_7: FragmentC;
    var out_8: FragmentC;
    var out_9: FragmentC;
    var out_10: FragmentC;
    var out_11: FragmentC;
    var out_12: FragmentC;
    var out_13: FragmentC;
    var out_14: FragmentC;
    var out_15: FragmentC;
    for (var first_key = 0u; first_key < key_length; first_key += KEYS) {
        let keys_here = min(KEYS, key_length - first_key);
        let first_row = item * params.keys + first_key;
        workgroupBarrier();
        stage_k(thread, first_row, keys_here - 1u, head);
        stage_v(thread, first_row, keys_here - 1u, head);
        workgroupBarrier();
        multiply_scores(own);
        workgroupBarrier();
        for (var key = sharer; key < KEYS; key += SHARERS) {
            let weight = exp(scores[row * SCORE_ROW + key] - highest);
            weights[row * WEIGHT_ROW + key] = f16(select(0.0, weight, key < keys_here));
        }
        workgroupBarrier();
        for (var key = 0u; key < KEYS; key += SIZE) {
            let w_from = own * WEIGHT_ROW + key;
            let v_from = key * ROW;
            let a = coopLoadT<FragmentA>(&weights[w_from], WEIGHT_ROW);
            let b = coopLoadT<FragmentB>(&v_tile[v_from], ROW);
            out_0 = coopMultiplyAdd(a, b, out_0);
            if (DEPTH > SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + SIZE], ROW);
                out_1 = coopMultiplyAdd(a, b, out_1);
            }
            if (DEPTH > 2u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 2u * SIZE], ROW);
                out_2 = coopMultiplyAdd(a, b, out_2);
            }
            if (DEPTH > 3u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 3u * SIZE], ROW);
                out_3 = coopMultiplyAdd(a, b, out_3);
            }
            if (DEPTH > 4u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 4u * SIZE], ROW);
                out_4 = coopMultiplyAdd(a, b, out_4);
            }
            if (DEPTH > 5u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 5u * SIZE], ROW);
                out_5 = coopMultiplyAdd(a, b, out_5);
            }
            if (DEPTH > 6u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 6u * SIZE], ROW);
                out_6 = coopMultiplyAdd(a, b, out_6);
            }
            if (DEPTH > 7u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 7u * SIZE], ROW);
                out_7 = coopMultiplyAdd(a, b, out_7);
            }
            if (DEPTH > 8u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 8u * SIZE], ROW);
                out_8 = coopMultiplyAdd(a, b, out_8);
            }
            if (DEPTH > 9u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 9u * SIZE], ROW);
                out_9 = coopMultiplyAdd(a, b, out_9);
            }
            if (DEPTH > 10u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 10u * SIZE], ROW);
                out_10 = coopMultiplyAdd(a, b, out_10);
            }
            if (DEPTH > 11u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 11u * SIZE], ROW);
                out_11 = coopMultiplyAdd(a, b, out_11);
            }
            if (DEPTH > 12u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 12u * SIZE], ROW);
                out_12 = coopMultiplyAdd(a, b, out_12);
            }
            if (DEPTH > 13u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 13u * SIZE], ROW);
                out_13 = coopMultiplyAdd(a, b, out_13);
            }
            if (DEPTH > 14u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 14u * SIZE], ROW);
                out_14 = coopMultiplyAdd(a, b, out_14);
            }
            if (DEPTH > 15u * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + 15u * SIZE], ROW);
                out_15 = coopMultiplyAdd(a, b, out_15);
            }
        }
    }

    let scratch = own * SCORE_ROW;
    let stride = SCORE_ROW;
    let result_0 = out_0;
    coopStoreT(result_0, &scores[scratch], stride);
    store_fragment(own, lane, first_query, item, head, 0u);
    if (DEPTH > SIZE) {
        let result = out_1;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, SIZE);
    }
    if (DEPTH > 2u * SIZE) {
        let result = out_2;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 2u * SIZE);
    }
    if (DEPTH > 3u * SIZE) {
        let result = out_3;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 3u * SIZE);
    }
    if (DEPTH > 4u * SIZE) {
        let result = out_4;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 4u * SIZE);
    }
    if (DEPTH > 5u * SIZE) {
        let result = out_5;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 5u * SIZE);
    }
    if (DEPTH > 6u * SIZE) {
        let result = out_6;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 6u * SIZE);
    }
    if (DEPTH > 7u * SIZE) {
        let result = out_7;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 7u * SIZE);
    }
    if (DEPTH > 8u * SIZE) {
        let result = out_8;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 8u * SIZE);
    }
    if (DEPTH > 9u * SIZE) {
        let result = out_9;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 9u * SIZE);
    }
    if (DEPTH > 10u * SIZE) {
        let result = out_10;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 10u * SIZE);
    }
    if (DEPTH > 11u * SIZE) {
        let result = out_11;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 11u * SIZE);
    }
    if (DEPTH > 12u * SIZE) {
        let result = out_12;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 12u * SIZE);
    }
    if (DEPTH > 13u * SIZE) {
        let result = out_13;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 13u * SIZE);
    }
    if (DEPTH > 14u * SIZE) {
        let result = out_14;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 14u * SIZE);
    }
    if (DEPTH > 15u * SIZE) {
        let result = out_15;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, 15u * SIZE);
    }
}
