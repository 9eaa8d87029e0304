// cooperative_x_rounded: x for matmul_cooperative: f16 as round_to_f16.wgsl leaves it, half the bytes
// and no conversions where many workgroups read the same rows. Stands in the place of cooperative_x.wgsl.

#import shared/halves

// linear.wgsl's binding as what it holds here; its own name is not used then.
@group(0) @binding(1) var<storage, read> x_halves: array<Halves>; // [M, K / 8]

// Eight values of a row of x from column k on.
fn x_halves_at(row: u32, k: u32) -> Halves {
    return x_halves[(row * params.in_features + k) / 8u];
}
