// max_over_queries: the score of an image and a text is that of the image's best query:
//   scores[i, t] = scale * max over q of dots[i * queries + q, t]
//
//   dots    f32 [images * queries, texts]
//   scores  f32 [images, texts], or [texts, images] where TRANSPOSED is 1
//
// Grid: x = ceil(texts / 64), y = images; one thread a score.
// Called by the ITC search (kernels/ops/max_over_queries.rs). Bandwidth-bound: reads each value once.

override TRANSPOSED: u32 = 0u;

struct Params {
    images: u32,
    queries: u32,
    texts: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dots: array<f32>;
@group(0) @binding(2) var<storage, read_write> scores: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let text = id.x;
    let image = id.y;
    if text >= params.texts {
        return;
    }
    let first = image * params.queries;
    var best = dots[first * params.texts + text];
    for (var query = 1u; query < params.queries; query++) {
        best = max(best, dots[(first + query) * params.texts + text]);
    }
    if TRANSPOSED == 1u {
        scores[text * params.images + image] = params.scale * best;
    } else {
        scores[image * params.texts + text] = params.scale * best;
    }
}
