//! Recorded programs: the dispatches of a forward pass with their bind groups, built once and replayed.
//!
//! A [`ProgramBuilder`] takes dispatches in order. Activations are named, not allocated, while recording: when the
//! program is finished their lifetimes are known and buffers are shared between those that never live together.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::pace::Pace;
use super::pipeline::Constants;
use super::timestamps::Timestamps;
use super::{Access, Gpu, GpuError, Kernel, Matrix};

/// Params of all dispatches lie in one uniform buffer at WebGPU's default offset alignment.
const UNIFORM_ALIGNMENT: usize = 256;

/// A matrix of f32 that a program computes, `[rows, columns]` row-major. A name until the program is finished.
#[derive(Debug, Clone)]
pub struct Activation {
    /// Rows, most often tokens.
    pub rows: usize,
    /// Columns, most often the hidden width.
    pub columns: usize,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// Planned by the builder: index into its list.
    Planned(usize),
    /// Lives outside the program.
    External(wgpu::Buffer),
}

impl Activation {
    /// A buffer that outlives the program, seen as `[rows, columns]` f32.
    #[must_use]
    pub fn external(buffer: &wgpu::Buffer, rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            place: Place::External(buffer.clone()),
        }
    }

    /// The same values seen in another shape of equal size, or as the first rows.
    #[must_use]
    pub fn reshaped(&self, rows: usize, columns: usize) -> Self {
        debug_assert!(rows * columns <= self.rows * self.columns);
        Self {
            rows,
            columns,
            place: self.place.clone(),
        }
    }

    /// As an operand of a dispatch.
    #[must_use]
    pub fn operand(&self) -> Operand {
        match &self.place {
            Place::Planned(index) => Operand::Planned(*index),
            Place::External(buffer) => Operand::Buffer(buffer.clone()),
        }
    }
}

/// What a dispatch binds.
#[derive(Debug, Clone)]
pub enum Operand {
    /// An activation planned by the builder.
    Planned(usize),
    /// A buffer of its own: weights, state, results.
    Buffer(wgpu::Buffer),
}

impl From<&wgpu::Buffer> for Operand {
    fn from(buffer: &wgpu::Buffer) -> Self {
        Self::Buffer(buffer.clone())
    }
}

impl From<&Activation> for Operand {
    fn from(activation: &Activation) -> Self {
        activation.operand()
    }
}

/// A dispatch as recorded, before buffers are known.
#[derive(Debug)]
struct Recorded {
    kernel: &'static Kernel,
    constants: Constants,
    operands: Vec<Operand>,
    grid: [u32; 3],
}

/// An activation's size and the dispatches between which it holds a value.
#[derive(Debug, Clone, Copy)]
struct Lifetime {
    bytes: u64,
    first: usize,
    last: usize,
}

/// A linear layer's product in a program: what the kernels are tuned for.
#[derive(Debug, Clone)]
pub struct Product {
    /// Rows of the input.
    pub rows: usize,
    /// The layer's weight.
    pub weight: Matrix,
}

/// Records dispatches.
#[derive(Debug)]
pub struct ProgramBuilder<'gpu> {
    gpu: &'gpu Gpu,
    name: &'static str,
    dispatches: Vec<Recorded>,
    params: Vec<u8>,
    lifetimes: Vec<Lifetime>,
    taps: Vec<Tap>,
    keeps: Keeps,
    products: Option<Vec<Product>>,
    /// Of all products so far.
    flops: f64,
    failure: Option<GpuError>,
}

/// What a program keeps copies of.
#[derive(Debug, Clone, Copy, Default)]
struct Keeps {
    stages: bool,
    attention: bool,
}

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

impl<'gpu> ProgramBuilder<'gpu> {
    /// An empty program; `name` is for error messages and traces.
    #[must_use]
    pub fn new(gpu: &'gpu Gpu, name: &'static str) -> Self {
        Self {
            gpu,
            name,
            dispatches: Vec::new(),
            params: Vec::new(),
            lifetimes: Vec::new(),
            taps: Vec::new(),
            keeps: Keeps::default(),
            products: None,
            flops: 0.0,
            failure: None,
        }
    }

    /// Keeps a copy of every stage that the model names with [`ProgramBuilder::tap`].
    #[must_use]
    pub fn with_taps(mut self) -> Self {
        self.keeps = Keeps {
            stages: true,
            attention: true,
        };
        self
    }

    /// Keeps the weights of every attention that the model names with [`ProgramBuilder::tap_attention`], and no stage.
    #[must_use]
    pub fn with_attention_taps(mut self) -> Self {
        self.keeps.attention = true;
        self
    }

    /// Collects the products that are recorded, for [`ProgramBuilder::products`].
    #[must_use]
    pub fn with_products(mut self) -> Self {
        self.products = Some(Vec::new());
        self
    }

    /// The device that is recorded for.
    #[must_use]
    pub fn gpu(&self) -> &'gpu Gpu {
        self.gpu
    }

    /// A new activation of `[rows, columns]` f32.
    pub fn activation(&mut self, rows: usize, columns: usize) -> Activation {
        let bytes = (rows as u64 * columns as u64 * 4)
            .max(16)
            .next_multiple_of(16);
        self.lifetimes.push(Lifetime {
            bytes,
            first: usize::MAX,
            last: 0,
        });
        Activation {
            rows,
            columns,
            place: Place::Planned(self.lifetimes.len() - 1),
        }
    }

    /// Records one dispatch: `params` is the uniform at binding 0, `operands` are bindings 1, 2, …
    pub fn dispatch<P: bytemuck::NoUninit>(
        &mut self,
        kernel: &'static Kernel,
        constants: Constants,
        params: &P,
        operands: Vec<Operand>,
        grid: [u32; 3],
    ) {
        debug_assert_eq!(operands.len(), kernel.bindings.len(), "{}", kernel.name);
        if grid.contains(&0) {
            return;
        }
        let most = self
            .gpu
            .device()
            .limits()
            .max_compute_workgroups_per_dimension;
        if let Some(&size) = grid.iter().find(|&&size| size > most) {
            self.failure.get_or_insert(GpuError::Grid {
                program: self.name.into(),
                kernel: kernel.name.into(),
                workgroups: size,
                limit: most,
            });
            return;
        }
        let index = self.dispatches.len();
        for operand in &operands {
            if let Operand::Planned(activation) = operand {
                let lifetime = &mut self.lifetimes[*activation];
                lifetime.first = lifetime.first.min(index);
                lifetime.last = index;
            }
        }
        self.params.resize(index * UNIFORM_ALIGNMENT, 0);
        self.params.extend_from_slice(bytemuck::bytes_of(params));
        self.dispatches.push(Recorded {
            kernel,
            constants,
            operands,
            grid,
        });
    }

    /// Remembers that `rows` rows are multiplied by `weight`.
    pub(crate) fn note_product(&mut self, rows: usize, weight: &Matrix) {
        self.flops += 2.0 * rows as f64 * weight.rows as f64 * weight.columns as f64;
        if let Some(products) = &mut self.products {
            products.push(Product {
                rows,
                weight: weight.clone(),
            });
        }
    }

    /// Every product recorded so far, of a program begun with [`ProgramBuilder::with_products`].
    #[must_use]
    pub fn products(&mut self) -> Vec<Product> {
        self.products.take().unwrap_or_default()
    }

    /// Remembers the first error of a launch; [`ProgramBuilder::finish`] returns it.
    pub fn fail(&mut self, error: GpuError) {
        self.failure.get_or_insert(error);
    }

    /// Where to copy stage `name` of this shape to, if stages are kept. The caller records the copy.
    pub fn tap(
        &mut self,
        name: impl FnOnce() -> String,
        rows: usize,
        columns: usize,
    ) -> Option<wgpu::Buffer> {
        if !self.keeps.stages {
            return None;
        }
        self.keep(name(), rows, columns)
    }

    /// Where to write attention weights `name` of this shape to, if attention is kept. The caller records what
    /// computes them: without taps a program does nothing for them.
    pub fn tap_attention(
        &mut self,
        name: impl FnOnce() -> String,
        rows: usize,
        columns: usize,
    ) -> Option<wgpu::Buffer> {
        if !self.keeps.attention {
            return None;
        }
        self.keep(name(), rows, columns)
    }

    fn keep(&mut self, name: String, rows: usize, columns: usize) -> Option<wgpu::Buffer> {
        match self.gpu.storage(&name, (rows * columns * 4) as u64) {
            Ok(buffer) => {
                self.taps.push(Tap {
                    name,
                    buffer: buffer.clone(),
                    rows,
                    columns,
                });
                Some(buffer)
            }
            Err(error) => {
                self.failure.get_or_insert(error);
                None
            }
        }
    }

    /// Bytes of each buffer that the activations would share, the largest first, without making any.
    #[must_use]
    pub fn planned_slots(&self) -> Vec<u64> {
        let mut slots = plan(&self.lifetimes).slots;
        slots.sort_unstable_by_key(|&bytes| std::cmp::Reverse(bytes));
        slots
    }

    /// Compiles what is missing for `programs`, all of it at once. What the driver refuses is said when they are finished.
    pub fn compile_all<'p>(programs: impl IntoIterator<Item = &'p Self>)
    where
        'gpu: 'p,
    {
        let mut programs = programs.into_iter().peekable();
        let Some(gpu) = programs.peek().map(|first| first.gpu) else {
            return;
        };
        let wanted: Vec<_> = programs.flat_map(Self::kernels_wanted).collect();
        gpu.pipelines().compile_all(gpu.device(), &wanted);
    }

    fn kernels_wanted(&self) -> impl Iterator<Item = (&'static Kernel, Constants)> {
        self.dispatches
            .iter()
            .map(|dispatch| (dispatch.kernel, dispatch.constants.clone()))
    }

    /// Plans the activations, compiles what is missing and makes the bind groups.
    ///
    /// # Errors
    /// The first error of a launch, or one the device reported.
    pub fn finish(self, pool: &ActivationPool) -> Result<Program, GpuError> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let device = self.gpu.device();
        let plan = plan(&self.lifetimes);
        let slots = pool.buffers(self.gpu, &plan.slots)?;
        let uniforms = self.uniforms();
        if self.gpu.rehearsed().is_some() {
            return Ok(Program {
                name: self.name,
                steps: Vec::new(),
                pace: Arc::new(Pace::guess(self.flops)),
                timestamps: None,
                activation_bytes: plan.slots.iter().sum(),
                taps: self.taps,
            });
        }
        let wanted: Vec<_> = self.kernels_wanted().collect();
        self.gpu.pipelines().compile_all(device, &wanted);
        self.gpu.count_objects(1 + self.dispatches.len());
        let steps = self
            .dispatches
            .iter()
            .enumerate()
            .map(|(index, dispatch)| {
                let compiled =
                    self.gpu
                        .pipelines()
                        .get(device, dispatch.kernel, &dispatch.constants)?;
                let params = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &uniforms,
                    offset: (index * UNIFORM_ALIGNMENT) as u64,
                    size: wgpu::BufferSize::new(UNIFORM_ALIGNMENT as u64),
                });
                let storage = dispatch.operands.iter().map(|operand| match operand {
                    Operand::Planned(activation) => {
                        slots[plan.slot_of[*activation]].as_entire_binding()
                    }
                    Operand::Buffer(buffer) => buffer.as_entire_binding(),
                });
                let entries: Vec<_> = std::iter::once(params)
                    .chain(storage)
                    .zip(0..)
                    .map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource })
                    .collect();
                Ok(Step {
                    kernel: dispatch.kernel.name,
                    pipeline: compiled.pipeline.clone(),
                    bind_group: device.create_bind_group(&wgpu::BindGroupDescriptor {
                        label: Some(dispatch.kernel.name),
                        layout: &compiled.layout,
                        entries: &entries,
                    }),
                    grid: dispatch.grid,
                })
            })
            .collect::<Result<Vec<_>, GpuError>>()?;
        self.gpu.check(self.name)?;
        Ok(Program {
            name: self.name,
            steps,
            pace: Arc::new(Pace::guess(self.flops)),
            timestamps: self.gpu.timestamps().cloned(),
            activation_bytes: plan.slots.iter().sum(),
            taps: self.taps,
        })
    }

    fn uniforms(&self) -> wgpu::Buffer {
        let size = (self.dispatches.len().max(1) * UNIFORM_ALIGNMENT) as u64;
        if let Some(placeholder) = self.gpu.rehearse_buffer(size) {
            return placeholder;
        }
        let buffer = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.gpu.write(&buffer, 0, &self.params);
        buffer
    }
}

/// Which slot each activation gets, and how large each slot must be.
#[derive(Debug)]
struct Plan {
    slot_of: Vec<usize>,
    slots: Vec<u64>,
}

/// Gives each activation, in order of first use, the free slot that fits best; grows or adds one if none does.
fn plan(lifetimes: &[Lifetime]) -> Plan {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&index| lifetimes[index].first);
    let mut slot_of = vec![0; lifetimes.len()];
    let mut slots: Vec<u64> = Vec::new();
    let mut busy_until: Vec<usize> = Vec::new();
    for index in order {
        let Lifetime { bytes, first, last } = lifetimes[index];
        if first == usize::MAX {
            continue; // never used by a dispatch; bound nowhere
        }
        let free = (0..slots.len()).filter(|&slot| busy_until[slot] < first);
        // Best fit first: the smallest that is large enough, else the one that must grow least.
        let best = free.min_by_key(|&slot| (slots[slot] < bytes, slots[slot].abs_diff(bytes)));
        let slot = best.unwrap_or_else(|| {
            slots.push(0);
            busy_until.push(0);
            slots.len() - 1
        });
        slots[slot] = slots[slot].max(bytes);
        busy_until[slot] = last;
        slot_of[index] = slot;
    }
    Plan { slot_of, slots }
}

/// The buffers that activations share. Programs of one pool must not run at the same time: on one queue they don't.
#[derive(Debug, Default)]
pub struct ActivationPool {
    /// With the bytes asked for.
    buffers: Mutex<Vec<(u64, wgpu::Buffer)>>,
}

impl ActivationPool {
    /// Bytes of all buffers now in the pool.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lock().iter().map(|(bytes, _)| bytes).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, wgpu::Buffer)>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer for each slot: the largest slot gets the largest buffer; one that is too small is replaced
    /// (programs that hold the old one keep it).
    fn buffers(&self, gpu: &Gpu, slots: &[u64]) -> Result<Vec<wgpu::Buffer>, GpuError> {
        let mut pool = self.lock();
        let mut order: Vec<usize> = (0..slots.len()).collect();
        order.sort_by_key(|&slot| std::cmp::Reverse(slots[slot]));
        let mut chosen: Vec<Option<wgpu::Buffer>> = vec![None; slots.len()];
        for (rank, &slot) in order.iter().enumerate() {
            if pool.get(rank).is_none_or(|(bytes, _)| *bytes < slots[slot]) {
                let buffer = (slots[slot], gpu.storage("activations", slots[slot])?);
                if rank < pool.len() {
                    pool[rank] = buffer;
                } else {
                    pool.push(buffer);
                }
            }
            chosen[slot] = Some(pool[rank].1.clone());
        }
        Ok(chosen.into_iter().flatten().collect())
    }
}

/// One dispatch, ready to replay.
#[derive(Debug)]
pub(super) struct Step {
    kernel: &'static str,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    grid: [u32; 3],
}

impl Step {
    /// The kernel's name.
    pub(super) fn kernel(&self) -> &'static str {
        self.kernel
    }

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
    name: &'static str,
    steps: Vec<Step>,
    pace: Arc<Pace>,
    /// Only while a profile is taken.
    timestamps: Option<Arc<Timestamps>>,
    activation_bytes: u64,
    taps: Vec<Tap>,
}

impl Program {
    /// Number of dispatches.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.steps.len()
    }

    /// Name of each dispatch's kernel, in order.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(Step::kernel)
    }

    /// Bytes of the activations' shared buffers.
    #[must_use]
    pub fn activation_bytes(&self) -> u64 {
        self.activation_bytes
    }

    /// The stages kept by [`ProgramBuilder::with_taps`], in order.
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

/// Checks the number and direction of a kernel's bindings at a glance where it is defined.
pub(crate) const READ: Access = Access::Read;
/// See [`READ`].
pub(crate) const WRITE: Access = Access::ReadWrite;

#[cfg(test)]
mod tests {
    use super::*;

    fn lifetime(bytes: u64, first: usize, last: usize) -> Lifetime {
        Lifetime { bytes, first, last }
    }

    #[test]
    fn activations_that_never_meet_share_a_slot() {
        let plan = plan(&[lifetime(64, 0, 1), lifetime(64, 1, 2), lifetime(64, 2, 3)]);
        assert_eq!(plan.slot_of, [0, 1, 0]);
        assert_eq!(plan.slots, [64, 64]);
    }

    #[test]
    fn activations_alive_together_never_share() {
        // A pseudo-random crowd of lifetimes, checked pair by pair.
        let mut seed = 7_u64;
        let mut next = |bound: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % bound
        };
        let lifetimes: Vec<_> = (0..200)
            .map(|_| {
                let first = next(100);
                lifetime(16 * (1 + next(50)) as u64, first, first + next(20))
            })
            .collect();
        let plan = plan(&lifetimes);
        for (a, x) in lifetimes.iter().enumerate() {
            assert!(plan.slots[plan.slot_of[a]] >= x.bytes);
            for (b, y) in lifetimes.iter().enumerate().skip(a + 1) {
                let together = x.first <= y.last && y.first <= x.last;
                assert!(
                    !together || plan.slot_of[a] != plan.slot_of[b],
                    "{x:?} {y:?}"
                );
            }
        }
    }

    #[test]
    fn a_transformer_block_needs_few_slots() {
        // norm, qkv, context, norm, mlp beside a residual stream that lives throughout.
        let block = [
            lifetime(1, 0, 5),
            lifetime(1, 0, 1),
            lifetime(3, 1, 2),
            lifetime(1, 2, 3),
            lifetime(1, 3, 4),
            lifetime(4, 4, 5),
        ];
        assert_eq!(plan(&block).slots.len(), 3);
    }
}
