//! Whether the kernels compute rightly on this device: each variant of linear layers and attention runs once on a small
//! case that a mistake would show in (shapes are not square, operands do not commute), and is left out if it fails.
//!
//! Drivers do miscompile: a variant that is wrong on one of them must not cost the answer, only its speed. Verdicts are
//! kept with the device's other findings ([`crate::gpu::Choices`]), so that a start pays for them once a driver.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

use crate::gpu::{
    Activation, ActivationPool, Gpu, GpuError, Kernel, ProgramBuilder, Readback, WeightFormat,
};

use super::{attention, copy, linear};

/// Largest `‖result − twin‖ / ‖twin‖` of a right kernel, those that round their inputs to f16 included.
const TOLERANCE: f64 = 2e-3;

const RIGHT: &str = "right";
const WRONG: &str = "wrong";

type Record = dyn Fn(&mut ProgramBuilder) -> Result<Activation, GpuError> + Send + Sync;

/// One variant of a kernel with its case.
pub(super) struct Check {
    /// The kernel's name among the findings: [`finding`].
    pub finding: String,
    /// What it is for, in an error message.
    pub what: &'static str,
    /// What it must give.
    pub expected: Vec<f32>,
    /// Records the case.
    pub record: Box<Record>,
}

/// Runs every variant that `gpu` offers for weights in `formats` and that has no verdict yet.
///
/// # Errors
/// No variant of a kernel is right, or the device failed.
pub async fn self_check(gpu: &Gpu, formats: &[WeightFormat]) -> Result<(), GpuError> {
    let mut checks = Vec::new();
    for &format in formats {
        checks.extend(linear::checks(gpu, format));
    }
    checks.extend(attention::checks(gpu));
    run_new(gpu, &checks).await?;
    for check in &checks {
        let same = |other: &&Check| other.what == check.what;
        if checks
            .iter()
            .filter(same)
            .all(|check| is_wrong(gpu, &check.finding))
        {
            return Err(GpuError::WrongKernels {
                adapter: gpu.info().name.clone(),
                what: check.what.into(),
            });
        }
    }
    Ok(())
}

/// The name under which a finding about variant `variant` of `kernel` is kept. It changes with the kernels' texts and
/// with how they are built.
pub(super) fn finding(gpu: &Gpu, kernel: &Kernel, variant: &str) -> String {
    static TEXTS: LazyLock<u64> = LazyLock::new(|| {
        let mut hasher = DefaultHasher::new();
        let linear = linear::KERNELS.iter().copied().flatten();
        for kernel in linear.chain(attention::KERNELS.iter().copied()) {
            kernel.wgsl.hash(&mut hasher);
        }
        hasher.finish()
    });
    let checked = if gpu.is_checked() { " checked" } else { "" };
    format!("{} {variant}{checked} {:016x}", kernel.name, *TEXTS)
}

/// Whether a variant has failed its check. One that was never checked has not.
pub(super) fn is_wrong(gpu: &Gpu, finding: &str) -> bool {
    gpu.choices().get(finding).as_deref() == Some(WRONG)
}

/// Runs the checks without a verdict in one program and keeps what they show.
async fn run_new(gpu: &Gpu, checks: &[Check]) -> Result<(), GpuError> {
    let new: Vec<_> = checks
        .iter()
        .filter(|check| gpu.choices().get(&check.finding).is_none())
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let mut program = ProgramBuilder::new(gpu, "self-check");
    let mut results = Vec::new();
    for check in &new {
        let result = (check.record)(&mut program)?;
        let bytes = (check.expected.len() * 4) as u64;
        let target = gpu.storage("self-check", bytes)?;
        copy(&mut program, &result, &target);
        results.push((target, bytes, Readback::new(gpu, bytes)?));
    }
    let program = program.finish(&ActivationPool::default())?;
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    program.encode(&mut encoder);
    for (target, bytes, readback) in &results {
        readback.record(&mut encoder, target, 0, *bytes);
    }
    gpu.submit([encoder.finish()]);
    for (check, (_, _, readback)) in new.into_iter().zip(&results) {
        let ours: Vec<f32> = readback.read(gpu, check.expected.len()).await?;
        let error = relative_error(&ours, &check.expected);
        let is_right = is_close(error);
        if !is_right {
            log::warn!(
                "kernel {} is wrong on {} (relative error {error:.1e}) and is left out",
                check.finding,
                gpu.info().name
            );
        }
        // Several cases may be one finding's: all of them must be right.
        if !is_wrong(gpu, &check.finding) {
            let verdict = if is_right { RIGHT } else { WRONG };
            gpu.choices().set(check.finding.clone(), verdict.into());
        }
    }
    Ok(())
}

/// Whether a relative error is a right kernel's; a NaN is not.
fn is_close(error: f64) -> bool {
    error <= TOLERANCE
}

/// `‖ours − expected‖ / ‖expected‖`
pub(super) fn relative_error(ours: &[f32], expected: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let error: f64 = ours.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = expected.iter().map(|&b| square(b)).sum();
    (error / norm.max(1e-30)).sqrt()
}

/// `count` values in (-1, 1) without a pattern that a transposed or shifted operand could share: multiples of the golden
/// ratio, modulo 1 (Weyl's sequence).
pub(super) fn scattered(count: usize, seed: usize) -> Vec<f32> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    (0..count)
        .map(|index| (((index + 1009 * seed + 1) as f64 * GOLDEN).fract() * 2.0 - 1.0) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Disabled, GpuOptions};
    use crate::kernels::candidates;

    fn fresh_gpu(subgroups: bool) -> Gpu {
        let options = GpuOptions {
            disabled: Disabled {
                subgroups: !subgroups,
                ..Disabled::default()
            },
            ..GpuOptions::default()
        };
        pollster::block_on(Gpu::open(&options)).expect("the tests need an adapter: see README")
    }

    #[test]
    fn every_variant_of_this_device_is_right() {
        for subgroups in [true, false] {
            let gpu = fresh_gpu(subgroups);
            let formats = &WeightFormat::ALL;
            pollster::block_on(self_check(&gpu, formats)).expect("right kernels");
            let mut checks = attention::checks(&gpu);
            for &format in formats {
                checks.extend(linear::checks(&gpu, format));
            }
            assert!(
                checks.len() >= 3,
                "two kernels of linear layers and one of attention"
            );
            for check in checks {
                assert_eq!(
                    gpu.choices().get(&check.finding).as_deref(),
                    Some(RIGHT),
                    "{}",
                    check.finding
                );
            }
        }
    }

    #[test]
    fn a_wrong_kernel_is_found_out_and_left_out() {
        let gpu = fresh_gpu(true);
        let mut checks = linear::checks(&gpu, WeightFormat::F16);
        assert!(checks.len() > 2, "more than one variant to choose from");
        // As if the driver had swapped two results of the first variant.
        let first = checks[0].finding.clone();
        checks[0].expected.swap(0, 1);
        pollster::block_on(run_new(&gpu, &checks)).expect("it runs");
        assert!(is_wrong(&gpu, &first));
        assert!(!is_wrong(&gpu, &checks[1].finding));
        let rows = linear::CHECKED_ROWS[0];
        let usable = linear::usable(&gpu, rows, WeightFormat::F16);
        assert_eq!(usable.len() + 1, candidates(gpu.capabilities(), rows).len());

        // And if none is right, that is said before anything is computed with them.
        for check in &checks {
            gpu.choices().set(check.finding.clone(), WRONG.into());
        }
        let error = pollster::block_on(self_check(&gpu, &[WeightFormat::F16]))
            .expect_err("nothing is right");
        assert!(error.to_string().contains("linear layers"), "{error}");
    }

    #[test]
    fn a_value_that_is_not_a_number_is_wrong() {
        assert!(!is_close(relative_error(&[f32::NAN, 1.0], &[1.0, 1.0])));
        assert!(is_close(relative_error(&[1.0, 1.0], &[1.0, 1.0])));
    }
}
