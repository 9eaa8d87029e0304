//! Recorded programs: the dispatches of a forward pass with their bind groups, built once and replayed.

use std::sync::Arc;

use crate::platform::Instant;

use super::Gpu;
use super::pace::Pace;
use super::timestamps::Timestamps;

/// A copy of an activation at one point of the program, for parity checks and for looking at attention.
#[derive(Debug, Clone)]
pub struct Tap {
    /// The stage's canonical name, such as `vit.block.0`.
    pub name: String,
    /// `[rows, columns]` f32.
    pub buffer: wgpu::Buffer,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
}

/// One dispatch, ready to replay.
#[derive(Debug)]
pub(super) struct Step {
    /// The kernel's name.
    pub(super) kernel: &'static str,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) bind_group: wgpu::BindGroup,
    pub(super) grid: [u32; 3],
}

impl Step {
    /// Records the dispatch.
    pub(super) fn encode(&self, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.grid[0], self.grid[1], self.grid[2]);
    }
}

/// A recorded forward pass. Replaying it creates no GPU object but the command buffer.
#[derive(Debug)]
pub struct Program {
    pub(super) name: &'static str,
    pub(super) steps: Vec<Step>,
    pub(super) pace: Arc<Pace>,
    /// Only while a profile is taken.
    pub(super) timestamps: Option<Arc<Timestamps>>,
    pub(super) activation_bytes: u64,
    pub(super) taps: Vec<Tap>,
}

impl Program {
    /// Number of dispatches.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.steps.len()
    }

    /// Name of each dispatch's kernel, in order.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(|step| step.kernel)
    }

    /// Bytes of the activations' shared buffers.
    #[must_use]
    pub fn activation_bytes(&self) -> u64 {
        self.activation_bytes
    }

    /// The stages kept by [`with_taps`](super::ProgramBuilder::with_taps), in order.
    #[must_use]
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// Records all dispatches into one compute pass of `encoder`.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        Self::encode_all([self], encoder);
    }

    /// Records the dispatches of several programs, one after another, into one compute pass of `encoder`: a pass costs
    /// the driver more than a dispatch.
    pub fn encode_all<'p>(
        programs: impl IntoIterator<Item = &'p Self>,
        encoder: &mut wgpu::CommandEncoder,
    ) {
        let mut programs = programs.into_iter().peekable();
        let Some(first) = programs.peek() else {
            return;
        };
        if first.timestamps.is_some() {
            for program in programs {
                if let Some(timestamps) = &program.timestamps {
                    timestamps.encode(program.name, &program.steps, encoder);
                }
            }
            return;
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(first.name),
            timestamp_writes: None,
        });
        for step in programs.flat_map(|program| &program.steps) {
            step.encode(&mut pass);
        }
    }

    #[cfg(test)]
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    #[cfg(test)]
    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Encodes and submits the program.
    pub fn run(&self, gpu: &Gpu) {
        gpu.submit([self.begin(gpu).finish()]);
    }

    /// Submits the program but for its end, which the result holds: what is to follow it may be recorded behind. Short
    /// programs are all end. Those that took long the last time go out in several submits of equally many dispatches, lest
    /// the system should take the device for a hung one.
    #[must_use]
    pub fn begin(&self, gpu: &Gpu) -> wgpu::CommandEncoder {
        let started = Instant::now();
        let new_encoder = || gpu.device().create_command_encoder(&Default::default());
        let each = self.steps.len().div_ceil(self.pace.submits()).max(1);
        let mut encoder = new_encoder();
        for (index, steps) in self.steps.chunks(each).enumerate() {
            if index > 0 {
                let full = std::mem::replace(&mut encoder, new_encoder());
                gpu.submit([full.finish()]);
            }
            self.encode_steps(steps, &mut encoder);
        }
        let pace = Arc::clone(&self.pace);
        encoder.on_submitted_work_done(move || pace.note(started.elapsed()));
        encoder
    }

    /// Records some of the dispatches.
    fn encode_steps(&self, steps: &[Step], encoder: &mut wgpu::CommandEncoder) {
        if let Some(timestamps) = &self.timestamps {
            timestamps.encode(self.name, steps, encoder);
            return;
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(self.name),
            timestamp_writes: None,
        });
        for step in steps {
            step.encode(&mut pass);
        }
    }
}
