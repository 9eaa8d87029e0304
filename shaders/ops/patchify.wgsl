// patchify: cuts images into patches, so that the patch convolution (kernel = stride = patch) becomes a matmul.
//
//   pixels   f32 [batch, 3, size, size]
//   patches  f32 [batch * grid * grid, columns], columns = 3 * patch * patch rounded up to 8; the rest is zero
//
// Column order is the convolution weight's own: channel, then row in the patch, then column in the patch.
// Grid: x = ceil(columns / 64), y = batch * grid * grid; one thread a value.
// Called once an image batch by model/vit.rs (kernels/ops/patchify.rs). Bandwidth-bound: 0.6 MB an image of 224 px.

struct Params {
    size: u32,    // pixels a side
    patch_size: u32, // pixels a side of a patch
    grid: u32,    // patches a side
    columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> pixels: array<f32>;         // [batch, 3, size, size]
@group(0) @binding(2) var<storage, read_write> patches: array<f32>;  // [batch * grid * grid, columns]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    let row = id.y;
    if column >= params.columns {
        return;
    }
    let area = params.patch_size * params.patch_size;
    let image = row / (params.grid * params.grid);
    let cell = row % (params.grid * params.grid);
    let channel = column / area;
    let inside = column % area;
    let y = (cell / params.grid) * params.patch_size + inside / params.patch_size;
    let x = (cell % params.grid) * params.patch_size + inside % params.patch_size;

    var value = 0.0;
    if channel < 3u {
        value = pixels[((image * 3u + channel) * params.size + y) * params.size + x];
    }
    patches[row * params.columns + column] = value;
}
