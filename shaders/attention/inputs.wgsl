// inputs: what attention to all keys of a batch item takes: attention_tile, attention_flash, attention_cooperative.
//
//   q   row (b, i), head h: q[q_offset + (b * queries + i) * q_stride + h * HEAD_DIM + d]
//   k   row (b, j), head h: k[k_offset + (b * keys + j) * k_stride + h * HEAD_DIM + d];  v alike
//       q, k and v may be one buffer (the fused qkv of the ViT) or several.
//   key_lengths [batch] u32: keys j >= key_lengths[b] are masked (0 keys: the output is 0)
//   out [batch * queries, heads * HEAD_DIM] f32, dense, at binding 5
//
// HEAD_DIM, at most 128, and every stride and offset are multiples of 4: rows are read in fours.

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
