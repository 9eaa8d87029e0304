// activate: the activation functions. Imported by linear/linear.wgsl and ops/gate.wgsl.

override ACTIVATION: u32 = 0u; // 0 none, 1 GELU with erf (ViT, Q-Former), 2 GELU with tanh (T5), 3 ReLU (OPT)

// erf by Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error at most 1.5e-7.
fn erf(v: f32) -> f32 {
    let a = abs(v);
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(v) * (1.0 - polynomial * exp(-a * a));
}

fn activate(v: f32) -> f32 {
    if (ACTIVATION == 1u) {
        return 0.5 * v * (1.0 + erf(v * 0.70710678));
    }
    if (ACTIVATION == 2u) {
        // tanh is 1 to the last bit of f32 beyond 9; a larger argument is inf/inf on drivers that compute it with exp.
        let inner = 0.7978845608 * (v + 0.044715 * v * v * v);
        return 0.5 * v * (1.0 + tanh(clamp(inner, -10.0, 10.0)));
    }
    if (ACTIVATION == 3u) {
        return max(v, 0.0);
    }
    return v;
}

