//! Bounded staging: weights pass from the memory map to the device through a few reused mapped buffers.

use std::collections::VecDeque;

use futures_channel::oneshot;

use super::device::one_line;
use super::{Gpu, GpuError};

/// A ring of host-visible buffers. Each is filled, copied from on the GPU's own time, mapped again and reused:
/// fresh staging memory for every write would cost a page fault for every 4 KiB of the model.
#[derive(Debug)]
pub struct Staging {
    gpu: Gpu,
    ready: Vec<wgpu::Buffer>,
    in_flight: VecDeque<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    buffer: wgpu::Buffer,
    mapped: oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Staging {
    /// Bytes of one staging buffer: the most that one [`Staging::write`] moves.
    pub const CHUNK: usize = 32 << 20;
    /// Staging buffers in the ring.
    pub const CHUNKS: usize = 3;

    /// The ring, all of it mapped.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        let ready = (0..Self::CHUNKS)
            .map(|_| {
                gpu.device().create_buffer(&wgpu::BufferDescriptor {
                    label: Some("staging"),
                    size: Self::CHUNK as u64,
                    usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
                    mapped_at_creation: true,
                })
            })
            .collect();
        Self {
            gpu: gpu.clone(),
            ready,
            in_flight: VecDeque::new(),
        }
    }

    /// Has `fill` write `bytes` (a multiple of 4, at most [`Staging::CHUNK`]) into staging memory and copies them to `target` at `offset`.
    ///
    /// # Errors
    /// What `fill` returns, or an error of the device.
    pub async fn write<E: From<GpuError>>(
        &mut self,
        target: &wgpu::Buffer,
        offset: u64,
        bytes: usize,
        fill: impl FnOnce(wgpu::WriteOnly<'_, [u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let buffer = self.next_mapped().await?;
        let mut view = buffer
            .slice(0..bytes as u64)
            .get_mapped_range_mut()
            .map_err(|error| failed(one_line(&error)))?;
        fill(view.slice(..))?;
        drop(view);
        buffer.unmap();
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&buffer, 0, target, offset, bytes as u64);
        self.gpu.queue().submit([encoder.finish()]);
        let (sender, mapped) = oneshot::channel();
        buffer
            .slice(..)
            .map_async(wgpu::MapMode::Write, move |result| {
                let _ = sender.send(result);
            });
        // The mapping resolves with the submission above; an empty one has its callback driven.
        self.gpu.submit([]);
        self.in_flight.push_back(InFlight { buffer, mapped });
        Ok(())
    }

    /// Waits until every copy is done.
    ///
    /// # Errors
    /// An error of the device.
    pub async fn finish(mut self) -> Result<(), GpuError> {
        while !self.in_flight.is_empty() {
            let buffer = self.oldest().await?;
            self.ready.push(buffer);
        }
        self.gpu.finish("uploading weights").await
    }

    async fn next_mapped(&mut self) -> Result<wgpu::Buffer, GpuError> {
        match self.ready.pop() {
            Some(buffer) => Ok(buffer),
            None => self.oldest().await,
        }
    }

    async fn oldest(&mut self) -> Result<wgpu::Buffer, GpuError> {
        let Some(InFlight { buffer, mapped }) = self.in_flight.pop_front() else {
            return Err(failed("no staging buffer is left".into()));
        };
        let mapped = mapped.await;
        self.gpu.check("uploading weights")?;
        match mapped {
            Ok(Ok(())) => Ok(buffer),
            Ok(Err(error)) => Err(failed(one_line(&error))),
            Err(_) => Err(failed("the device is gone".into())),
        }
    }
}

fn failed(message: String) -> GpuError {
    GpuError::Internal {
        doing: "uploading weights".into(),
        message,
    }
}
