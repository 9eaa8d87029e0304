//! What the cases multiply and add: made once for all variants of a shape.

use std::collections::HashMap;

use half::f16;

use crate::gpu::{Activation, Gpu, GpuError, WeightFormat};
use crate::kernels::Linear;

/// Bytes written at a time.
const PIECE: usize = 8 << 20;

/// The inputs made so far.
#[derive(Debug)]
pub struct Inputs {
    gpu: Gpu,
    activations: HashMap<[usize; 2], Activation>,
    /// Those asked for last: they are large.
    layers: (Option<(WeightFormat, [usize; 2])>, Vec<Linear>),
}

impl Inputs {
    /// None yet.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            gpu: gpu.clone(),
            activations: HashMap::new(),
            layers: (None, Vec::new()),
        }
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Values `[rows, columns]` that are neither zero nor denormal, which some processors treat specially.
    ///
    /// # Errors
    /// No room on the device.
    pub fn activation(&mut self, rows: usize, columns: usize) -> Result<Activation, GpuError> {
        if let Some(activation) = self.activations.get(&[rows, columns]) {
            return Ok(activation.clone());
        }
        let buffer = self.gpu.storage("x", (rows * columns * 4) as u64)?;
        let values: Vec<f32> = (0..PIECE / 4)
            .map(|i| (i % 17) as f32 * 0.1 - 0.8)
            .collect();
        self.fill(&buffer, bytemuck::cast_slice(&values));
        let activation = Activation::external(&buffer, rows, columns);
        self.activations.insert([rows, columns], activation.clone());
        Ok(activation)
    }

    /// `count` layers of weights `[out_features, in_features]` without bias; quantised ones, scales included, are the bits
    /// of a pattern of halves, as good as any for a timing.
    ///
    /// # Errors
    /// No room on the device.
    pub fn layers(
        &mut self,
        format: WeightFormat,
        shape: [usize; 2],
        count: usize,
    ) -> Result<Vec<Linear>, GpuError> {
        if self.layers.0 != Some((format, shape)) {
            self.layers = (Some((format, shape)), Vec::new());
        }
        while self.layers.1.len() < count {
            let layer = self.layer(format, shape)?;
            self.layers.1.push(layer);
        }
        Ok(self.layers.1[..count].to_vec())
    }

    fn layer(
        &self,
        format: WeightFormat,
        [out_features, in_features]: [usize; 2],
    ) -> Result<Linear, GpuError> {
        let weight = self
            .gpu
            .weight_matrix("weight", format, out_features, in_features)?;
        let values: Vec<f16> = (0..PIECE / 2)
            .map(|i| f16::from_f32((i % 13) as f32 * 0.01 - 0.06))
            .collect();
        for part in &weight.parts {
            self.fill(&part.buffer, bytemuck::cast_slice(&values));
        }
        Ok(Linear { weight, bias: None })
    }

    /// A buffer of `bytes` bytes, none of which is zero: pages that nobody wrote may all be the same one.
    ///
    /// # Errors
    /// No room on the device.
    pub fn buffer(&self, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        let buffer = self.gpu.storage("bench", bytes)?;
        self.fill(&buffer, &vec![0x3c; PIECE]);
        Ok(buffer)
    }

    /// Writes `piece` over and over.
    fn fill(&self, buffer: &wgpu::Buffer, piece: &[u8]) {
        for offset in (0..buffer.size()).step_by(piece.len()) {
            let left = usize::try_from(buffer.size() - offset).unwrap_or(usize::MAX);
            let piece = &piece[..piece.len().min(left)];
            self.gpu.write(buffer, offset, piece);
            self.gpu.submit([]); // staging memory goes back piece by piece
        }
    }
}
