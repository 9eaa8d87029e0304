//! A model before its weights are on the device: programs are planned over it, then it is filled.

use crate::gpu::{Gpu, GpuError, WeightFormat};

use super::tensors::{Target, Tensors};
use super::upload::{Request, UploadPath};
use super::{Checkpoint, WeightsError};

/// What can go wrong while uploading.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The checkpoint does not hold what the model needs.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device has no room, or failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// Called with the bytes of the checkpoint dealt with so far and all of its bytes.
pub type Progress<'a> = dyn FnMut(u64, u64) + Send + 'a;

/// Bytes of weights that are made together: enough for many cores to share evenly, little enough for an executor.
const TOGETHER: u64 = 512 << 20;

/// A model whose tensors are all found, but not yet on the device. Programs can be recorded over it, not run.
pub struct Outline<'a, M> {
    gpu: &'a Gpu,
    checkpoint: &'a Checkpoint,
    model: M,
    requests: Vec<Request<'a>>,
}

impl<'a, M> Outline<'a, M> {
    /// The model that `load` puts together from tensors of `checkpoint`. Matrices are to be stored in `quant`, as far as
    /// [`format_of`](super::format_of) has it; `None` keeps what the checkpoint has.
    ///
    /// # Errors
    /// A tensor that is missing or misshapen, or quantised otherwise already; or the device failed.
    pub fn new(
        gpu: &'a Gpu,
        checkpoint: &'a Checkpoint,
        quant: Option<WeightFormat>,
        load: impl FnOnce(&Tensors) -> Result<M, WeightsError>,
    ) -> Result<Self, UploadError> {
        let target = Target {
            gpu,
            quant,
            placeholder: gpu.storage("outline", 16)?,
        };
        let tensors = Tensors::new(Some(checkpoint), Some(target));
        Ok(Self {
            gpu,
            checkpoint,
            model: load(&tensors)?,
            requests: tensors.into_requests(),
        })
    }

    /// The model, to record programs over.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model, never to be filled.
    pub fn into_model(self) -> M {
        self.model
    }

    /// Bytes that the weights will take on the device.
    pub fn device_bytes(&self) -> u64 {
        self.requests.iter().map(Request::bytes).sum()
    }

    /// Bytes that they would take stored as `format`; `None` where they cannot be, because the checkpoint has them
    /// quantised otherwise.
    pub fn bytes_in(&self, format: WeightFormat) -> Option<u64> {
        self.requests
            .iter()
            .map(|request| request.bytes_in(self.gpu, format))
            .sum()
    }

    /// Brings all weights to the device, several at a time on all cores.
    ///
    /// # Errors
    /// Values that no model has, or the device has no room or failed.
    pub async fn fill(self, progress: &mut Progress<'_>) -> Result<M, UploadError> {
        let mut path = UploadPath::new(self.gpu);
        let total = self.checkpoint.total_bytes();
        let mut done = 0;
        let mut rest = self.requests.as_slice();
        while !rest.is_empty() {
            let (together, after) = rest.split_at(count_together(rest));
            rest = after;
            path.fill(self.gpu, together).await?;
            done += together.iter().map(Request::stored_bytes).sum::<u64>();
            progress(done, total);
        }
        path.finish(self.gpu).await?;
        Ok(self.model)
    }
}

/// How many of `requests`, which are not none, are filled together: those up to [`TOGETHER`] bytes and the one beyond.
fn count_together(requests: &[Request<'_>]) -> usize {
    let mut bytes = 0;
    let small = requests.iter().take_while(|request| {
        let fits = bytes < TOGETHER;
        bytes += request.bytes();
        fits
    });
    small.count()
}
