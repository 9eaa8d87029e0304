// Attention without a causal mask, out = softmax(q · kᵀ * scale) · v, for adapters whose subgroups
// have at least 8 lanes, fast where they have just 8. The contract of attention.wgsl, but
//   - HEAD_DIM and every stride and offset are multiples of 4 (q, k, v, out are read as vec4s);
//   - it needs Features::SUBGROUP and a smallest subgroup of 8 or more (the workgroup is one subgroup).
//
//   q   row (b, i), head h: q[q_offset + (b * queries + i) * q_stride + h * HEAD_DIM + d]
//   k   row (b, j), head h: k[k_offset + (b * keys + j) * k_stride + h * HEAD_DIM + d];  v alike
//   key_lengths [batch] u32: keys j >= key_lengths[b] are masked (0 keys: the output is 0)
//   out [batch * queries, heads * HEAD_DIM] f32, dense
//
// Grid: (ceil(queries / 32), heads, batch); a workgroup of 8 lanes owns 32 queries of one head, 4 a lane.
// Both products are sums of outer products in registers: 4 query vectors, one component a lane,
// times 16 numbers handed round with subgroupBroadcast. A load of a vec4 costs such an adapter
// as much as dozens of multiply-adds, so each is used for 16 or more queries or keys.
// Keys go in chunks of 112: scores, then the running maximum and sum, then the outputs, which
// accumulate in `out`. A lane reads only what it wrote itself, hence no barrier. Shared memory: 16 KiB.
// Called by the ViT and the Q-Former where all subgroups have 8 lanes.
// Measured: ViT-g 257 x 16 x 88 on llvmpipe, CPU time / 2 cores: 16 ms, 23 GFLOP/s (attention.wgsl: 187).

enable subgroups;

#import shared/lowest

override HEAD_DIM: u32 = 64u;

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

const LANES: u32 = 8u;
const QUERIES: u32 = 32u;
const BLOCK: u32 = 16u; // keys whose scores, or dimensions whose outputs, are summed at once
const CHUNK: u32 = 112u; // keys a step of the streaming softmax; 112 + 16 rows of 128 B are 16 KiB

var<workgroup> weights: array<vec4<f32>, CHUNK * LANES>; // [key, lane]: of the lane's 4 queries
var<workgroup> outputs: array<vec4<f32>, BLOCK * LANES>; // [dimension, lane]

// sum[i] += a * b[i], where b is 16 numbers spread over the lanes. Unrolled: the lane must be constant.
fn add_outer(sum: ptr<function, array<vec4<f32>, 16>>, a: vec4<f32>, b_low: f32, b_high: f32) {
    (*sum)[0] += a * subgroupBroadcast(b_low, 0u);
    (*sum)[1] += a * subgroupBroadcast(b_low, 1u);
    (*sum)[2] += a * subgroupBroadcast(b_low, 2u);
    (*sum)[3] += a * subgroupBroadcast(b_low, 3u);
    (*sum)[4] += a * subgroupBroadcast(b_low, 4u);
    (*sum)[5] += a * subgroupBroadcast(b_low, 5u);
    (*sum)[6] += a * subgroupBroadcast(b_low, 6u);
    (*sum)[7] += a * subgroupBroadcast(b_low, 7u);
    (*sum)[8] += a * subgroupBroadcast(b_high, 0u);
    (*sum)[9] += a * subgroupBroadcast(b_high, 1u);
    (*sum)[10] += a * subgroupBroadcast(b_high, 2u);
    (*sum)[11] += a * subgroupBroadcast(b_high, 3u);
    (*sum)[12] += a * subgroupBroadcast(b_high, 4u);
    (*sum)[13] += a * subgroupBroadcast(b_high, 5u);
    (*sum)[14] += a * subgroupBroadcast(b_high, 6u);
    (*sum)[15] += a * subgroupBroadcast(b_high, 7u);
}

// sum[i] += a * b[i] + a_next * b_next[i]: lanes 0..3 hold the 16 numbers of b, lanes 4..7 those of b_next.
fn add_outer_pair(sum: ptr<function, array<vec4<f32>, 16>>, a: vec4<f32>, a_next: vec4<f32>, b: vec4<f32>) {
    (*sum)[0] += a * subgroupBroadcast(b.x, 0u) + a_next * subgroupBroadcast(b.x, 4u);
    (*sum)[1] += a * subgroupBroadcast(b.y, 0u) + a_next * subgroupBroadcast(b.y, 4u);
    (*sum)[2] += a * subgroupBroadcast(b.z, 0u) + a_next * subgroupBroadcast(b.z, 4u);
    (*sum)[3] += a * subgroupBroadcast(b.w, 0u) + a_next * subgroupBroadcast(b.w, 4u);
    (*sum)[4] += a * subgroupBroadcast(b.x, 1u) + a_next * subgroupBroadcast(b.x, 5u);
    (*sum)[5] += a * subgroupBroadcast(b.y, 1u) + a_next * subgroupBroadcast(b.y, 5u);
    (*sum)[6] += a * subgroupBroadcast(b.z, 1u) + a_next * subgroupBroadcast(b.z, 5u);
    (*sum)[7] += a * subgroupBroadcast(b.w, 1u) + a_next * subgroupBroadcast(b.w, 5u);
    (*sum)[8] += a * subgroupBroadcast(b.x, 2u) + a_next * subgroupBroadcast(b.x, 6u);
    (*sum)[9] += a * subgroupBroadcast(b.y, 2u) + a_next * subgroupBroadcast(b.y, 6u);
    (*sum)[10] += a * subgroupBroadcast(b.z, 2u) + a_next * subgroupBroadcast(b.z, 6u);
    (*sum)[11] += a * subgroupBroadcast(b.w, 2u) + a_next * subgroupBroadcast(b.w, 6u);
    (*sum)[12] += a * subgroupBroadcast(b.x, 3u) + a_next * subgroupBroadcast(b.x, 7u);
    (*sum)[13] += a * subgroupBroadcast(b.y, 3u) + a_next * subgroupBroadcast(b.y, 7u);
    (*sum)[14] += a * subgroupBroadcast(b.z, 3u) + a_next * subgroupBroadcast(b.z, 7u);
    (*sum)[15] += a * subgroupBroadcast(b.w, 3u) + a_next * subgroupBroadcast(b.w, 7u);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let head = group.y * HEAD_DIM;
    let item = group.z;
    let key_length = min(key_lengths[item], params.keys);

    // The lane's 4 queries; those past the end repeat the last one and are not written.
    let query = group.x * QUERIES + lane + vec4<u32>(0u, 8u, 16u, 24u);
    let row = item * params.queries + min(query, vec4<u32>(params.queries - 1u));
    let q_row = (params.q_offset + row * params.q_stride + head) / 4u;
    let out_row = (row * params.heads * HEAD_DIM + head) / 4u;

    var highest = vec4<f32>(LOWEST);
    var total = vec4<f32>();
    for (var first = 0u; first == 0u || first < key_length; first += CHUNK) {
        let keys_here = min(CHUNK, key_length - first);
        let first_row = item * params.keys + first;

        // Scores of 16 keys at a time (repeats of the last key beyond the end, never read).
        for (var key = 0u; key < keys_here; key += BLOCK) {
            let low = first_row + min(key + lane, keys_here - 1u);
            let high = first_row + min(key + LANES + lane, keys_here - 1u);
            let k_low = (params.k_offset + low * params.k_stride + head) / 4u;
            let k_high = (params.k_offset + high * params.k_stride + head) / 4u;
            var score = array<vec4<f32>, 16>();
            for (var d = 0u; d < HEAD_DIM / 4u; d++) {
                let q_0 = q[q_row.x + d];
                let q_1 = q[q_row.y + d];
                let q_2 = q[q_row.z + d];
                let q_3 = q[q_row.w + d];
                let b_low = k[k_low + d];
                let b_high = k[k_high + d];
                add_outer(&score, vec4<f32>(q_0.x, q_1.x, q_2.x, q_3.x), b_low.x, b_high.x);
                add_outer(&score, vec4<f32>(q_0.y, q_1.y, q_2.y, q_3.y), b_low.y, b_high.y);
                add_outer(&score, vec4<f32>(q_0.z, q_1.z, q_2.z, q_3.z), b_low.z, b_high.z);
                add_outer(&score, vec4<f32>(q_0.w, q_1.w, q_2.w, q_3.w), b_low.w, b_high.w);
            }
            let slot = key * LANES + lane;
            weights[slot + 0u * LANES] = score[0];
            weights[slot + 1u * LANES] = score[1];
            weights[slot + 2u * LANES] = score[2];
            weights[slot + 3u * LANES] = score[3];
            weights[slot + 4u * LANES] = score[4];
            weights[slot + 5u * LANES] = score[5];
            weights[slot + 6u * LANES] = score[6];
            weights[slot + 7u * LANES] = score[7];
            weights[slot + 8u * LANES] = score[8];
            weights[slot + 9u * LANES] = score[9];
            weights[slot + 10u * LANES] = score[10];
            weights[slot + 11u * LANES] = score[11];
            weights[slot + 12u * LANES] = score[12];
            weights[slot + 13u * LANES] = score[13];
            weights[slot + 14u * LANES] = score[14];
            weights[slot + 15u * LANES] = score[15];
        }

        // The new maximum; what was summed under the old one shrinks.
        var higher = highest;
        for (var key = 0u; key < keys_here; key++) {
            higher = max(higher, weights[key * LANES + lane] * params.scale);
        }
        let shrink = exp(highest - higher);
        highest = higher;
        total *= shrink;
        for (var key = 0u; key < keys_here; key++) {
            let weight = exp(weights[key * LANES + lane] * params.scale - highest);
            weights[key * LANES + lane] = weight;
            total += weight;
        }
        if keys_here % 2u == 1u {
            weights[keys_here * LANES + lane] = vec4<f32>();
        }

        // Outputs of 16 dimensions at a time, two keys a load.
        let is_last = first + CHUNK >= key_length;
        let norm = select(vec4<f32>(1.0), 1.0 / max(total, vec4<f32>(1e-30)), is_last);
        for (var d = 0u; d < HEAD_DIM; d += BLOCK) {
            let v_d = params.v_offset + head + min(d + 4u * (lane % 4u), HEAD_DIM - 4u);
            var sum = array<vec4<f32>, 16>();
            for (var key = 0u; key < keys_here; key += 2u) {
                let v_row = first_row + min(key + lane / 4u, keys_here - 1u);
                let values = v[(v_d + v_row * params.v_stride) / 4u];
                let weight = weights[key * LANES + lane];
                let weight_next = weights[(key + 1u) * LANES + lane];
                add_outer_pair(&sum, weight, weight_next, values);
            }
            outputs[0u * LANES + lane] = sum[0];
            outputs[1u * LANES + lane] = sum[1];
            outputs[2u * LANES + lane] = sum[2];
            outputs[3u * LANES + lane] = sum[3];
            outputs[4u * LANES + lane] = sum[4];
            outputs[5u * LANES + lane] = sum[5];
            outputs[6u * LANES + lane] = sum[6];
            outputs[7u * LANES + lane] = sum[7];
            outputs[8u * LANES + lane] = sum[8];
            outputs[9u * LANES + lane] = sum[9];
            outputs[10u * LANES + lane] = sum[10];
            outputs[11u * LANES + lane] = sum[11];
            outputs[12u * LANES + lane] = sum[12];
            outputs[13u * LANES + lane] = sum[13];
            outputs[14u * LANES + lane] = sum[14];
            outputs[15u * LANES + lane] = sum[15];
            for (var i = 0u; i < min(BLOCK, HEAD_DIM - d); i += 4u) {
                let s_0 = outputs[i * LANES + lane];
                let s_1 = outputs[(i + 1u) * LANES + lane];
                let s_2 = outputs[(i + 2u) * LANES + lane];
                let s_3 = outputs[(i + 3u) * LANES + lane];
                for (var a = 0u; a < 4u; a++) {
                    if query[a] < params.queries {
                        let at = out_row[a] + (d + i) / 4u;
                        var value = vec4<f32>(s_0[a], s_1[a], s_2[a], s_3[a]);
                        if first > 0u {
                            value += out[at] * shrink[a];
                        }
                        out[at] = value * norm[a];
                    }
                }
            }
        }
    }
}
