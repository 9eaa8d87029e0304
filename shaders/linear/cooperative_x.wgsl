// cooperative_x: x for matmul_cooperative: f32, rounded when it is read. cooperative_x_rounded.wgsl can stand in its place.

#import shared/halves

// Eight values of a row of x from column k on.
fn x_halves_at(row: u32, k: u32) -> Halves {
    let at = (row * params.in_features + k) / 4u;
    return Halves(to_f16(x[at]), to_f16(x[at + 1u]));
}
