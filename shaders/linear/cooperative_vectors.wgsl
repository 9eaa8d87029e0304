// cooperative_vectors: how matmul_cooperative keeps its slices in workgroup memory: in vectors of
// four, which are stored whole. (SPIR-V loads fragments from vectors, and counts strides in them; Metal's language does not:
// cooperative_scalars.wgsl.)

#import shared/halves

alias Piece = vec4<f16>;
const PIECE: u32 = 4u;

// Eight values to `at` of x's and of w's slice; at is a multiple of eight.
fn put_x_halves(at: u32, halves: Halves) {
    x_tile[at / 4u] = halves.first;
    x_tile[at / 4u + 1u] = halves.second;
}

fn put_w_halves(at: u32, halves: Halves) {
    w_tile[at / 4u] = halves.first;
    w_tile[at / 4u + 1u] = halves.second;
}
