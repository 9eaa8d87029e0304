//! Bounded staging: weights pass from the memory map to the device through a few reused mapped buffers.

use std::collections::VecDeque;

use crate::platform::parallel::*;
use futures_channel::oneshot;

use super::device::one_line;
use super::{Gpu, GpuError};

/// A ring of host-visible buffers. Several are filled at a time, each by a thread of its own, while the device copies from
/// those filled before; then they are mapped again and reused: fresh staging memory for every write would cost a page
/// fault for every 4 KiB of the model.
#[derive(Debug)]
pub struct Staging {
    gpu: Gpu,
    ready: Vec<wgpu::Buffer>,
    in_flight: VecDeque<InFlight>,
    made: usize,
}

#[derive(Debug)]
struct InFlight {
    buffer: wgpu::Buffer,
    mapped: oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
}

/// Where bytes go on the device.
#[derive(Debug, Clone)]
pub struct StagedWrite {
    /// The buffer.
    pub target: wgpu::Buffer,
    /// Its first byte to write, a multiple of 4.
    pub offset: u64,
    /// How many, a multiple of 4 and at most [`Staging::CHUNK`].
    pub bytes: usize,
}

impl Staging {
    /// Bytes of one staging buffer: the most that one write moves.
    pub const CHUNK: usize = 16 << 20;
    /// Staging buffers in the ring, 128 MiB in all.
    pub const CHUNKS: usize = 8;
    /// Buffers filled at a time: the device copies from the others meanwhile.
    const AT_ONCE: usize = Self::CHUNKS / 2;

    /// The ring, empty: its buffers are made when they are needed.
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            gpu: gpu.clone(),
            ready: Vec::new(),
            in_flight: VecDeque::new(),
            made: 0,
        }
    }

    /// Has `fill` write the bytes of each of `writes` (given by its index) into staging memory, several at a time, and
    /// copies them to their places.
    ///
    /// # Errors
    /// What `fill` returns, or an error of the device.
    pub async fn write_all<E: From<GpuError> + Send>(
        &mut self,
        writes: &[StagedWrite],
        fill: impl Fn(usize, wgpu::WriteOnly<'_, [u8]>) -> Result<(), E> + Send + Sync,
    ) -> Result<(), E> {
        for (round, writes) in writes.chunks(Self::AT_ONCE).enumerate() {
            let mut buffers = Vec::with_capacity(writes.len());
            for _ in writes {
                buffers.push(self.next_mapped().await?);
            }
            writes.par_iter().zip(&buffers).enumerate().try_for_each(
                |(index, (write, buffer))| {
                    let mut view = buffer
                        .slice(0..write.bytes as u64)
                        .get_mapped_range_mut()
                        .map_err(|error| failed(one_line(&error)))?;
                    fill(round * Self::AT_ONCE + index, view.slice(..))
                },
            )?;
            self.submit(writes, buffers);
        }
        Ok(())
    }

    /// Copies from `buffers`, now filled, and asks for their mappings back.
    fn submit(&mut self, writes: &[StagedWrite], buffers: Vec<wgpu::Buffer>) {
        let device = self.gpu.device();
        let mut encoder = device.create_command_encoder(&Default::default());
        for (write, buffer) in writes.iter().zip(&buffers) {
            buffer.unmap();
            let bytes = write.bytes as u64;
            encoder.copy_buffer_to_buffer(buffer, 0, &write.target, write.offset, bytes);
        }
        self.gpu.queue().submit([encoder.finish()]);
        for buffer in buffers {
            let (sender, mapped) = oneshot::channel();
            buffer
                .slice(..)
                .map_async(wgpu::MapMode::Write, move |result| {
                    let _ = sender.send(result);
                });
            self.in_flight.push_back(InFlight { buffer, mapped });
        }
        // The mappings resolve with the submission above; an empty one has their callbacks driven.
        self.gpu.submit([]);
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
        if let Some(buffer) = self.ready.pop() {
            return Ok(buffer);
        }
        if self.made < Self::CHUNKS {
            self.made += 1;
            return Ok(self.new_buffer());
        }
        self.oldest().await
    }

    /// Another buffer of the ring, mapped.
    fn new_buffer(&self) -> wgpu::Buffer {
        self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("staging"),
            size: Self::CHUNK as u64,
            usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        })
    }

    async fn oldest(&mut self) -> Result<wgpu::Buffer, GpuError> {
        let Some(InFlight { buffer, mapped }) = self.in_flight.pop_front() else {
            return Err(failed("no staging buffer is left".into()));
        };
        let mapped = mapped.await;
        if !matches!(mapped, Ok(Ok(()))) {
            self.gpu.settle().await;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// More writes than the ring has buffers, of odd sizes, each at its place; and the ring stays what it is.
    #[test]
    fn many_writes_pass_a_bounded_ring() {
        const { assert!(Staging::CHUNK * Staging::CHUNKS <= 256 << 20) };
        pollster::block_on(async {
            let gpu = Gpu::open(&Default::default()).await.expect("a device");
            let sizes: Vec<usize> = (0..21).map(|index| 4 * (1 + index * index)).collect();
            let total: usize = sizes.iter().sum();
            let target = gpu.storage("target", total as u64).expect("small");
            let mut offset = 0;
            let writes: Vec<StagedWrite> = sizes
                .iter()
                .map(|&bytes| {
                    let write = StagedWrite {
                        target: target.clone(),
                        offset: offset as u64,
                        bytes,
                    };
                    offset += bytes;
                    write
                })
                .collect();
            let mut staging = Staging::new(&gpu);
            let fill = |index: usize, mut view: wgpu::WriteOnly<'_, [u8]>| {
                view.fill(index as u8 + 1);
                Ok::<_, GpuError>(())
            };
            staging.write_all(&writes, fill).await.expect("written");
            assert_eq!(staging.made, Staging::CHUNKS);
            staging.finish().await.expect("copied");
            let bytes: Vec<u8> = gpu.read(&target, total).await.expect("readable");
            let expected = sizes
                .iter()
                .enumerate()
                .flat_map(|(index, &bytes)| std::iter::repeat_n(index as u8 + 1, bytes));
            assert!(bytes.iter().copied().eq(expected));
        });
    }
}
