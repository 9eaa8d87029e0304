//! Decoding state on the device: cache, tables of the rows, and the recorded programs over them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program};
use crate::model::{Blip2Model, KvCache};

use super::image_store::ImageStore;
use super::programs::decode::{LanguageSide, record_decode};
use super::programs::image::Keep;
use super::programs::prefill::Prefill;
use super::programs::sample::{CandidateSampler, GreedySampler, SamplerInputs, SamplerKey};
use super::request::CACHE_STEP;
use super::sequence::{Prompt, SequenceGroup};
use super::tables::{RowTables, StepTables, TableRow};

/// Most requests at once, whatever is asked for.
pub const MAX_BATCH: usize = 1024;

/// Input rows of one prefill, unless a single prompt has more: bounds the memory of its activations.
pub(super) const MAX_PREFILL_ROWS: usize = 1024;

/// Prefill programs that are kept; beyond, all go.
const MAX_PREFILLS: usize = 32;

/// Sizes of a device state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shape {
    /// Sequences decoded at once.
    pub rows: usize,
    /// Most positions of a sequence.
    pub max_length: usize,
    /// Physical rows of the cache.
    pub cache_rows: usize,
    /// Words of a row's rules.
    pub rules_stride: usize,
    /// Images whose query rows are kept.
    pub images: usize,
}

impl Shape {
    /// Rounded up, so that similar requests share a state.
    pub(super) fn rounded(self, max_positions: usize) -> Self {
        Self {
            rows: self.rows,
            max_length: self
                .max_length
                .next_power_of_two()
                .max(64)
                .min(max_positions),
            cache_rows: self.cache_rows.next_multiple_of(CACHE_STEP),
            rules_stride: self.rules_stride.next_multiple_of(8),
            images: self.images,
        }
    }

    /// Whether everything that fits `other` fits here.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.rows >= other.rows
            && self.max_length >= other.max_length
            && self.cache_rows >= other.cache_rows
            && self.rules_stride >= other.rules_stride
            && self.images >= other.images
    }

    /// The least shape that covers both.
    pub(super) fn joined(&self, other: &Self) -> Self {
        Self {
            rows: self.rows.max(other.rows),
            max_length: self.max_length.max(other.max_length),
            cache_rows: self.cache_rows.max(other.cache_rows),
            rules_stride: self.rules_stride.max(other.rules_stride),
            images: self.images.max(other.images),
        }
    }
}

/// Device state for decoding up to `shape.rows` sequences side by side.
#[derive(Debug)]
pub(super) struct DeviceState {
    pub shape: Shape,
    pub images: ImageStore,
    cache: KvCache,
    /// Of the prompts being prefilled, a row a prompt.
    prompts: RowTables,
    /// Of the sequences being decoded.
    pub decoding: RowTables,
    /// Of the decode rows.
    pub step: StepTables,
    /// `[rows, vocabulary]` of the last step.
    logits: Activation,
    /// By number of rows.
    decodes: HashMap<usize, Arc<Program>>,
    /// By input rows and prompts.
    prefills: HashMap<(usize, usize), Arc<Prefill>>,
    greedy_samplers: HashMap<SamplerKey, Arc<GreedySampler>>,
    candidate_samplers: HashMap<SamplerKey, Arc<CandidateSampler>>,
    pool: Arc<ActivationPool>,
}

impl DeviceState {
    /// Allocates the state. It takes over `images` if there are places enough.
    pub(super) fn new(
        gpu: &Gpu,
        model: &Blip2Model,
        shape: Shape,
        images: Option<ImageStore>,
        pool: &Arc<ActivationPool>,
    ) -> Result<Self, GpuError> {
        let language_model = &model.language_model;
        let vocabulary = language_model.vocabulary();
        let logits = gpu.storage("logits", (shape.rows * vocabulary) as u64 * 4)?;
        let tables = || RowTables::new(gpu, shape.rows, shape.max_length, shape.rules_stride);
        let state = Self {
            images: match images.filter(|images| images.places() >= shape.images) {
                Some(images) => images,
                None => ImageStore::new(gpu, model, shape.images)?,
            },
            cache: language_model.kv_cache(gpu, shape.cache_rows)?,
            prompts: tables()?,
            decoding: tables()?,
            step: StepTables::new(gpu, shape.rows)?,
            logits: Activation::external(&logits, shape.rows, vocabulary),
            decodes: HashMap::new(),
            prefills: HashMap::new(),
            greedy_samplers: HashMap::new(),
            candidate_samplers: HashMap::new(),
            pool: Arc::clone(pool),
            shape,
        };
        gpu.check("making room for decoding")?;
        Ok(state)
    }

    /// What programs over the rows of `tables` are recorded over.
    fn language_side<'a>(
        &'a self,
        model: &'a Blip2Model,
        tables: &'a RowTables,
    ) -> LanguageSide<'a> {
        LanguageSide {
            model: model.language_model.as_ref(),
            visual: self.images.visual(),
            cache: &self.cache,
            tables,
            logits: &self.logits,
        }
    }

    /// The step that decodes `rows` rows.
    pub(super) fn decode(
        &mut self,
        gpu: &Gpu,
        model: &Blip2Model,
        rows: usize,
    ) -> Result<Arc<Program>, GpuError> {
        if let Some(program) = self.decodes.get(&rows) {
            return Ok(Arc::clone(program));
        }
        let side = self.language_side(model, &self.decoding);
        let program = record_decode(gpu, side, &self.step, rows, Keep::Nothing, &self.pool)?;
        let program = Arc::new(program);
        self.decodes.insert(rows, Arc::clone(&program));
        Ok(program)
    }

    /// The end of a greedy step.
    pub(super) fn greedy_sampler(
        &mut self,
        gpu: &Gpu,
        key: SamplerKey,
    ) -> Result<Arc<GreedySampler>, GpuError> {
        if let Some(sampler) = self.greedy_samplers.get(&key) {
            return Ok(Arc::clone(sampler));
        }
        let sampler = GreedySampler::record(gpu, self.sampler_inputs(&key), &self.step, key)?;
        let sampler = Arc::new(sampler);
        self.greedy_samplers.insert(key, Arc::clone(&sampler));
        Ok(sampler)
    }

    /// The end of a step whose tokens the host chooses.
    pub(super) fn candidate_sampler(
        &mut self,
        gpu: &Gpu,
        key: SamplerKey,
    ) -> Result<Arc<CandidateSampler>, GpuError> {
        if let Some(sampler) = self.candidate_samplers.get(&key) {
            return Ok(Arc::clone(sampler));
        }
        let sampler = CandidateSampler::record(gpu, self.sampler_inputs(&key), key)?;
        let sampler = Arc::new(sampler);
        self.candidate_samplers.insert(key, Arc::clone(&sampler));
        Ok(sampler)
    }

    /// The logits, and the tables that say how to process them.
    fn sampler_inputs(&self, key: &SamplerKey) -> SamplerInputs<'_> {
        SamplerInputs {
            logits: &self.logits,
            tables: if key.is_prefill {
                &self.prompts
            } else {
                &self.decoding
            },
        }
    }

    /// Writes the inputs of a prefill of `groups` and returns its program; the last position of group `i` gets row `i`
    /// of the logits.
    pub(super) fn prefill(
        &mut self,
        gpu: &Gpu,
        model: &Blip2Model,
        groups: &[SequenceGroup],
    ) -> Result<Arc<Prefill>, GpuError> {
        let used: usize = groups.iter().map(|group| group.prompt.input_len()).sum();
        // Few different programs, at most an eighth of them for nothing.
        let step = (used.next_power_of_two() / 16).max(8);
        let rows = used.next_multiple_of(step);
        let prompts = groups.len().next_power_of_two().min(self.shape.rows);
        let prefill = match self.prefills.get(&(rows, prompts)) {
            Some(prefill) => Arc::clone(prefill),
            None => {
                if self.prefills.len() >= MAX_PREFILLS {
                    self.prefills.clear();
                }
                let side = self.language_side(model, &self.prompts);
                let recorded =
                    Prefill::record(gpu, side, rows, prompts, Keep::Nothing, &self.pool)?;
                let recorded = Arc::new(recorded);
                self.prefills.insert((rows, prompts), Arc::clone(&recorded));
                recorded
            }
        };
        let table_rows: Vec<TableRow> = groups.iter().map(|group| (group, 0)).collect();
        self.prompts.write(gpu, &table_rows);
        prefill.write(gpu, groups.iter().map(|group| &group.prompt));
        Ok(prefill)
    }

    /// Runs `prompt` alone with every stage kept, then a step for each token of `said`: a program each,
    /// recorded as those that serve requests are.
    pub(super) fn run_with_stages(
        &mut self,
        gpu: &Gpu,
        model: &Blip2Model,
        prompt: &Prompt,
        said: &[u32],
    ) -> Result<Vec<Program>, GpuError> {
        let rows = prompt.input_len();
        let side = self.language_side(model, &self.prompts);
        let prefill = Prefill::record(gpu, side, rows, 1, Keep::Stages, &self.pool)?;
        self.prompts
            .write_plain(gpu, prompt.len() + said.len(), rows);
        prefill.write(gpu, [prompt].into_iter());
        prefill.program.run(gpu);
        let steps = said.iter().zip(prompt.len()..).map(|(&token, position)| {
            let step = record_decode(gpu, side, &self.step, 1, Keep::Stages, &self.pool)?;
            self.step.write_plain(gpu, token, position);
            step.run(gpu);
            Ok(step)
        });
        std::iter::once(Ok(prefill.program)).chain(steps).collect()
    }
}
