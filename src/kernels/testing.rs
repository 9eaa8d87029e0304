//! What kernel tests share: one device per way of opening it, random values, comparison.

use std::sync::OnceLock;

use crate::gpu::{Activation, ActivationPool, Disabled, Gpu, GpuOptions, ProgramBuilder};

/// The device of this test binary, opened once.
pub(crate) fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| open(&GpuOptions::default()))
}

/// The same adapter with shaders that check bounds.
pub(crate) fn checked_gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        open(&GpuOptions {
            checked: true,
            ..GpuOptions::default()
        })
    })
}

/// The same adapter as the least WebGPU device would be.
pub(crate) fn least_gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        open(&GpuOptions {
            disabled: Disabled {
                f16: true,
                subgroups: true,
                limits: true,
            },
            ..GpuOptions::default()
        })
    })
}

/// The three devices above: every kernel test runs on each.
pub(crate) fn gpus() -> [&'static Gpu; 3] {
    [gpu(), checked_gpu(), least_gpu()]
}

/// `BLIP2_WGPU_SHADERS` counts here as it does for the program.
fn open(options: &GpuOptions) -> Gpu {
    let options = &GpuOptions {
        shaders: std::env::var_os("BLIP2_WGPU_SHADERS").map(Into::into),
        ..options.clone()
    };
    pollster::block_on(Gpu::open(options)).expect("the tests need an adapter: see README")
}

/// Reproducible values in (-1, 1): a linear congruential generator (Knuth's MMIX constants).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1_u64 << 23) as f32) - 1.0
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((self.next() * 0.5 + 0.5) * bound as f32) as usize % bound
    }

    pub(crate) fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }

    pub(crate) fn f16_vec(&mut self, len: usize) -> Vec<half::f16> {
        (0..len).map(|_| half::f16::from_f32(self.next())).collect()
    }
}

/// An activation holding `values`.
pub(crate) fn upload(gpu: &Gpu, values: &[f32], rows: usize, columns: usize) -> Activation {
    assert_eq!(values.len(), rows * columns);
    let buffer = gpu.storage_with("test input", values).expect("small");
    Activation::external(&buffer, rows, columns)
}

/// Records with `record`, runs once and reads what the activation it returns holds.
pub(crate) fn run(gpu: &Gpu, record: impl FnOnce(&mut ProgramBuilder) -> Activation) -> Vec<f32> {
    let mut program = ProgramBuilder::new(gpu, "test");
    let output = record(&mut program);
    let target = gpu
        .storage("test output", (output.rows * output.columns * 4) as u64)
        .expect("small");
    super::copy(&mut program, &output, &target);
    let program = program
        .finish(&ActivationPool::default())
        .expect("the program is valid");
    program.run(gpu);
    pollster::block_on(gpu.read(&target, output.rows * output.columns)).expect("readable")
}

/// Asserts `‖ours − reference‖ / ‖reference‖ ≤ tolerance`, with no value missing or not finite.
#[track_caller]
pub(crate) fn assert_close(ours: &[f32], reference: &[f32], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), reference.len(), "{what}: number of values");
    let error: f64 = ours
        .iter()
        .zip(reference)
        .map(|(a, b)| f64::from(a - b).powi(2))
        .sum();
    let norm: f64 = reference.iter().map(|b| f64::from(*b).powi(2)).sum();
    let relative = (error / norm.max(1e-30)).sqrt();
    assert!(
        relative <= tolerance,
        "{what}: relative error {relative:e} > {tolerance:e}"
    );
}
