//! The one way a checkpoint comes to a device: its files checked against each other, the device
//! opened and checked, memory planned, weights brought there.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Error;
use crate::gpu::Gpu;
use crate::image::Preprocessor;
use crate::kernels::self_check;
use crate::model::Blip2Config;
use crate::schedule::MemoryPlan;
use crate::weights::{Checkpoint, Outline, Progress, Tensors, WeightsError, list_tensors};

use super::OpenOptions;
use super::checkpoint::{CheckpointFiles, run_size};
use super::memory::Planner;

/// A model on its device.
pub(super) struct Opened<M> {
    pub gpu: Gpu,
    pub model: M,
    /// Bytes of its weights there.
    pub weights: u64,
    /// Images at a time where none are asked for: as many as there is room for.
    pub batch: usize,
    pub config: Blip2Config,
    pub checkpoint: Checkpoint,
    pub preprocessor: Preprocessor,
    /// Pixels a side of the images that the model runs at.
    pub image_size: usize,
}

/// Opens the checkpoint of `files` for at most `usual` images at a time where none are asked for.
/// `load` puts the model together for images of so many pixels a side; `plan` says what so many
/// images at a time take beside so many bytes of weights.
///
/// # Errors
/// Files that do not fit each other, no device, values that are no numbers, or not enough memory:
/// with what would fit.
pub(super) async fn open<M: Send>(
    files: CheckpointFiles,
    options: &OpenOptions,
    usual: usize,
    load: impl Fn(&Tensors, &Blip2Config, usize) -> Result<M, WeightsError> + Send + Sync,
    plan: impl Fn(&Gpu, &M, usize, u64) -> Result<MemoryPlan, Error> + Send + Sync,
    progress: &mut Progress<'_>,
) -> Result<Opened<M>, Error> {
    // Everything that is quick to check comes before the device and the gigabytes.
    let image_size = run_size(files.config(), options.image_size)?;
    let is_asked = options.image_size.is_some();
    let preprocessor = files.preprocessor(image_size as u32, is_asked)?;
    files.warn_of_passed_over(image_size as u32, is_asked)?;
    let is_assembled = files.is_assembled();
    let (config, checkpoint) = files.into_parts();
    let load = |tensors: &Tensors| load(tensors, &config, image_size);
    list_tensors(Some(&checkpoint), load)?;
    // A part of a model may be opened alone, whose rest is not there.
    if let Ok(mut left_over) = config.left_over(&checkpoint) {
        left_over.retain(|name| !(is_assembled && config.is_beyond_blocks(name)));
        warn_of_left_over(&checkpoint, &left_over);
    }

    let gpu = open_device(options, &checkpoint).await?;
    let phase = gpu.phase("load");
    let outline = || Outline::new(&gpu, &checkpoint, options.quant, load);
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
    let weights = planner.weights;
    drop((planner, phase));
    Ok(Opened {
        gpu,
        model,
        weights,
        batch,
        config,
        checkpoint,
        preprocessor,
        image_size,
    })
}

/// Names the tensors that no part of the model takes, by the checkpoint or, where another file lends
/// them, that file.
fn warn_of_left_over(checkpoint: &Checkpoint, names: &[&str]) {
    const MOST_NAMED: usize = 5;
    let mut by_place: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    for name in names {
        let file = checkpoint.get(name).map(|tensor| tensor.file);
        let lent = file.filter(|file| !file.starts_with(checkpoint.path()));
        let place = lent.unwrap_or(checkpoint.path());
        by_place.entry(place).or_default().push(name);
    }
    for (place, names) in by_place {
        let more = match names.len().saturating_sub(MOST_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        log::warn!(
            "{}: {} tensors are no part of the model and are left out: {}{more}; is config.json that of these weights?",
            place.display(),
            names.len(),
            names[..names.len().min(MOST_NAMED)].join(", ")
        );
    }
}

/// The device, on which every kernel that it can run on the weights of `checkpoint` has been
/// checked.
async fn open_device(options: &OpenOptions, checkpoint: &Checkpoint) -> Result<Gpu, Error> {
    let gpu = match &options.device {
        Some(gpu) => gpu.clone(),
        None => Gpu::open(&options.gpu).await?,
    };
    let _phase = gpu.phase("self-check");
    self_check(&gpu, &checkpoint.formats(options.quant.unwrap_or_default())).await?;
    Ok(gpu)
}
