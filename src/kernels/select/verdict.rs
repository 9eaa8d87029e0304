//! Whether the kernels compute rightly on this device: each variant of linear layers and attention
//! runs once on a small case that a mistake would show in (shapes are not square, operands do not
//! commute), and is left out if it fails.
//!
//! Drivers do miscompile, refuse what is valid, and hang: a variant that one of them cannot run must
//! not cost the answer, only its speed. Each variant therefore runs by itself. Verdicts are kept
//! ([`super::table`]), so that a start pays for them once a driver; of experimental variants it is
//! written down beforehand that they are being tried, so that the next start knows which one a process
//! died of. They are compiled together before that; if a process died there, the next start compiles
//! them one by one.

use serde::{Deserialize, Serialize};

use crate::gpu::{
    Activation, ActivationPool, Gpu, GpuError, ProgramBuilder, Readback, WeightFormat,
};
use crate::kernels::{attention, copy, linear};

use super::table::Table;
use super::{Family, Variant, VariantKey, check_choices};

/// Largest `‖result − twin‖ / ‖twin‖` of a right kernel, those that round their inputs to f16 included.
const TOLERANCE: f64 = 2e-3;

/// What is known of a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::kernels) enum Verdict {
    Right,
    /// Wrong, refused or fatal.
    Wrong,
    /// Being checked; where it is left over, the process died of it or the device was lost.
    Trying,
    /// Being compiled with others; where that is left over, one of them may have been fatal: the next
    /// start tries them singly.
    Compiling,
    /// There was no room to check it: the next start tries again.
    NoRoom,
}

type Record = dyn Fn(&mut ProgramBuilder) -> Result<Activation, GpuError> + Send + Sync;

/// One variant of a kernel with its case.
pub(in crate::kernels) struct Check {
    key: VariantKey,
    /// Of kernel and variant, in messages.
    name: String,
    family: Family,
    is_experimental: bool,
    /// What it must give.
    expected: Vec<f32>,
    /// Records the case.
    record: Box<Record>,
}

impl Check {
    /// `record` computes a case by `variant`, which must give `expected`.
    pub fn new(
        gpu: &Gpu,
        family: Family,
        variant: &impl Variant,
        format: WeightFormat,
        expected: Vec<f32>,
        record: Box<Record>,
    ) -> Self {
        Self {
            key: VariantKey::new(gpu, variant, format).of_any_height(),
            name: format!("{} ({variant})", variant.kernels(format)[0].name),
            family,
            is_experimental: variant.kind().is_experimental,
            expected,
            record,
        }
    }

    /// What the verdict is kept under. Several checks may share one: all of them must be right.
    pub fn key(&self) -> &VariantKey {
        &self.key
    }

    fn verdict(&self, gpu: &Gpu) -> Option<Verdict> {
        Table::of(gpu).verdict(&self.key)
    }

    fn set_verdict(&self, gpu: &Gpu, verdict: Verdict) {
        Table::of(gpu).set_verdict(&self.key, verdict);
    }
}

/// Runs every variant that `gpu` offers for weights in `formats` and that has no verdict yet.
///
/// # Errors
/// [`crate::gpu::GpuOptions::kernels`] name what cannot be. No variant of a kernel is right, or the
/// device was lost: the next start leaves out what it was lost with.
pub async fn self_check(gpu: &Gpu, formats: &[WeightFormat]) -> Result<(), GpuError> {
    check_choices(gpu)?;
    let mut checks = Vec::new();
    for &format in formats {
        checks.extend(linear::checks(gpu, format));
    }
    checks.extend(attention::checks(gpu));
    run_new(gpu, &checks).await?;
    for check in &checks {
        let same = |other: &&Check| other.family == check.family;
        let mut alike = checks.iter().filter(same);
        let is_wrong = |check: &Check| check.verdict(gpu).is_some_and(|it| it != Verdict::Right);
        if alike.clone().all(is_wrong) {
            let adapter = gpu.info().name.clone();
            let what = check.family.work();
            return Err(
                if alike.any(|it| it.verdict(gpu) == Some(Verdict::NoRoom)) {
                    let doing = format!("checking the kernels for {what}");
                    GpuError::OutOfMemory { adapter, doing }
                } else {
                    GpuError::WrongKernels {
                        adapter,
                        what: what.into(),
                        shaders: gpu.shader_folder().map(Into::into),
                    }
                },
            );
        }
    }
    Table::of(gpu).save(gpu);
    Ok(())
}

/// Runs the checks without a verdict and keeps what they show.
///
/// # Errors
/// The device was lost.
async fn run_new(gpu: &Gpu, checks: &[Check]) -> Result<(), GpuError> {
    let is_open = |check: &&Check| {
        let verdict = check.verdict(gpu);
        !matches!(verdict, Some(Verdict::Right | Verdict::Wrong))
    };
    if !checks.iter().any(|check| is_open(&check)) {
        return Ok(());
    }
    gpu.check("starting the self-check")?;
    let lock = gpu.tuning_cache().lock();
    if lock.is_first() {
        leave_out_unfinished(gpu, checks);
    }
    let open: Vec<&Check> = checks.iter().filter(is_open).collect();
    let (experimental, plain): (Vec<_>, Vec<_>) = by_key(open)
        .into_iter()
        .partition(|it| it[0].is_experimental);
    let cases: Vec<Case> = plain.iter().map(|it| Case::record(gpu, it)).collect();
    ProgramBuilder::compile_all(cases.iter().map(|it| &it.program));
    gpu.judge_kernels().await;
    for (checks, case) in plain.iter().zip(cases) {
        conclude(gpu, checks, case.run(gpu, checks).await)?;
    }
    let was_compiling = |it: &Check| it.verdict(gpu) == Some(Verdict::Compiling);
    let is_wary = lock.is_first() && checks.iter().any(was_compiling);
    if !is_wary {
        compile_together(gpu, &experimental);
        gpu.judge_kernels().await;
    }
    for checks in &experimental {
        checks[0].set_verdict(gpu, Verdict::Trying);
        Table::of(gpu).save(gpu);
        let case = Case::record(gpu, checks);
        conclude(gpu, checks, case.run(gpu, checks).await)?;
    }
    Ok(())
}

/// Compiles experimental kernels on all cores: on a GPU they are dozens of pipelines.
fn compile_together(gpu: &Gpu, variants: &[Vec<&Check>]) {
    for checks in variants {
        checks[0].set_verdict(gpu, Verdict::Compiling);
    }
    Table::of(gpu).save(gpu);
    let cases: Vec<Case> = variants.iter().map(|it| Case::record(gpu, it)).collect();
    ProgramBuilder::compile_all(cases.iter().map(|it| &it.program));
}

/// Counts the checks that a process of old never finished as failed: it may have died of them.
fn leave_out_unfinished(gpu: &Gpu, checks: &[Check]) {
    let was_trying = |it: &&Check| it.verdict(gpu) == Some(Verdict::Trying);
    for check in checks.iter().filter(was_trying) {
        let remedy = gpu.tuning_cache().file().map_or_else(String::new, |file| {
            format!("; delete {} to have it tried again", file.display())
        });
        log::warn!(
            "kernel {} was being checked on {} when an earlier run ended, and is left out{remedy}",
            check.name,
            gpu.info().name
        );
        check.set_verdict(gpu, Verdict::Wrong);
    }
}

/// The checks of each variant: all of them must be right.
fn by_key(checks: Vec<&Check>) -> Vec<Vec<&Check>> {
    let mut groups: Vec<Vec<&Check>> = Vec::new();
    for check in checks {
        match groups.iter_mut().find(|it| it[0].key == check.key) {
            Some(group) => group.push(check),
            None => groups.push(vec![check]),
        }
    }
    groups
}

/// Keeps what the checks of a variant have shown.
///
/// # Errors
/// The device was lost: nothing can follow.
fn conclude(gpu: &Gpu, checks: &[&Check], shown: Result<f64, GpuError>) -> Result<(), GpuError> {
    let name = &checks[0].name;
    let (verdict, problem) = match &shown {
        Ok(error) if is_close(*error) => (Verdict::Right, None),
        Ok(error) => (
            Verdict::Wrong,
            Some(format!("wrong (relative error {error:.1e})")),
        ),
        Err(error @ GpuError::OutOfMemory { .. }) => {
            (Verdict::NoRoom, Some(format!("unchecked ({error})")))
        }
        Err(error) => (Verdict::Wrong, Some(format!("unusable ({error})"))),
    };
    if let Some(problem) = problem {
        let adapter = &gpu.info().name;
        log::warn!("kernel {name} is {problem} on {adapter} and is left out");
    }
    checks[0].set_verdict(gpu, verdict);
    match shown {
        Err(GpuError::Lost { reason }) => {
            Table::of(gpu).save(gpu);
            let is_kept = gpu.tuning_cache().file().is_some();
            let remedy = if is_kept {
                ", which the next run leaves out"
            } else {
                ""
            };
            let reason = format!("{reason} (with kernel {name}{remedy})");
            Err(GpuError::Lost { reason })
        }
        _ => Ok(()),
    }
}

/// The checks of a variant in a program of their own.
struct Case<'gpu> {
    program: ProgramBuilder<'gpu>,
    /// Where each one's result goes, and its bytes.
    targets: Vec<(wgpu::Buffer, u64)>,
}

impl<'gpu> Case<'gpu> {
    /// An error is the program's: it comes out when that is finished.
    fn record(gpu: &'gpu Gpu, checks: &[&Check]) -> Self {
        let mut program = ProgramBuilder::new(gpu, "self-check");
        let mut targets = Vec::new();
        for check in checks {
            let bytes = (check.expected.len() * 4) as u64;
            let recorded = (check.record)(&mut program)
                .and_then(|result| Ok((result, gpu.storage("self-check", bytes)?)));
            match recorded {
                Ok((result, target)) => {
                    copy(&mut program, &result, &target);
                    targets.push((target, bytes));
                }
                Err(error) => program.fail(error),
            }
        }
        Self { program, targets }
    }

    /// Runs the checks: the largest error, or why there is none. Whether an error was the device's last is seen by what
    /// becomes of something harmless.
    async fn run(self, gpu: &Gpu, checks: &[&Check]) -> Result<f64, GpuError> {
        let shown = self.largest_error(gpu, checks).await;
        match shown {
            Err(error @ GpuError::Internal { .. }) if !is_alive(gpu).await => Err(GpuError::Lost {
                reason: error.to_string(),
            }),
            shown => shown,
        }
    }

    /// Runs the checks and compares. A NaN is the largest error of all.
    async fn largest_error(self, gpu: &Gpu, checks: &[&Check]) -> Result<f64, GpuError> {
        let program = self.program.finish(&ActivationPool::default())?;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        program.encode(&mut encoder);
        let mut readbacks = Vec::new();
        for (target, bytes) in &self.targets {
            let readback = Readback::new(gpu, *bytes)?;
            readback.record(&mut encoder, target, 0, *bytes);
            readbacks.push(readback);
        }
        gpu.submit([encoder.finish()]);
        let mut largest = 0.0;
        for (check, readback) in checks.iter().zip(readbacks) {
            let ours: Vec<f32> = readback.read(gpu, check.expected.len()).await?;
            let error = relative_error(&ours, &check.expected);
            if error.is_nan() || error > largest {
                largest = error;
            }
            if error.is_nan() {
                break;
            }
        }
        Ok(largest)
    }
}

/// Whether the device still does what it is told. Forgets errors that are not yet asked for.
async fn is_alive(gpu: &Gpu) -> bool {
    let _ = gpu.check("forgetting what followed an error");
    match gpu.storage_with("sign of life", &[7_u32]) {
        Ok(buffer) => gpu.read::<u32>(&buffer, 1).await.is_ok_and(|it| it == [7]),
        Err(_) => false,
    }
}

/// Whether a relative error is a right kernel's; a NaN is not.
fn is_close(error: f64) -> bool {
    error <= TOLERANCE
}

/// `‖ours − expected‖ / ‖expected‖`
pub(in crate::kernels) fn relative_error(ours: &[f32], expected: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let error: f64 = ours.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = expected.iter().map(|&b| square(b)).sum();
    (error / norm.max(1e-30)).sqrt()
}

/// `count` values in (-1, 1) without a pattern that a transposed or shifted operand could share: multiples of the golden
/// ratio, modulo 1 (Weyl's sequence).
pub(in crate::kernels) fn scattered(count: usize, seed: usize) -> Vec<f32> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    (0..count)
        .map(|index| (((index + 1009 * seed + 1) as f64 * GOLDEN).fract() * 2.0 - 1.0) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Disabled, GpuOptions, Kernel, params};
    use crate::kernels::candidates;

    fn fresh_gpu(subgroups: bool) -> Gpu {
        open(&GpuOptions {
            disabled: Disabled {
                subgroups: !subgroups,
                ..Disabled::default()
            },
            ..GpuOptions::default()
        })
    }

    /// A device that knows the invented kernels.
    fn inventive_gpu() -> Gpu {
        let folder = inventions();
        let gpu = open(&GpuOptions {
            shaders: Some(folder.path().into()),
            ..GpuOptions::default()
        });
        for kernel in [&SEVENS, &REFUSED] {
            assert_ne!(gpu.text_hash(&[kernel]), 0); // read while the folder is there
        }
        gpu
    }

    fn open(options: &GpuOptions) -> Gpu {
        pollster::block_on(Gpu::open(options)).expect("the tests need an adapter: see README")
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
                checks.len() >= 6,
                "a case of two kernels of linear layers in each format"
            );
            for check in checks {
                assert_eq!(check.verdict(&gpu), Some(Verdict::Right), "{}", check.name);
            }
        }
    }

    #[test]
    fn a_wrong_kernel_is_found_out_and_left_out() {
        let gpu = fresh_gpu(true);
        let mut checks = linear::checks(&gpu, WeightFormat::F16);
        assert!(checks.len() > 2, "more than one variant to choose from");
        // As if the driver had swapped two results of the first variant.
        let first = checks[0].key.clone();
        checks[0].expected.swap(0, 1);
        pollster::block_on(run_new(&gpu, &checks)).expect("it runs");
        let is_wrong = |key| Table::of(&gpu).is_wrong(key);
        assert!(is_wrong(&first));
        let others = checks.iter().filter(|check| check.key != first);
        assert!(others.clone().count() > 2);
        assert!(others.map(|it| &it.key).all(|it| !is_wrong(it)));
        let rows = linear::CHECKED_ROWS[0];
        let usable = linear::usable(&gpu, rows, WeightFormat::F16);
        assert_eq!(usable.len() + 1, candidates(gpu.capabilities(), rows).len());

        // And if none is right, that is said before anything is computed with them.
        for check in &checks {
            check.set_verdict(&gpu, Verdict::Wrong);
        }
        let error = pollster::block_on(self_check(&gpu, &[WeightFormat::F16]))
            .expect_err("nothing is right");
        assert!(error.to_string().contains("linear layers"), "{error}");
    }

    /// A check of an invented kernel that puts a number of threads into a workgroup.
    fn invented(gpu: &Gpu, name: &str, kernel: &'static Kernel) -> Check {
        let key = VariantKey {
            kernel: name.into(),
            size: Vec::new(),
            checked: false,
            text: gpu.text_hash(&[kernel]),
            cases: 0,
        };
        let gpu = gpu.clone();
        Check {
            key,
            name: name.into(),
            family: Family::Attention,
            is_experimental: true,
            expected: vec![7.0; 4],
            record: Box::new(move |program| {
                let y = program.activation(1, 4);
                let x = gpu.storage("x", 16)?;
                let operands = vec![(&x).into(), y.operand()];
                let params = Params { factor: 0 };
                program.dispatch(kernel, vec![], &params, operands, [1, 1, 1]);
                Ok(y)
            }),
        }
    }

    params! {
        struct Params {
            factor: u32,
        }
    }

    static SEVENS: Kernel = Kernel::new::<Params>("sevens", &[crate::gpu::READ, crate::gpu::WRITE]);

    /// More threads than any device allows: the pipeline is refused.
    static REFUSED: Kernel =
        Kernel::new::<Params>("refused", &[crate::gpu::READ, crate::gpu::WRITE]);

    /// A folder with the shaders of the invented kernels.
    fn inventions() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, threads) in [("sevens", 4), ("refused", 1_000_000)] {
            let text = format!(
                "@group(0) @binding(0) var<uniform> params: Params;
                struct Params {{ factor: u32 }}
                @group(0) @binding(1) var<storage, read> x: array<f32>;
                @group(0) @binding(2) var<storage, read_write> y: array<f32>;
                @compute @workgroup_size({threads}) fn main(@builtin(local_invocation_index) i: u32) {{
                    if (i < 4u) {{ y[i] = 7.0 + x[i] * f32(params.factor); }}
                }}"
            );
            let file = folder.path().join(format!("{name}.wgsl"));
            std::fs::write(file, text).expect("writable");
        }
        folder
    }

    #[test]
    fn a_refused_kernel_is_left_out_and_the_others_are_checked() {
        let gpu = inventive_gpu();
        let checks = [
            invented(&gpu, "first", &REFUSED),
            invented(&gpu, "second", &SEVENS),
            Check {
                is_experimental: false,
                ..invented(&gpu, "third", &REFUSED)
            },
        ];
        pollster::block_on(run_new(&gpu, &checks)).expect("nothing that matters failed");
        let verdicts = checks.each_ref().map(|it| it.verdict(&gpu));
        let wanted = [Verdict::Wrong, Verdict::Right, Verdict::Wrong].map(Some);
        assert_eq!(verdicts, wanted);
        // No error is left behind for whoever comes next, and who uses it all the same learns its name.
        gpu.check("testing").expect("all errors were caught");
        assert!(pollster::block_on(is_alive(&gpu)));
        let case = Case::record(&gpu, &[&checks[0]]);
        let error = case.program.finish(&ActivationPool::default());
        let error = error.expect_err("refused again").to_string();
        assert!(error.contains("kernel refused"), "{error}");
    }

    #[test]
    fn a_lost_device_ends_the_checks() {
        let gpu = inventive_gpu();
        gpu.device().destroy();
        let checks = ["first", "second"].map(|name| invented(&gpu, name, &SEVENS));
        let error = pollster::block_on(run_new(&gpu, &checks)).expect_err("nothing can run");
        assert!(matches!(error, GpuError::Lost { .. }), "{error}");
        assert!(error.to_string().contains("first"), "{error}");
        assert_eq!(checks[0].verdict(&gpu), Some(Verdict::Wrong));
        // Never tried by itself: the next start does so.
        assert_eq!(checks[1].verdict(&gpu), Some(Verdict::Compiling));
    }

    #[test]
    fn what_a_process_died_of_is_left_out() {
        let folder = inventions();
        let options = GpuOptions {
            cache_dir: Some(folder.path().into()),
            shaders: Some(folder.path().into()),
            ..GpuOptions::default()
        };
        let open = || open(&options);
        let gpu = open();
        let check = |gpu: &Gpu, name: &str| invented(gpu, name, &SEVENS);
        for name in ["died", "sevens"] {
            check(&gpu, name).set_verdict(&gpu, Verdict::Trying);
        }
        check(&gpu, "compiled").set_verdict(&gpu, Verdict::Compiling);
        Table::of(&gpu).save(&gpu);

        // While another process is at it, nobody has died: everything is checked again.
        let lock = gpu.tuning_cache().lock();
        let other = open();
        let checks = [check(&other, "sevens")];
        pollster::block_on(run_new(&other, &checks)).expect("it runs");
        assert_eq!(checks[0].verdict(&other), Some(Verdict::Right));
        drop((lock, gpu));

        let next = open();
        let checks = ["died", "compiled", "new"].map(|name| check(&next, name));
        pollster::block_on(run_new(&next, &checks)).expect("it runs");
        let verdicts = checks.each_ref().map(|it| it.verdict(&next));
        let wanted = [Verdict::Wrong, Verdict::Right, Verdict::Right].map(Some);
        assert_eq!(verdicts, wanted);
        // That something is tried is on disk before it runs.
        let kept = open();
        assert_eq!(check(&kept, "new").verdict(&kept), Some(Verdict::Trying));
    }

    #[test]
    fn a_value_that_is_not_a_number_is_wrong() {
        assert!(!is_close(relative_error(&[f32::NAN, 1.0], &[1.0, 1.0])));
        assert!(is_close(relative_error(&[1.0, 1.0], &[1.0, 1.0])));
    }
}
