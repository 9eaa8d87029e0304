// attention_tile: attention without a causal mask, out = softmax(q · kᵀ * scale) · v, for adapters whose subgroups have at
// least 8 lanes (the workgroup is one subgroup), fast where they have just 8. inputs.wgsl has layouts and bindings.
//
// Grid: (ceil(queries / 32), heads, batch); a workgroup of 8 lanes owns 32 queries of one head, 4 a lane.
// Both products are sums of outer products in registers: 4 query vectors, one component a lane,
// times 16 numbers handed round with subgroupBroadcast. A load of a vec4 costs such an adapter
// as much as dozens of multiply-adds, so each is used for 16 or more queries or keys.
// Keys go in chunks of 112: scores, then the running maximum and sum, then the outputs, which
// accumulate in `out`. A lane reads only what it wrote itself, hence no barrier. Shared memory: 16 KiB.
// Called by the ViT and the Q-Former where all subgroups have 8 lanes.
// Measured: ViT-g 257 x 16 x 88 on llvmpipe, CPU time / 2 cores: 16 ms, 23 GFLOP/s.

enable subgroups;

#import attention/inputs

@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

const LANES: u32 = 8u;
const QUERIES: u32 = 32u;
const BLOCK: u32 = 16u; // keys whose scores, or dimensions whose outputs, are summed at once
const CHUNK: u32 = 112u; // keys a step of the streaming softmax; 112 + 16 rows of 128 B are 16 KiB

var<workgroup> weights: array<vec4<f32>, CHUNK * LANES>; // [key, lane]: of the lane's 4 queries
var<workgroup> outputs: array<vec4<f32>, BLOCK * LANES>; // [dimension, lane]

// sum[i] += a * b[i], where b is 16 numbers spread over the lanes. Written out: the lane must be constant.
fn add_outer(sum: ptr<function, array<vec4<f32>, 16>>, a: vec4<f32>, b_low: f32, b_high: f32) {
#for i in 0..8
    (*sum)[$i] += a * subgroupBroadcast(b_low, $iu);
#end
#for i in 0..8
    (*sum)[8 + $i] += a * subgroupBroadcast(b_high, $iu);
#end
}

// sum[i] += a * b[i] + a_next * b_next[i]: lanes 0..3 hold the 16 numbers of b, lanes 4..7 those of b_next.
fn add_outer_pair(sum: ptr<function, array<vec4<f32>, 16>>, a: vec4<f32>, a_next: vec4<f32>, b: vec4<f32>) {
#for i in 0..4
#for j in 0..4
    (*sum)[4 * $i + $j] += a * subgroupBroadcast(b[$j], $iu) + a_next * subgroupBroadcast(b[$j], 4u + $iu);
#end
#end
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
#for i in 0..16
            weights[slot + $iu * LANES] = score[$i];
#end
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
#for i in 0..16
            outputs[$iu * LANES + lane] = sum[$i];
#end
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
