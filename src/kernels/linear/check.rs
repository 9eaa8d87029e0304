//! The self-checks of the linear kernels.

use half::f16;

use crate::gpu::{Activation, Gpu};
use crate::kernels::self_check::{Check, finding, is_wrong, scattered};

use super::{Activate, Linear, LinearVariant, candidates, linear_with, reference};

/// Rows of the cases: one that the matrix–vector kernels take, and one for more than a tile of most others.
pub(crate) const CHECKED_ROWS: [usize; 2] = [5, 70];
const OUT_FEATURES: usize = 75;
const IN_FEATURES: usize = 96;

/// A case for every kernel that `gpu` offers.
pub(crate) fn checks(gpu: &Gpu) -> Vec<Check> {
    let weight: Vec<f16> = scattered(OUT_FEATURES * IN_FEATURES, 1)
        .into_iter()
        .map(f16::from_f32)
        .collect();
    let mut checks: Vec<Check> = Vec::new();
    for rows in CHECKED_ROWS {
        let x = scattered(rows * IN_FEATURES, 2);
        let expected = reference(&x, &weight, None, IN_FEATURES, Activate::Identity, None);
        let mut seen = Vec::new();
        for variant in candidates(gpu.capabilities(), rows) {
            let finding = name_of(gpu, rows, variant);
            if seen.contains(&finding) {
                continue;
            }
            seen.push(finding.clone());
            let (gpu, x, weight) = (gpu.clone(), x.clone(), weight.clone());
            checks.push(Check {
                finding,
                what: "linear layers",
                expected: expected.clone(),
                record: Box::new(move |program| {
                    let x = Activation::external(&gpu.storage_with("x", &x)?, rows, IN_FEATURES);
                    let layer = Linear {
                        weight: gpu.matrix_with("weight", OUT_FEATURES, IN_FEATURES, &weight)?,
                        bias: None,
                    };
                    Ok(linear_with(program, variant, &x, &layer))
                }),
            });
        }
    }
    checks
}

/// The kernels for `rows` rows that have not failed their check, the one to take unmeasured first.
pub(crate) fn usable(gpu: &Gpu, rows: usize) -> Vec<LinearVariant> {
    let mut all = candidates(gpu.capabilities(), rows);
    let first = all[0];
    all.retain(|&variant| !is_wrong(gpu, &name_of(gpu, rows, variant)));
    if all.is_empty() {
        all.push(first); // `self_check` has refused the device; who goes on has not asked it
    }
    all
}

/// What the verdict on `variant` is kept under. A register tile's heights are one code; they are one finding.
fn name_of(gpu: &Gpu, rows: usize, variant: LinearVariant) -> String {
    let name = match variant {
        LinearVariant::Register { lanes, .. } => format!("register {lanes}"),
        other => other.to_string(),
    };
    finding(gpu, variant.shape(rows).kernel, &name)
}
