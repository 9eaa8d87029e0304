// embed_patches: puts the class token before each image's patches and adds the position embeddings.
//
//   patches    f32 [batch * count, width]       y of the patch matmul
//   class      f32 [width]
//   positions  f32 [1 + count, width]           row 0 belongs to the class token
//   tokens     f32 [batch * (1 + count), width]
//
// Grid: x = ceil(width / 64), y = batch * (1 + count); one thread a value.
// Called once an image batch by model/vit.rs (kernels/ops/embed_patches.rs). Bandwidth-bound.

struct Params {
    count: u32, // patches an image
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> patches: array<f32>;          // [batch * count, width]
@group(0) @binding(2) var<storage, read> class_embedding: array<f32>;  // [width]
@group(0) @binding(3) var<storage, read> positions: array<f32>;        // [1 + count, width]
@group(0) @binding(4) var<storage, read_write> tokens: array<f32>;     // [batch * (1 + count), width]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    let row = id.y;
    if column >= params.width {
        return;
    }
    let image = row / (params.count + 1u);
    let token = row % (params.count + 1u);
    var value = class_embedding[column];
    if token > 0u {
        value = patches[(image * params.count + token - 1u) * params.width + column];
    }
    tokens[row * params.width + column] = value + positions[token * params.width + column];
}
