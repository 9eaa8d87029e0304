// Attention without a causal mask: out = softmax(q · kᵀ * scale) · v for every batch item and head.
// The softmax is streamed over tiles of 32 keys (running maximum and sum), so no
// [queries, keys] matrix is ever stored.
//
//   q   row (b, i), head h: q[q_offset + (b * queries + i) * q_stride + h * HEAD_DIM + d]
//   k   row (b, j), head h: k[k_offset + (b * keys + j) * k_stride + h * HEAD_DIM + d];  v alike
//       q, k and v may be one buffer (the fused qkv of the ViT) or several.
//   key_lengths [batch] u32: keys j >= key_lengths[b] are masked (0 keys: the output is 0)
//   out [batch * queries, heads * HEAD_DIM] f32, dense
//
// Grid: (ceil(queries / 32), heads, batch); a workgroup of 256 owns 32 queries of one head.
// HEAD_DIM: any size from 1 to 128. Shared memory: 12.5 KiB.
// Called by the ViT (self), the Q-Former (self, cross). attention_tile.wgsl is the same
// contract for adapters with 8-lane subgroups.
// Measured: ViT-g 257 x 16 x 88 on llvmpipe, CPU time / 2 cores: 187 ms, 2.0 GFLOP/s.

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
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> key_lengths: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

const THREADS: u32 = 256u;
const TILE: u32 = 32u; // queries a workgroup, and keys a step
const GROUPS: u32 = 8u; // a group: 32 threads that share 4 queries
const DEPTH: u32 = 8u; // vec4s of the head staged at a time: 32 dimensions
const K_ROW: u32 = 9u; // an odd row length keeps the 32 keys in different banks

var<workgroup> q_tile: array<vec4<f32>, TILE * DEPTH>; // [query, depth]
var<workgroup> k_tile: array<vec4<f32>, TILE * K_ROW>; // [key, depth]
var<workgroup> weights: array<vec4<f32>, TILE * GROUPS>; // [key, group]: of the group's 4 queries

// Dimensions d..d+3 of the row at `row`; zero beyond the head and for rows that do not exist.
fn load_q(exists: bool, row: u32, d: u32) -> vec4<f32> {
    var x = vec4<f32>();
    if exists {
        for (var i = 0u; i < 4u; i++) {
            if d + i < HEAD_DIM {
                x[i] = q[row + d + i];
            }
        }
    }
    return x;
}

fn load_k(exists: bool, row: u32, d: u32) -> vec4<f32> {
    var x = vec4<f32>();
    if exists {
        for (var i = 0u; i < 4u; i++) {
            if d + i < HEAD_DIM {
                x[i] = k[row + d + i];
            }
        }
    }
    return x;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group_id: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_query = group_id.x * TILE;
    let head = group_id.y * HEAD_DIM;
    let item = group_id.z;
    let key_length = min(key_lengths[item], params.keys);

    // In a step of the scores a thread owns 4 queries of its group and the key `lane`;
    // in the output it owns the same 4 queries and the dimensions lane, lane + 32, + 64, + 96.
    let lane = thread % TILE;
    let group = thread / TILE;

    // What the thread copies into the tiles: one vec4 of a query and one of a key.
    let tile_row = thread / DEPTH;
    let tile_d = thread % DEPTH;
    let q_exists = first_query + tile_row < params.queries;
    let q_row = params.q_offset + (item * params.queries + first_query + tile_row) * params.q_stride + head;

    var highest = vec4<f32>(LOWEST);
    var sum = vec4<f32>();
    var out_0 = vec4<f32>();
    var out_1 = vec4<f32>();
    var out_2 = vec4<f32>();
    var out_3 = vec4<f32>();

    for (var first_key = 0u; first_key < key_length; first_key += TILE) {
        let k_exists = first_key + tile_row < key_length;
        let k_row = params.k_offset + (item * params.keys + first_key + tile_row) * params.k_stride + head;

        // Scores of the group's 4 queries with the thread's key.
        var score = vec4<f32>();
        for (var d = 0u; d < HEAD_DIM; d += 4u * DEPTH) {
            q_tile[tile_row * DEPTH + tile_d] = load_q(q_exists, q_row, d + 4u * tile_d);
            k_tile[tile_row * K_ROW + tile_d] = load_k(k_exists, k_row, d + 4u * tile_d);
            workgroupBarrier();
            for (var i = 0u; i < DEPTH; i++) {
                let key = k_tile[lane * K_ROW + i];
                score += vec4<f32>(
                    dot(q_tile[(4u * group + 0u) * DEPTH + i], key),
                    dot(q_tile[(4u * group + 1u) * DEPTH + i], key),
                    dot(q_tile[(4u * group + 2u) * DEPTH + i], key),
                    dot(q_tile[(4u * group + 3u) * DEPTH + i], key),
                );
            }
            workgroupBarrier();
        }
        score = select(vec4<f32>(LOWEST), score * params.scale, first_key + lane < key_length);
        weights[lane * GROUPS + group] = score;
        workgroupBarrier();

        // The new maximum; what was summed under the old one shrinks.
        var higher = highest;
        for (var key = 0u; key < TILE; key++) {
            higher = max(higher, weights[key * GROUPS + group]);
        }
        let shrink = exp(highest - higher);
        highest = higher;
        sum *= shrink;
        out_0 *= shrink;
        out_1 *= shrink;
        out_2 *= shrink;
        out_3 *= shrink;
        workgroupBarrier();
        weights[lane * GROUPS + group] = exp(score - highest);
        workgroupBarrier();

        let keys_here = min(TILE, key_length - first_key);
        var v_row = params.v_offset + (item * params.keys + first_key) * params.v_stride + head;
        for (var key = 0u; key < keys_here; key++) {
            let weight = weights[key * GROUPS + group];
            sum += weight;
            if lane < HEAD_DIM {
                out_0 += weight * v[v_row + lane];
            }
            if lane + 32u < HEAD_DIM {
                out_1 += weight * v[v_row + lane + 32u];
            }
            if lane + 64u < HEAD_DIM {
                out_2 += weight * v[v_row + lane + 64u];
            }
            if lane + 96u < HEAD_DIM {
                out_3 += weight * v[v_row + lane + 96u];
            }
            v_row += params.v_stride;
        }
    }

    let norm = select(vec4<f32>(), 1.0 / sum, sum > vec4<f32>());
    for (var i = 0u; i < 4u; i++) {
        let query = first_query + 4u * group + i;
        if query < params.queries {
            let row = (item * params.queries + query) * params.heads * HEAD_DIM + head;
            if lane < HEAD_DIM {
                out[row + lane] = out_0[i] * norm[i];
            }
            if lane + 32u < HEAD_DIM {
                out[row + lane + 32u] = out_1[i] * norm[i];
            }
            if lane + 64u < HEAD_DIM {
                out[row + lane + 64u] = out_2[i] * norm[i];
            }
            if lane + 96u < HEAD_DIM {
                out[row + lane + 96u] = out_3[i] * norm[i];
            }
        }
    }
}
