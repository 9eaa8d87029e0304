//! The numbers to multiply, and how far a result is off.

use half::f16;

/// `x [rows, in]` and `w [out, in]`, whose values f16 holds exactly, so that all sides compute the same product.
pub struct Problem {
    pub rows: usize,
    pub out_features: usize,
    pub in_features: usize,
    pub x: Vec<f16>,
    pub w: Vec<f16>,
}

/// Values compared with sums in f64.
const SAMPLES: usize = 997;

impl Problem {
    pub fn new([rows, out_features, in_features]: [usize; 3]) -> Self {
        let mut state = 428;
        Self {
            rows,
            out_features,
            in_features,
            x: values(&mut state, rows * in_features, 1.0),
            w: values(&mut state, out_features * in_features, 0.05),
        }
    }

    pub fn flops(&self) -> f64 {
        2.0 * (self.rows * self.out_features * self.in_features) as f64
    }

    /// The greatest difference from the exact product at [`SAMPLES`] places, relative to the greatest value there.
    pub fn error(&self, result: &[f32]) -> f64 {
        let count = self.rows * self.out_features;
        if result.len() != count {
            return f64::INFINITY;
        }
        let step = (count / SAMPLES).max(1);
        let (mut difference, mut greatest) = (0.0_f64, 0.0_f64);
        // Not a multiple of the width, so that the places are in all rows and columns.
        for place in (0..count).step_by(step | 1) {
            let (row, column) = (place / self.out_features, place % self.out_features);
            let x = &self.x[row * self.in_features..][..self.in_features];
            let w = &self.w[column * self.in_features..][..self.in_features];
            let exact: f64 = x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64()).sum();
            let off = (f64::from(result[place]) - exact).abs();
            difference = if off.is_nan() {
                f64::INFINITY
            } else {
                difference.max(off)
            };
            greatest = greatest.max(exact.abs());
        }
        difference / greatest
    }
}

/// `count` values spread evenly over ±`scale`, by a linear congruential generator (Knuth's MMIX constants).
fn values(state: &mut u64, count: usize, scale: f32) -> Vec<f16> {
    let next = |state: &mut u64| {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count)
        .map(|_| f16::from_f32(next(state) * scale))
        .collect()
}
