//! The engine's linear layer, by whichever kernel it chooses for the device.

use blip2_wgpu::gpu::{Activation, ActivationPool, Gpu, Program, ProgramBuilder};
use blip2_wgpu::kernels::{Activate, Linear, linear_to};

use crate::Failure;
use crate::problem::Problem;

/// A recorded product.
pub struct Product<'a> {
    gpu: &'a Gpu,
    program: Program,
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
        let mut program = ProgramBuilder::new(gpu, "peers");
        let result = Activation::external(&y, *rows, *out_features);
        linear_to(&mut program, &x, &layer, Activate::Identity, &result);
        let program = program.finish(&ActivationPool::default())?;
        Ok(Self {
            gpu,
            program,
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
