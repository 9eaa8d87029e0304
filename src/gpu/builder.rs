//! Recording programs: a [`ProgramBuilder`] takes dispatches in order.

use std::sync::Arc;

use super::activation::{Activation, ActivationPool, Lifetimes, Operand, Plan};
use super::pace::Pace;
use super::program::{Program, Step, Tap};
use super::{Constants, Gpu, GpuError, Kernel, Matrix, Params};

/// Params of all dispatches lie in one uniform buffer at WebGPU's default offset alignment.
const UNIFORM_ALIGNMENT: usize = 256;

/// A dispatch as recorded, before buffers are known.
#[derive(Debug)]
struct Recorded {
    kernel: &'static Kernel,
    constants: Constants,
    operands: Vec<Operand>,
    grid: [u32; 3],
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
    lifetimes: Lifetimes,
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

impl<'gpu> ProgramBuilder<'gpu> {
    /// An empty program; `name` is for error messages and traces.
    #[must_use]
    pub fn new(gpu: &'gpu Gpu, name: &'static str) -> Self {
        Self {
            gpu,
            name,
            dispatches: Vec::new(),
            params: Vec::new(),
            lifetimes: Lifetimes::default(),
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
        self.lifetimes.begin(rows, columns)
    }

    /// Records one dispatch: `params` is the uniform at binding 0, `operands` are bindings 1, 2, …
    pub fn dispatch<P: Params>(
        &mut self,
        kernel: &'static Kernel,
        constants: Constants,
        params: &P,
        operands: Vec<Operand>,
        grid: [u32; 3],
    ) {
        debug_assert_eq!(operands.len(), kernel.bindings.len(), "{}", kernel.name);
        debug_assert_eq!(P::FIELDS, kernel.params, "{}", kernel.name);
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
            self.lifetimes.note_use(operand, index);
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

    /// Whether this is recorded to run: not to be counted, nor for its products.
    pub(crate) fn will_run(&self) -> bool {
        self.products.is_none() && self.gpu.rehearsed().is_none()
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
        let mut slots = self.lifetimes.plan().slots;
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
        let plan = self.lifetimes.plan();
        let slots = pool.buffers(self.gpu, &plan.slots)?;
        let uniforms = self.uniforms();
        let is_rehearsal = self.gpu.rehearsed().is_some();
        let steps = if is_rehearsal {
            Vec::new()
        } else {
            self.steps(&plan, &slots, &uniforms)?
        };
        Ok(Program {
            name: self.name,
            steps,
            pace: Arc::new(Pace::guess(self.flops)),
            timestamps: self.gpu.timestamps().filter(|_| !is_rehearsal).cloned(),
            activation_bytes: plan.slots.iter().sum(),
            taps: self.taps,
        })
    }

    /// The dispatches with their pipelines and bind groups.
    fn steps(
        &self,
        plan: &Plan,
        slots: &[wgpu::Buffer],
        uniforms: &wgpu::Buffer,
    ) -> Result<Vec<Step>, GpuError> {
        let wanted: Vec<_> = self.kernels_wanted().collect();
        let pipelines = self.gpu.pipelines();
        pipelines.compile_all(self.gpu.device(), &wanted);
        self.gpu.count_objects(1 + self.dispatches.len());
        let steps = (0..self.dispatches.len()).map(|index| self.step(index, plan, slots, uniforms));
        let steps = steps.collect::<Result<_, _>>()?;
        self.gpu.check(self.name)?;
        Ok(steps)
    }

    fn step(
        &self,
        index: usize,
        plan: &Plan,
        slots: &[wgpu::Buffer],
        uniforms: &wgpu::Buffer,
    ) -> Result<Step, GpuError> {
        let device = self.gpu.device();
        let dispatch = &self.dispatches[index];
        let kernel = dispatch.kernel;
        let compiled = self
            .gpu
            .pipelines()
            .get(device, kernel, &dispatch.constants)?;
        let params = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: uniforms,
            offset: (index * UNIFORM_ALIGNMENT) as u64,
            size: wgpu::BufferSize::new(UNIFORM_ALIGNMENT as u64),
        });
        let storage = dispatch.operands.iter();
        let storage = storage.map(|operand| plan.binding(operand, slots));
        let entries: Vec<_> = std::iter::once(params)
            .chain(storage)
            .zip(0..)
            .map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        Ok(Step {
            kernel: kernel.name,
            pipeline: compiled.pipeline,
            bind_group: device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(kernel.name),
                layout: &compiled.layout,
                entries: &entries,
            }),
            grid: dispatch.grid,
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
