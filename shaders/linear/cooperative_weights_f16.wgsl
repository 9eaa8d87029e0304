// cooperative_weights_f16: f16 weights for matmul_cooperative: as they lie, without a conversion.
// cooperative_weights_quantised.wgsl stands in its place for the other formats.

#import shared/halves

// linear.wgsl's binding as what it holds here; its own name is not used then.
@group(0) @binding(2) var<storage, read> weight_halves: array<Halves>; // [N, K / 8]

// Eight values of a row of the weight from column k on.
fn weight_halves_at(row: u32, k: u32) -> Halves {
    return weight_halves[(row * params.in_features + k) / 8u];
}
