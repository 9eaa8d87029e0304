//! `bench_copy.wgsl`, `bench_read.wgsl`, `bench_multiply.wgsl`, `bench_cooperative.wgsl`: what an adapter reaches where a
//! kernel does one thing only. `bench` gives other kernels' figures as shares of theirs.

use crate::gpu::{Capabilities, Gpu, Kernel, Operand, ProgramBuilder, READ, WRITE, params};

use super::{groups, word};

static BENCH_COPY: Kernel = Kernel::new::<CopyParams>("bench/bench_copy", &[READ, WRITE]);

static BENCH_READ: Kernel = Kernel::new::<ReadParams>("bench/bench_read", &[READ, WRITE]);

static BENCH_MULTIPLY: Kernel = Kernel::new::<MultiplyParams>("bench/bench_multiply", &[WRITE]);

const BENCH_COOPERATIVE: Kernel =
    Kernel::new::<CooperativeParams>("bench/bench_cooperative", &[READ, WRITE]);

static BENCH_COOPERATIVE_16: Kernel =
    BENCH_COOPERATIVE.named("bench_cooperative_16", &[("size", "16")]);

static BENCH_COOPERATIVE_8: Kernel =
    BENCH_COOPERATIVE.named("bench_cooperative_8", &[("size", "8")]);

/// All of them.
#[cfg(test)]
pub(super) static KERNELS: [&Kernel; 5] = [
    &BENCH_COPY,
    &BENCH_READ,
    &BENCH_MULTIPLY,
    &BENCH_COOPERATIVE_16,
    &BENCH_COOPERATIVE_8,
];

/// Bytes that the threads of [`bench_read`]'s workgroup read at once, and of a copy's thread.
const UNIT: u64 = 16;
/// Units of a row of [`bench_read`].
const ROW_UNITS: u64 = 256;
/// Rows that a workgroup of [`bench_read`] reads.
const READ_ROWS: u64 = 8;
/// Bytes that a workgroup of [`bench_read`] reads: buffers are multiples of it.
pub const READ_BYTES: u64 = UNIT * ROW_UNITS * READ_ROWS;

/// Threads a workgroup of reading and multiplying.
const THREADS: usize = 64;

/// FLOPs of a thread of [`bench_multiply`] a step.
pub const MULTIPLY_STEP_FLOPS: u64 = 128;
const SCALE: f32 = 0.999;
const SHIFT: f32 = 0.000_5;

params! {
    struct CopyParams {
        units: u32,
        threads_per_row: u32,
    }
}

/// Copies `x` to `y`, of the same size, a multiple of 16 bytes.
pub fn bench_copy(program: &mut ProgramBuilder, x: &wgpu::Buffer, y: &wgpu::Buffer) {
    debug_assert!(x.size() == y.size() && x.size().is_multiple_of(UNIT));
    let units = (x.size() / UNIT) as usize;
    let across = units.div_ceil(256).min(1024);
    program.dispatch(
        &BENCH_COPY,
        vec![],
        &CopyParams {
            units: word(units),
            threads_per_row: word(across * 256),
        },
        vec![x.into(), y.into()],
        [word(across), groups(units, across * 256), 1],
    );
}

params! {
    struct ReadParams {
        units: u32,
    }
}

/// Reads all of `x`, a multiple of [`READ_BYTES`], and writes sums that no one needs to `sums`.
pub fn bench_read(program: &mut ProgramBuilder, x: &wgpu::Buffer, sums: &wgpu::Buffer) {
    debug_assert!(x.size().is_multiple_of(READ_BYTES) && sums.size() >= sums_bytes(x.size()));
    program.dispatch(
        &BENCH_READ,
        vec![],
        &ReadParams {
            units: ROW_UNITS as u32,
        },
        vec![x.into(), sums.into()],
        [word((x.size() / READ_BYTES) as usize), 1, 1],
    );
}

/// Bytes of the sums of [`bench_read`] over `bytes` bytes.
#[must_use]
pub fn sums_bytes(bytes: u64) -> u64 {
    bytes / READ_BYTES * THREADS as u64 * 4
}

params! {
    struct MultiplyParams {
        steps: u32,
        scale: f32,
        shift: f32,
    }
}

/// `steps` times [`MULTIPLY_STEP_FLOPS`] FLOPs for each value of `y`, `[threads]` f32, a multiple of 64 of them.
pub fn bench_multiply(program: &mut ProgramBuilder, steps: u32, y: &wgpu::Buffer) {
    let threads = (y.size() / 4) as usize;
    debug_assert!(threads.is_multiple_of(THREADS));
    program.dispatch(
        &BENCH_MULTIPLY,
        vec![],
        &MultiplyParams {
            steps,
            scale: SCALE,
            shift: SHIFT,
        },
        vec![y.into()],
        [groups(threads, THREADS), 1, 1],
    );
}

params! {
    struct CooperativeParams {
        steps: u32,
    }
}

/// A cooperative multiply loop that a device can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CooperativeLoop {
    /// Rows and columns of a matrix: 16 or 8.
    pub side: u32,
    /// Lanes a subgroup.
    lanes: u32,
}

/// Subgroups a workgroup of [`bench_cooperative`].
const COOPERATIVE_SUBGROUPS: u32 = 4;

impl CooperativeLoop {
    /// The largest that `gpu` was opened with the features for; `None` where it has no cooperative matrices of f16 that
    /// add up in f32, or they were not asked for.
    #[must_use]
    pub fn of(gpu: &Gpu) -> Option<Self> {
        let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP;
        let there = gpu.device().features().contains(needed);
        there.then(|| Self::offered(gpu.capabilities())).flatten()
    }

    fn offered(capabilities: &Capabilities) -> Option<Self> {
        Some(Self {
            side: capabilities.cooperative_size()?,
            lanes: capabilities.fixed_subgroup_size()?,
        })
    }

    /// FLOPs of `workgroups` workgroups in `steps` steps.
    #[must_use]
    pub fn flops(&self, workgroups: u32, steps: u32) -> u64 {
        let subgroups = u64::from(workgroups * COOPERATIVE_SUBGROUPS);
        subgroups * u64::from(steps) * 8 * 2 * u64::from(self.side).pow(3)
    }

    /// Bytes of the two left and four right operands of [`bench_cooperative`].
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        6 * 2 * u64::from(self.side * self.side)
    }

    /// Bytes of the result of `workgroups` workgroups.
    #[must_use]
    pub fn result_bytes(&self, workgroups: u32) -> u64 {
        u64::from(workgroups * COOPERATIVE_SUBGROUPS) * 4 * u64::from(self.side * self.side)
    }
}

/// `steps` steps of `kind` by `workgroups` workgroups: reads operands from `x`, writes results to `y`, which has the size
/// of [`CooperativeLoop::result_bytes`].
pub fn bench_cooperative(
    program: &mut ProgramBuilder,
    kind: CooperativeLoop,
    (workgroups, steps): (u32, u32),
    x: &wgpu::Buffer,
    y: &wgpu::Buffer,
) {
    debug_assert!(y.size() >= kind.result_bytes(workgroups));
    let kernel = if kind.side == 16 {
        &BENCH_COOPERATIVE_16
    } else {
        &BENCH_COOPERATIVE_8
    };
    let size = f64::from(COOPERATIVE_SUBGROUPS * kind.lanes);
    program.dispatch(
        kernel,
        vec![("WORKGROUP_SIZE", size)],
        &CooperativeParams { steps },
        vec![Operand::from(x), Operand::from(y)],
        [workgroups, 1, 1],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{ActivationPool, Program};
    use crate::kernels::testing::{Random, assert_close, gpus};

    fn run<T: bytemuck::Pod>(
        gpu: &Gpu,
        target: &wgpu::Buffer,
        record: impl FnOnce(&mut ProgramBuilder),
    ) -> Vec<T> {
        let mut program = ProgramBuilder::new(gpu, "test");
        record(&mut program);
        let program: Program = program.finish(&ActivationPool::default()).expect("valid");
        program.run(gpu);
        let count = target.size() as usize / size_of::<T>();
        pollster::block_on(gpu.read(target, count)).expect("readable")
    }

    #[test]
    fn copies_every_byte() {
        for gpu in gpus() {
            for count in [4, 1028, 300_000] {
                let values = Random(3).vec(count);
                let x = gpu.storage_with("x", &values).expect("small");
                let y = gpu.storage("y", x.size()).expect("small");
                assert_eq!(
                    run::<f32>(gpu, &y, |program| bench_copy(program, &x, &y)),
                    values
                );
            }
        }
    }

    /// Plain-Rust twin of [`bench_read`].
    fn read_reference(x: &[u32]) -> Vec<u32> {
        let mut sums = Vec::new();
        for group in x.chunks((READ_BYTES / 4) as usize) {
            for thread in 0..THREADS {
                let words = group.iter().enumerate();
                let own = words.filter(|(index, _)| index / 4 % THREADS == thread);
                sums.push(own.fold(0_u32, |sum, (_, word)| sum.wrapping_add(*word)));
            }
        }
        sums
    }

    #[test]
    fn reads_every_byte_once() {
        for gpu in gpus() {
            for blocks in [1, 3] {
                let mut random = Random(blocks);
                let count = (blocks * READ_BYTES / 4) as usize;
                let values: Vec<u32> = (0..count).map(|_| random.next().to_bits()).collect();
                let x = gpu.storage_with("x", &values).expect("small");
                let sums = gpu.storage("sums", sums_bytes(x.size())).expect("small");
                let ours: Vec<u32> = run(gpu, &sums, |program| bench_read(program, &x, &sums));
                assert_eq!(ours, read_reference(&values));
            }
        }
    }

    /// Plain-Rust twin of [`bench_multiply`].
    fn multiply_reference(threads: usize, steps: u32) -> Vec<f32> {
        let chain = |start: usize| {
            let multiply = |c: f32, _| c.mul_add(SCALE, SHIFT);
            (0..steps * 8).fold(start as f32 / 64.0, multiply)
        };
        (0..threads)
            .map(|thread| (0..8).map(|c| chain(thread % THREADS + c)).sum())
            .collect()
    }

    #[test]
    fn multiplies_as_often_as_it_says() {
        for gpu in gpus() {
            for steps in [0, 1, 37] {
                let y = gpu.storage("y", 4 * 192).expect("small");
                let ours: Vec<f32> = run(gpu, &y, |program| bench_multiply(program, steps, &y));
                assert_close(&ours, &multiply_reference(192, steps), 1e-5, "multiply");
            }
        }
    }

    #[test]
    fn the_largest_matrices_are_taken() {
        let properties = |side: u32, result| wgpu::CooperativeMatrixProperties {
            m_size: side,
            n_size: side,
            k_size: side,
            ab_type: wgpu::CooperativeScalarType::F16,
            cr_type: result,
            saturating_accumulation: false,
        };
        let mut capabilities = gpus()[0].capabilities().clone();
        (capabilities.f16, capabilities.subgroups) = (true, Some((32, 32)));
        capabilities.cooperative_matrices = vec![properties(8, wgpu::CooperativeScalarType::F16)];
        assert_eq!(CooperativeLoop::offered(&capabilities), None);
        for side in [8, 16] {
            let one = properties(side, wgpu::CooperativeScalarType::F32);
            capabilities.cooperative_matrices.push(one);
            let kind = CooperativeLoop::offered(&capabilities).expect("it is listed");
            assert_eq!(kind.side, side);
            assert_eq!(kind.flops(3, 5), 12 * 5 * 16 * u64::from(side).pow(3));
        }
    }
}
