//! The plain-Rust twin of linear layers.

use super::Activate;

/// Twin of [`super::linear`] and [`super::linear_into`] (`old` is the value added to), in f64.
pub(super) fn reference(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    in_features: usize,
    activate: Activate,
    old: Option<&[f32]>,
) -> Vec<f32> {
    let out_features = weight.len() / in_features;
    let mut y = Vec::with_capacity(x.len() / in_features * out_features);
    for row in x.chunks(in_features) {
        for (n, w) in weight.chunks(in_features).enumerate() {
            let dot: f64 = row
                .iter()
                .zip(w)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum();
            let value = apply(activate, dot + bias.map_or(0.0, |bias| f64::from(bias[n])));
            let old = old.map_or(0.0, |old| f64::from(old[y.len()]));
            y.push((value + old) as f32);
        }
    }
    y
}

fn apply(activate: Activate, x: f64) -> f64 {
    match activate {
        Activate::Identity => x,
        Activate::Relu => x.max(0.0),
        Activate::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activate::GeluErf => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
    }
}

/// The error function by its Maclaurin series, exact to f32 for the |x| < 5 that tests use
/// (Abramowitz & Stegun 7.1.6).
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}
