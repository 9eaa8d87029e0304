//! The one way a checkpoint comes to a device: its device opened and checked, memory planned, weights brought there.

use crate::Error;
use crate::gpu::Gpu;
use crate::schedule::MemoryPlan;
use crate::weights::{Checkpoint, Outline, Progress, Tensors, WeightsError};

use super::OpenOptions;
use super::memory::Planner;

/// A model on its device.
pub(super) struct Loaded<M> {
    pub gpu: Gpu,
    pub model: M,
    /// Images at a time where none are asked for: as many as there is room for.
    pub batch: usize,
}

/// Brings the model that `load` puts together to the device of `options`, for at most `usual` images at a time where none
/// are asked for. `plan` says what so many images take beside so many bytes of weights.
///
/// # Errors
/// No device, tensors that are missing or no numbers, or not enough memory: with what would fit.
pub(super) async fn load<M: Send>(
    checkpoint: &Checkpoint,
    options: &OpenOptions,
    usual: usize,
    load: impl Fn(&Tensors) -> Result<M, WeightsError> + Send + Sync,
    plan: impl Fn(&Gpu, &M, usize, u64) -> Result<MemoryPlan, Error> + Send + Sync,
    progress: &mut Progress<'_>,
) -> Result<Loaded<M>, Error> {
    let gpu = options.open_device(checkpoint).await?;
    let phase = gpu.phase("load");
    let outline = || Outline::new(&gpu, checkpoint, options.quant, &load);
    let outlined = outline()?;
    let planner = Planner::new(&gpu, options, usual, &outlined);
    let batch = planner.batch(&|batch, weights| plan(&gpu, outlined.model(), batch, weights))?;
    let filled = outlined.fill(progress).await.map_err(Error::from);
    let model = filled.map_err(|error| match outline() {
        Ok(outlined) => planner.explain(error, batch, &|batch, weights| {
            plan(&gpu, outlined.model(), batch, weights)
        }),
        Err(_) => error,
    })?;
    drop((planner, phase));
    Ok(Loaded { gpu, model, batch })
}
