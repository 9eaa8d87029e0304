// cooperative_weights_quantised: weights by shared/weights_{q8,q4}.wgsl, rounded to f16 for matmul_cooperative.

#import shared/halves

// Eight values of a row of the weight from column k on.
fn weight_halves_at(row: u32, k: u32) -> Halves {
    let eight = eight_at(params.out_features, params.in_features, row, k);
    return Halves(vec4<f16>(eight.first), vec4<f16>(eight.second));
}
