//! What a checkpoint will take on a device, known without loading it.

use crate::Error;
use crate::gpu::{Gpu, WeightFormat};
use crate::model::config::Head;
use crate::model::{Blip2Config, Blip2Model, RetrievalModel};
use crate::schedule::{MemoryPlan, RetrievalWorkload, Workload};
use crate::weights::{Checkpoint, Outline};

use super::blip2::PLANNED_TEXT;

/// What a checkpoint will take on a device, without loading it.
#[derive(Debug)]
pub struct Forecast<'g> {
    gpu: &'g Gpu,
    model: Outlined,
    /// Bytes of the weights as they would be loaded.
    weights: u64,
    /// Bytes of the weights in each format that they can have.
    formats: Vec<(WeightFormat, u64)>,
}

#[derive(Debug)]
enum Outlined {
    Generative(Box<Blip2Model>),
    Retrieval(Box<RetrievalModel>),
}

impl<'g> Forecast<'g> {
    /// Goes through the checkpoint's tensors as loading would, weights stored as `quant`
    /// ([`super::OpenOptions::quant`]).
    ///
    /// # Errors
    /// A tensor that is missing or misshapen, or a failing device.
    pub fn new(
        gpu: &'g Gpu,
        config: &Blip2Config,
        checkpoint: &Checkpoint,
        quant: Option<WeightFormat>,
    ) -> Result<Self, Error> {
        let side = config.vision.image_size;
        let outline = Outline::new(gpu, checkpoint, quant, |tensors| match &config.head {
            Head::Generation(language) => {
                let model = Blip2Model::load(tensors, config, language, side)?;
                Ok(Outlined::Generative(Box::new(model)))
            }
            Head::Retrieval { embedding_size } => {
                let model = RetrievalModel::load(tensors, config, *embedding_size, side)?;
                Ok(Outlined::Retrieval(Box::new(model)))
            }
        })?;
        Ok(Self {
            gpu,
            weights: outline.device_bytes(),
            formats: WeightFormat::ALL
                .into_iter()
                .filter_map(|format| Some((format, outline.bytes_in(format)?)))
                .collect(),
            model: outline.into_model(),
        })
    }

    /// The formats that weights can have: all, unless the checkpoint has them quantised already.
    pub fn formats(&self) -> impl Iterator<Item = WeightFormat> {
        self.formats.iter().map(|(format, _)| *format)
    }

    /// What `batch` images at a time take, with weights in `format` (`None`: as they would be
    /// loaded): for a generative model with texts of `positions` positions in all and so many
    /// `beams`, for a retrieval model matched with one text of so many positions each.
    ///
    /// # Errors
    /// More than a dispatch of this device can do.
    pub fn plan(
        &self,
        format: Option<WeightFormat>,
        batch: usize,
        positions: usize,
        beams: usize,
    ) -> Result<MemoryPlan, Error> {
        let known = |format| self.formats.iter().find(|(known, _)| *known == format);
        let weights = format
            .and_then(known)
            .map_or(self.weights, |(_, bytes)| *bytes);
        match &self.model {
            Outlined::Generative(model) => {
                let prompt = model.qformer.queries() + PLANNED_TEXT;
                let work = Workload {
                    batch,
                    text: PLANNED_TEXT,
                    new_tokens: positions.saturating_sub(prompt).max(1),
                    beams,
                };
                MemoryPlan::of(self.gpu, model, weights, &work)
            }
            Outlined::Retrieval(model) => {
                let tokens = positions.min(model.text.max_positions());
                let work = RetrievalWorkload {
                    batch,
                    texts: 1,
                    tokens,
                };
                Ok(MemoryPlan::of_retrieval(self.gpu, model, weights, &work)?)
            }
        }
    }
}
