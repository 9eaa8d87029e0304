// cooperative_weights_quantised: weights by weights_q8.wgsl or weights_q4.wgsl, rounded to f16 for matmul_cooperative, which
// it is put before.

// Eight values of a row of the weight from column k on.
fn weight_halves_at(row: u32, k: u32) -> Halves {
    let eight = eight_at(params.out_features, params.in_features, row, k);
    return Halves(vec4<f16>(eight.first), vec4<f16>(eight.second));
}
