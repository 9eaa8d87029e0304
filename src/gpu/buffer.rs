//! Buffers: weights in their GPU layouts, small state, and reading results back.

use std::sync::{Arc, OnceLock};

use super::device::one_line;
use super::{Gpu, GpuError, WeightFormat, grouped_scales};

/// The buffer of a weight. A model is put together before its weights are on the device: until this buffer is made, a
/// placeholder stands for it, over which programs can be recorded but not run.
#[derive(Debug, Clone)]
pub struct WeightBuffer {
    bytes: u64,
    placeholder: Option<wgpu::Buffer>,
    made: Arc<OnceLock<wgpu::Buffer>>,
}

impl WeightBuffer {
    /// A buffer of `bytes` (rounded up as [`Gpu::storage`] does) that is still to be made. Without a `placeholder`
    /// nothing may be recorded over it before.
    #[must_use]
    pub fn planned(bytes: u64, placeholder: Option<&wgpu::Buffer>) -> Self {
        Self {
            bytes: storage_bytes(bytes),
            placeholder: placeholder.cloned(),
            made: Arc::default(),
        }
    }

    /// Gives it the buffer, once.
    pub fn set(&self, buffer: wgpu::Buffer) {
        let set = self.made.set(buffer);
        debug_assert!(set.is_ok(), "a weight is filled once");
    }

    /// Its bytes, made or not.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.bytes
    }
}

impl From<wgpu::Buffer> for WeightBuffer {
    fn from(buffer: wgpu::Buffer) -> Self {
        Self {
            bytes: buffer.size(),
            placeholder: None,
            made: Arc::new(OnceLock::from(buffer)),
        }
    }
}

impl std::ops::Deref for WeightBuffer {
    type Target = wgpu::Buffer;

    fn deref(&self) -> &wgpu::Buffer {
        let buffer = self.made.get().or(self.placeholder.as_ref());
        buffer.expect("weights without a placeholder are listed and dropped, never recorded over")
    }
}

/// The size of a storage buffer that `bytes` are asked for.
fn storage_bytes(bytes: u64) -> u64 {
    bytes.max(16).next_multiple_of(16)
}

/// A vector of f32 on the device: biases and layer-norm weights.
#[derive(Debug, Clone)]
pub struct Vector {
    /// `len` f32.
    pub buffer: WeightBuffer,
    /// Number of values.
    pub len: usize,
}

/// A weight matrix on the device, `[rows, columns]` row-major as PyTorch's `Linear.weight` (`[out, in]`), split by rows
/// so that each part fits one binding.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// How its values are stored.
    pub format: WeightFormat,
    /// Consecutive row ranges.
    pub parts: Vec<MatrixPart>,
    /// All rows.
    pub rows: usize,
    /// Columns, a multiple of 8 (f16) or of 32 (quantised): rows are read 16 bytes at a time.
    pub columns: usize,
}

/// Some consecutive rows of a [`Matrix`].
#[derive(Debug, Clone)]
pub struct MatrixPart {
    /// Its values, and the scales of quantised ones: [`WeightFormat`] has the layout.
    pub buffer: WeightBuffer,
    /// Index of the first row in the whole matrix.
    pub first_row: usize,
    /// Rows in this part.
    pub rows: usize,
}

impl Matrix {
    /// Bytes on the device.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.buffer.size()).sum()
    }
}

impl Gpu {
    /// A storage buffer of `bytes` (rounded up to 16) that kernels read and write and copies go in and out of.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`] if no binding of this device can hold it.
    pub fn storage(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        self.storage_buffer(label, bytes, false)
    }

    /// A storage buffer that is mapped: the host writes into it and unmaps it, and nothing needs to be copied. Only where
    /// [`Gpu::shares_memory`].
    ///
    /// # Errors
    /// As [`Gpu::storage`].
    pub fn mapped_storage(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        self.storage_buffer(label, bytes, true)
    }

    fn storage_buffer(
        &self,
        label: &str,
        bytes: u64,
        mapped: bool,
    ) -> Result<wgpu::Buffer, GpuError> {
        let bytes = storage_bytes(bytes);
        if let Some(placeholder) = self.rehearse_buffer(bytes) {
            return Ok(placeholder);
        }
        let capabilities = self.capabilities();
        let limit = capabilities
            .max_binding_bytes
            .min(capabilities.max_buffer_bytes);
        if bytes > limit {
            return Err(GpuError::TooLarge {
                what: label.into(),
                bytes,
                limit,
            });
        }
        self.count_objects(1);
        #[cfg(test)]
        self.count_buffer();
        let mut usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        usage.set(wgpu::BufferUsages::MAP_WRITE, mapped);
        Ok(self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage,
            mapped_at_creation: mapped,
        }))
    }

    /// A storage buffer holding `data`: for small constants and tests. Weights go through [`super::Staging`].
    ///
    /// # Errors
    /// As [`Gpu::storage`].
    pub fn storage_with<T: bytemuck::NoUninit>(
        &self,
        label: &str,
        data: &[T],
    ) -> Result<wgpu::Buffer, GpuError> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let buffer = self.storage(label, bytes.len() as u64)?;
        self.write(&buffer, 0, bytes);
        Ok(buffer)
    }

    /// Writes `data` at `offset` (both multiples of 4 bytes; a shorter tail is padded with zeros).
    pub fn write<T: bytemuck::NoUninit>(&self, buffer: &wgpu::Buffer, offset: u64, data: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.is_empty() || self.rehearsed().is_some() {
            return;
        }
        let whole = bytes.len() / 4 * 4;
        if whole > 0 {
            self.queue().write_buffer(buffer, offset, &bytes[..whole]);
        }
        if whole < bytes.len() {
            let mut tail = [0; 4];
            tail[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.queue()
                .write_buffer(buffer, offset + whole as u64, &tail);
        }
    }

    /// A vector of f32 on the device.
    ///
    /// # Errors
    /// As [`Gpu::storage`].
    pub fn vector(&self, label: &str, values: &[f32]) -> Result<Vector, GpuError> {
        Ok(Vector {
            buffer: self.storage_with(label, values)?.into(),
            len: values.len(),
        })
    }

    /// An empty f16 matrix, split by rows into as many buffers as the binding limit (or
    /// [`super::GpuOptions::max_part_bytes`]) asks for.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`] if not even one row fits.
    pub fn matrix(&self, label: &str, rows: usize, columns: usize) -> Result<Matrix, GpuError> {
        self.weight_matrix(label, WeightFormat::F16, rows, columns)
    }

    /// [`Gpu::matrix`] in any format.
    ///
    /// # Errors
    /// As [`Gpu::matrix`].
    pub fn weight_matrix(
        &self,
        label: &str,
        format: WeightFormat,
        rows: usize,
        columns: usize,
    ) -> Result<Matrix, GpuError> {
        let matrix = self.planned_matrix(format, rows, columns, None);
        for part in &matrix.parts {
            part.buffer.set(self.storage(label, part.buffer.size())?);
        }
        Ok(matrix)
    }

    /// A matrix whose buffers are still to be made; `placeholder` stands for each of them.
    #[must_use]
    pub fn planned_matrix(
        &self,
        format: WeightFormat,
        rows: usize,
        columns: usize,
        placeholder: Option<&wgpu::Buffer>,
    ) -> Matrix {
        let rows_per_part = self.rows_per_part(format, rows, columns);
        let parts = (0..rows).step_by(rows_per_part).map(|first_row| {
            let rows = rows_per_part.min(rows - first_row);
            let bytes = format.part_bytes(rows, columns);
            MatrixPart {
                buffer: WeightBuffer::planned(bytes, placeholder),
                first_row,
                rows,
            }
        });
        Matrix {
            format,
            parts: parts.collect(),
            rows,
            columns,
        }
    }

    /// Rows of each part (the last may have fewer) of a matrix of this shape.
    pub fn rows_per_part(&self, format: WeightFormat, rows: usize, columns: usize) -> usize {
        let limit = self.max_part_bytes() / 16 * 16;
        // A row that does not fit is a part of its own, which `storage` refuses if no binding can hold it.
        let most_rows = format.most_rows(columns, limit);
        let count = rows.div_ceil(most_rows).max(1);
        // Equal parts: one big and one tiny part would leave the last dispatch of a product nearly empty. Eights: no
        // part but the last has scales of rows that are not there.
        match rows.div_ceil(count).max(1) {
            even if format.is_quantised() && count > 1 => even.next_multiple_of(8).min(most_rows),
            even => even,
        }
    }

    /// An f16 matrix holding `values` (`[rows, columns]`): for tests and small constants.
    ///
    /// # Errors
    /// As [`Gpu::matrix`].
    pub fn matrix_with(
        &self,
        label: &str,
        rows: usize,
        columns: usize,
        values: &[half::f16],
    ) -> Result<Matrix, GpuError> {
        self.weight_matrix_with(
            label,
            WeightFormat::F16,
            [rows, columns],
            bytemuck::cast_slice(values),
            &[],
        )
    }

    /// A matrix of shape `[rows, columns]` holding the bytes of `values` and, where `format` is quantised, `scales`
    /// (`[rows, columns / 32]`): for tests and benches. Weights go through [`super::Staging`].
    ///
    /// # Errors
    /// As [`Gpu::matrix`].
    pub fn weight_matrix_with(
        &self,
        label: &str,
        format: WeightFormat,
        [rows, columns]: [usize; 2],
        values: &[u8],
        scales: &[half::f16],
    ) -> Result<Matrix, GpuError> {
        let matrix = self.weight_matrix(label, format, rows, columns)?;
        let (row_bytes, blocks) = (format.row_bytes(columns), format.row_scales(columns));
        for part in &matrix.parts {
            let bytes = part.rows * row_bytes;
            self.write(
                &part.buffer,
                0,
                &values[part.first_row * row_bytes..][..bytes],
            );
            if format.is_quantised() {
                let scales = &scales[part.first_row * blocks..][..part.rows * blocks];
                self.write(&part.buffer, bytes as u64, &grouped_scales(scales, blocks));
            }
        }
        Ok(matrix)
    }

    /// Reads the first `count` values of `buffer` once everything submitted so far is done.
    ///
    /// # Errors
    /// Any error the device reported meanwhile.
    pub async fn read<T: bytemuck::Pod>(
        &self,
        buffer: &wgpu::Buffer,
        count: usize,
    ) -> Result<Vec<T>, GpuError> {
        self.read_from(buffer, 0, count).await
    }

    /// Reads `count` values of a buffer from its value `first` on; values of four bytes and more.
    ///
    /// # Errors
    /// Any error the device reported meanwhile.
    pub async fn read_from<T: bytemuck::Pod>(
        &self,
        buffer: &wgpu::Buffer,
        first: usize,
        count: usize,
    ) -> Result<Vec<T>, GpuError> {
        let start = (first * size_of::<T>()) as u64;
        let bytes = (count * size_of::<T>()) as u64;
        let readback = Readback::new(self, bytes)?;
        let mut encoder = self.device().create_command_encoder(&Default::default());
        let copied = bytes.next_multiple_of(4);
        encoder.copy_buffer_to_buffer(buffer, start, &readback.buffer, 0, copied);
        self.submit([encoder.finish()]);
        readback.read(self, count).await
    }
}

/// A host-visible buffer that results are copied into; made once, used for every step.
#[derive(Debug)]
pub struct Readback {
    buffer: wgpu::Buffer,
}

impl Readback {
    /// Room for `bytes`.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`] if no buffer of this device can hold them.
    pub fn new(gpu: &Gpu, bytes: u64) -> Result<Self, GpuError> {
        let size = bytes.max(4).next_multiple_of(4);
        if let Some(buffer) = gpu.rehearse_buffer(size) {
            return Ok(Self { buffer });
        }
        let limit = gpu.capabilities().max_buffer_bytes;
        if size > limit {
            return Err(GpuError::TooLarge {
                what: "a result".into(),
                bytes: size,
                limit,
            });
        }
        gpu.count_objects(1);
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Ok(Self { buffer })
    }

    /// Records the copy of `bytes` of `source` from its start to `offset` here.
    pub fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        source: &wgpu::Buffer,
        offset: u64,
        bytes: u64,
    ) {
        let bytes = bytes.next_multiple_of(4);
        encoder.copy_buffer_to_buffer(source, 0, &self.buffer, offset, bytes);
    }

    /// The first `count` values, once the submitted copies are done.
    ///
    /// # Errors
    /// Any error the device reported meanwhile.
    pub async fn read<T: bytemuck::Pod>(
        &self,
        gpu: &Gpu,
        count: usize,
    ) -> Result<Vec<T>, GpuError> {
        gpu.pipelines().settle().await?;
        let bytes = (count * size_of::<T>()) as u64;
        let slice = self.buffer.slice(0..bytes.next_multiple_of(4).max(4));
        let (sender, receiver) = futures_channel::oneshot::channel();
        slice.map_async(wgpu::MapMode::Read, move |mapped| {
            let _ = sender.send(mapped);
        });
        gpu.submit([]);
        let failed = |message: String| GpuError::Internal {
            doing: "reading a result back".into(),
            message,
        };
        let mapped = gpu.unless_lost(receiver).await;
        if !matches!(mapped, Some(Ok(()))) {
            gpu.settle().await;
        }
        // An earlier error explains a failed mapping better than the mapping's own.
        gpu.check("reading a result back")?;
        match mapped {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(failed(one_line(&error))),
            None => return Err(failed("the device is gone".into())),
        }
        let view = slice
            .get_mapped_range()
            .map_err(|error| failed(one_line(&error)))?;
        let values = bytemuck::pod_collect_to_vec(&view[..bytes as usize]);
        drop(view);
        self.buffer.unmap();
        Ok(values)
    }
}
