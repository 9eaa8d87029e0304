// attention_cooperative: attention without a causal mask, out = softmax(q · kᵀ * scale) · v, on cooperative
// matrices, with f16 products and f32 sums. inputs.wgsl has layouts and bindings. q, k, v and the softmax's weights are rounded to f16:
// relative error about 5e-4 where scores are below 10 or so, as in any attention in f16.
//
// Grid: (ceil(queries / (SIZE · SUBGROUPS)), heads, batch); each of SUBGROUPS subgroups has SIZE queries of one head.
// Heads are padded with zeros to DEPTH, a multiple of SIZE (88 to 96).
// The keys are gone through twice, 32 at a time: first for each query's maximum and sum, then for the outputs. So no
// output is ever rescaled, which fragments cannot do row by row; the scores' second product is the price.
// Workgroup memory, bytes: 2 · (DEPTH + 8) · (SIZE · SUBGROUPS + 64) + SIZE · SUBGROUPS · (228 + 8 · LANES / SIZE).
// LANES, the width of every subgroup, is a multiple of SIZE.
// Called by kernels/attention/cooperative.rs where the adapter lists such fragments and all subgroups are equally wide.
//
// Unmeasured on a GPU. Tested with fragments of 8 × 8 on llvmpipe (Mesa 26.2), which computes them lane by lane.

enable subgroups;

#import shared/fragments_{size}
#import shared/halves
#import attention/inputs

override DEPTH: u32 = (HEAD_DIM + SIZE - 1u) / SIZE * SIZE;
override LANES: u32 = 32u;
override SUBGROUPS: u32 = 4u;
override WORKGROUP_SIZE: u32 = 128u; // LANES · SUBGROUPS

@group(0) @binding(5) var<storage, read_write> out: array<f32>;

const KEYS: u32 = 32u; // a step
const SCORE_ROW: u32 = KEYS + 4u;
const WEIGHT_ROW: u32 = KEYS + 8u;

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

#for i in 0..16
    var out_$i: FragmentC;
#end
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
#for i in 0..16
            if (DEPTH > $iu * SIZE) {
                let b = coopLoadT<FragmentB>(&v_tile[v_from + $iu * SIZE], ROW);
                out_$i = coopMultiplyAdd(a, b, out_$i);
            }
#end
        }
    }

    let scratch = own * SCORE_ROW;
    let stride = SCORE_ROW;
#for i in 0..16
    if (DEPTH > $iu * SIZE) {
        let result = out_$i;
        coopStoreT(result, &scores[scratch], stride);
        store_fragment(own, lane, first_query, item, head, $iu * SIZE);
    }
#end
}
