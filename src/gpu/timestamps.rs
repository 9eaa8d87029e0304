//! The device's side of a profile: queries around each dispatch, read back when their command buffer is done.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::platform::Instant;

use super::profile::{Clock, Profiler};
use super::program::Step;
use super::{Gpu, GpuError};

/// Queries a set: WebGPU's most.
const QUERIES: u32 = wgpu::QUERY_SET_MAX_QUERIES;

/// Times the dispatches of a device.
#[derive(Debug)]
pub(super) struct Timestamps {
    profiler: Profiler,
    device: wgpu::Device,
    clock: Clock,
    /// Used by one program after another: each resolves its queries before the next one writes them.
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    /// Whether timestamps may be written between the dispatches of a pass; else each dispatch gets a pass of its own.
    inside_passes: bool,
    /// Buffers that are not in use.
    readbacks: Mutex<Vec<wgpu::Buffer>>,
}

/// The features that a profile needs of `adapter`, or why it cannot be had.
pub(super) fn features(adapter: &wgpu::Adapter) -> Result<wgpu::Features, GpuError> {
    let inside = wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
        | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
    let there = adapter.features();
    if !there.contains(wgpu::Features::TIMESTAMP_QUERY) {
        return Err(GpuError::NoTimestamps {
            adapter: adapter.get_info().name,
        });
    }
    let inside = if there.contains(inside) {
        inside
    } else {
        wgpu::Features::empty()
    };
    Ok(wgpu::Features::TIMESTAMP_QUERY | inside)
}

impl Timestamps {
    /// For `gpu`, which was opened with [`features`]; sets its clock by the profiler's.
    ///
    /// # Errors
    /// A failing device.
    pub(super) async fn new(gpu: &Gpu, profiler: &Profiler) -> Result<Self, GpuError> {
        let device = gpu.device().clone();
        let inside = wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        let mut timestamps = Self {
            profiler: profiler.clone(),
            clock: Clock {
                period: f64::from(gpu.queue().get_timestamp_period()),
                tick: 0,
                nanos: 0,
            },
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: wgpu::QueryType::Timestamp,
                count: QUERIES,
            }),
            resolved: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("profile"),
                size: u64::from(QUERIES * wgpu::QUERY_SIZE),
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            inside_passes: device.features().contains(inside),
            readbacks: Mutex::default(),
            device,
        };
        timestamps.set_clock(gpu).await?;
        Ok(timestamps)
    }

    /// Reads the device's clock between two readings of the host's, a few times: the closest pair counts.
    async fn set_clock(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let mut closest: Option<(Duration, Instant, u64)> = None;
        for _ in 0..4 {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            drop(encoder.begin_compute_pass(&self.whole_pass("clock", 0)));
            encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
            let before = Instant::now();
            gpu.submit([encoder.finish()]);
            gpu.finish("reading the device's clock").await?;
            let width = before.elapsed();
            let ticks: Vec<u64> = gpu.read(&self.resolved, 1).await?;
            let middle = before + width / 2;
            if closest.is_none_or(|(least, ..)| width < least) {
                closest = Some((width, middle, ticks[0]));
            }
        }
        if let Some((_, middle, tick)) = closest {
            self.clock.tick = tick;
            self.clock.nanos = self.profiler.nanos_at(middle);
        }
        Ok(())
    }

    /// A pass that writes queries `first` and `first + 1` at its ends.
    fn whole_pass<'a>(&'a self, label: &'a str, first: u32) -> wgpu::ComputePassDescriptor<'a> {
        wgpu::ComputePassDescriptor {
            label: Some(label),
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &self.queries,
                beginning_of_pass_write_index: Some(first),
                end_of_pass_write_index: Some(first + 1),
            }),
        }
    }

    /// Records `steps` with their timestamps into `encoder`; their times arrive at the profiler once it is submitted and
    /// done.
    pub(super) fn encode(
        self: &Arc<Self>,
        program: &'static str,
        steps: &[Step],
        encoder: &mut wgpu::CommandEncoder,
    ) {
        for steps in steps.chunks(QUERIES as usize / 2) {
            let count = if self.inside_passes {
                self.encode_pass(program, steps, encoder)
            } else {
                self.encode_passes(program, steps, encoder)
            };
            self.read_back(program, steps, count, encoder);
        }
    }

    /// One pass: a timestamp before the first dispatch, and one after each.
    fn encode_pass(
        &self,
        program: &'static str,
        steps: &[Step],
        encoder: &mut wgpu::CommandEncoder,
    ) -> u32 {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(program),
            timestamp_writes: None,
        });
        pass.write_timestamp(&self.queries, 0);
        let mut count = 1;
        for step in steps {
            step.encode(&mut pass);
            pass.write_timestamp(&self.queries, count);
            count += 1;
        }
        count
    }

    /// A pass for each dispatch, with a timestamp at both ends.
    fn encode_passes(
        &self,
        program: &'static str,
        steps: &[Step],
        encoder: &mut wgpu::CommandEncoder,
    ) -> u32 {
        let mut count = 0;
        for step in steps {
            let mut pass = encoder.begin_compute_pass(&self.whole_pass(program, count));
            step.encode(&mut pass);
            count += 2;
        }
        count
    }

    /// Records how the first `count` queries get to the profiler.
    fn read_back(
        self: &Arc<Self>,
        program: &'static str,
        steps: &[Step],
        count: u32,
        encoder: &mut wgpu::CommandEncoder,
    ) {
        let bytes = u64::from(count * wgpu::QUERY_SIZE);
        encoder.resolve_query_set(&self.queries, 0..count, &self.resolved, 0);
        let readback = self.readback();
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &readback, 0, bytes);
        self.profiler.expect(steps.len());
        let kernels: Vec<_> = steps.iter().map(|step| step.kernel).collect();
        let (this, buffer) = (Arc::clone(self), readback.clone());
        encoder.map_buffer_on_submit(&readback, wgpu::MapMode::Read, 0..bytes, move |mapped| {
            if mapped.is_ok() {
                this.take(program, &kernels, &buffer, bytes);
            }
        });
    }

    fn take(
        &self,
        program: &'static str,
        kernels: &[&'static str],
        buffer: &wgpu::Buffer,
        bytes: u64,
    ) {
        let Ok(view) = buffer.get_mapped_range(0..bytes) else {
            return;
        };
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&view[..]);
        drop(view);
        buffer.unmap();
        self.free().push(buffer.clone());
        let spans = if self.inside_passes {
            self.clock
                .spans(ticks.windows(2).map(|pair| [pair[0], pair[1]]))
        } else {
            self.clock
                .spans(ticks.chunks_exact(2).map(|pair| [pair[0], pair[1]]))
        };
        self.profiler.take(program, kernels, &spans);
    }

    fn readback(&self) -> wgpu::Buffer {
        let free = self.free().pop();
        free.unwrap_or_else(|| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("profile readback"),
                size: u64::from(QUERIES * wgpu::QUERY_SIZE),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<wgpu::Buffer>> {
        self.readbacks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Activation, ActivationPool, GpuOptions, ProgramBuilder};
    use crate::kernels::copy;

    /// Both ways of timing see every dispatch, within the time that the host waited.
    #[test]
    fn every_dispatch_is_timed() {
        let profiler = Profiler::new(true);
        let options = GpuOptions {
            profiler: Some(profiler.clone()),
            ..GpuOptions::default()
        };
        let gpu = pollster::block_on(Gpu::open(&options)).expect("an adapter with timestamps");
        let timestamps = gpu.timestamps().expect("a profiler was given");
        let passes = Arc::new(
            pollster::block_on(Timestamps::new(&gpu, &profiler))
                .map(|it| Timestamps {
                    inside_passes: false,
                    ..it
                })
                .expect("as before"),
        );
        let x = gpu.storage("x", 1 << 20).expect("small");
        let y = gpu.storage("y", 1 << 20).expect("small");
        // More dispatches than one set has queries for.
        let dispatches = QUERIES as usize / 2 + 3;
        let mut program = ProgramBuilder::new(&gpu, "copies");
        for _ in 0..dispatches {
            copy(&mut program, &Activation::external(&x, 64, 64), &y);
        }
        let program = program.finish(&ActivationPool::default()).expect("valid");
        let mut before = 0;
        for timestamps in [timestamps, &passes] {
            let started = Instant::now();
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            timestamps.encode("copies", program.steps(), &mut encoder);
            gpu.submit([encoder.finish()]);
            pollster::block_on(gpu.finish("testing")).expect("it runs");
            let wall = started.elapsed();
            while profiler.untimed() > 0 && started.elapsed().as_secs() < 10 {
                std::thread::yield_now(); // the mapping's callback comes on another thread
            }
            let times = profiler.kernel_times();
            assert_eq!(times.len(), 1);
            assert_eq!((times[0].program, times[0].kernel), ("copies", "copy"));
            assert_eq!(times[0].dispatches as usize, before + dispatches);
            before += dispatches;
            let spent: u64 = profiler
                .events()
                .iter()
                .filter(|event| event.is_kernel)
                .rev()
                .take(dispatches)
                .map(|event| event.length)
                .sum();
            assert!(
                spent > 0 && u128::from(spent) <= wall.as_nanos(),
                "{spent} {wall:?}"
            );
        }
    }
}
