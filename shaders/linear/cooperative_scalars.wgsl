// cooperative_scalars: how matmul_cooperative keeps its slices in workgroup memory where fragments
// are loaded from scalars only: Metal. cooperative_vectors.wgsl stands in its place elsewhere.

#import shared/halves

alias Piece = f16;
const PIECE: u32 = 1u;

// Eight values to `at` of x's and of w's slice.
fn put_x_halves(at: u32, halves: Halves) {
    x_tile[at] = halves.first.x;
    x_tile[at + 1u] = halves.first.y;
    x_tile[at + 2u] = halves.first.z;
    x_tile[at + 3u] = halves.first.w;
    x_tile[at + 4u] = halves.second.x;
    x_tile[at + 5u] = halves.second.y;
    x_tile[at + 6u] = halves.second.z;
    x_tile[at + 7u] = halves.second.w;
}

fn put_w_halves(at: u32, halves: Halves) {
    w_tile[at] = halves.first.x;
    w_tile[at + 1u] = halves.first.y;
    w_tile[at + 2u] = halves.first.z;
    w_tile[at + 3u] = halves.first.w;
    w_tile[at + 4u] = halves.second.x;
    w_tile[at + 5u] = halves.second.y;
    w_tile[at + 6u] = halves.second.z;
    w_tile[at + 7u] = halves.second.w;
}
