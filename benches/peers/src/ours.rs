//! The engine's linear layer, by the kernel that it chooses: checked at start, measured for the shape.

use blip2_wgpu::gpu::{Activation, ActivationPool, Gpu, Program, ProgramBuilder};
use blip2_wgpu::kernels::{Activate, Linear, chosen, linear_to, tune};

use crate::Failure;
use crate::problem::Problem;

/// A recorded product.
pub struct Product<'a> {
    gpu: &'a Gpu,
    program: Program,
    /// The kernel chosen.
    pub kernel: String,
    y: wgpu::Buffer,
    count: usize,
}

impl<'a> Product<'a> {
    pub fn new(gpu: &'a Gpu, problem: &Problem) -> Result<Self, Failure> {
        let Problem {
            rows,
            out_features,
            in_features,
            x,
            w,
        } = problem;
        let x: Vec<f32> = x.iter().map(|value| value.to_f32()).collect();
        let x = Activation::external(&gpu.storage_with("x", &x)?, *rows, *in_features);
        let count = rows * out_features;
        let y = gpu.storage("y", 4 * count as u64)?;
        let layer = Linear {
            weight: gpu.matrix_with("w", *out_features, *in_features, w)?,
            bias: None,
        };
        let result = Activation::external(&y, *rows, *out_features);
        let record = || {
            let mut program = ProgramBuilder::new(gpu, "peers").with_products();
            linear_to(&mut program, &x, &layer, Activate::Identity, &result);
            program
        };
        // The first recording tells which products there are; the second takes the kernels found for them.
        pollster::block_on(tune(gpu, &record().products()))?;
        let kernel = chosen(gpu, *rows, &layer.weight).to_string();
        let program = record().finish(&ActivationPool::default())?;
        Ok(Self {
            gpu,
            program,
            kernel,
            y,
            count,
        })
    }

    /// Computes the product `replays` times and waits.
    pub fn run(&self, replays: usize) -> Result<(), Failure> {
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        for _ in 0..replays {
            self.program.encode(&mut encoder);
        }
        self.gpu.submit([encoder.finish()]);
        Ok(pollster::block_on(self.gpu.finish("measuring"))?)
    }

    pub fn result(&self) -> Result<Vec<f32>, Failure> {
        self.run(1)?;
        Ok(pollster::block_on(self.gpu.read(&self.y, self.count))?)
    }
}
