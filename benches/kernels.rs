//! The kernels and variants of `blip2-wgpu bench kernels`, under criterion: for comparing one build with the next.
//!
//! ```text
//! cargo bench --bench kernels -- 'matvec 1x10240x2560'    # names that a regular expression finds
//! cargo bench --bench kernels -- --save-baseline before   # and --baseline before, later
//! ```
//! `BLIP2_WGPU_ADAPTER` chooses the adapter. The table with shares of the adapter's ceilings is the command's.

use std::time::Duration;

use blip2_wgpu::bench::{Case, Inputs, cases, ceilings, replay};
use blip2_wgpu::gpu::{ActivationPool, AdapterChoice, Gpu, GpuOptions, Program, ProgramBuilder};
use criterion::{Criterion, SamplingMode, Throughput};

fn main() {
    let adapter = std::env::var("BLIP2_WGPU_ADAPTER").unwrap_or_default();
    let options = GpuOptions {
        adapter: AdapterChoice::parse(&adapter),
        ..GpuOptions::default()
    };
    let gpu = pollster::block_on(Gpu::open(&options)).expect("a device");
    let mut criterion = Criterion::default().configure_from_args();
    let mut inputs = Inputs::new(&gpu);
    let mut group = criterion.benchmark_group("kernels");
    group
        .sample_size(10)
        .sampling_mode(SamplingMode::Flat)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    for case in ceilings(&gpu).into_iter().chain(cases(&gpu)) {
        // Elements a second are FLOPs a second.
        group.throughput(if case.flops > 0.0 {
            Throughput::Elements(case.flops as u64 * case.repeats as u64)
        } else {
            Throughput::Bytes(case.bytes as u64 * case.repeats as u64)
        });
        group.bench_function(case.name(), |bencher| {
            // Here, not outside: only what the filter lets through is made.
            let program = record(&gpu, &case, &mut inputs);
            bencher.iter_custom(|count| run(&gpu, &program, count));
        });
    }
    group.finish();
    criterion.final_summary();
}

fn record(gpu: &Gpu, case: &Case, inputs: &mut Inputs) -> Program {
    let mut program = ProgramBuilder::new(gpu, "bench");
    case.record(inputs, &mut program)
        .expect("room on the device");
    program
        .finish(&ActivationPool::default())
        .expect("a valid program")
}

/// `count` replays, at most 200 in a submit.
fn run(gpu: &Gpu, program: &Program, count: u64) -> Duration {
    let mut left = count as usize;
    let mut time = Duration::ZERO;
    while left > 0 {
        let now = left.min(200);
        time += pollster::block_on(replay(gpu, program, now)).expect("a working device");
        left -= now;
    }
    time
}
