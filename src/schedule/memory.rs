//! What a model needs on the device, before it is loaded: programs recorded over an outline of the weights.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Error;
use crate::generate::{GenerationOptions, MAX_BEAMS};
use crate::gpu::{ActivationPool, Gpu, GpuError};
use crate::model::{Blip2Model, QFormer, Vit};

use super::device_state::{DeviceState, MAX_BATCH, MAX_PREFILL_ROWS, Shape};
use super::programs::image::{ImageProgram, ImageSide, Keep};
use super::programs::sample::SamplerKey;
use super::request::{Request, cache_rows_of, sequences_of};
use super::sequence::{Prompt, SequenceGroup};
use super::tables::rules_words;
use super::timings::Clock;

/// Bytes on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights: matrices in their format, vectors in f32.
    pub weights: u64,
    /// Activation buffers, shared between programs, and all other buffers of a program: images, tables, parameters,
    /// logits, results.
    pub activations: u64,
    /// Keys and values.
    pub cache: u64,
    /// The largest single buffer, weights left out: they are split to fit any binding.
    pub largest_buffer: u64,
}

/// What a generative model is to do at a time, as far as memory depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Images (or questions) at a time.
    pub batch: usize,
    /// Tokens of a prompt.
    pub text: usize,
    /// Most tokens to generate.
    pub new_tokens: usize,
    /// Beams of each; 1 is greedy.
    pub beams: usize,
}

impl MemoryPlan {
    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.activations + self.cache
    }

    /// What `work` takes beside `weights` bytes of them: all its programs are recorded on a device that only counts, over
    /// an outline of the model.
    ///
    /// # Errors
    /// More than a dispatch of this device can do, or beams that do not go together.
    pub fn of(gpu: &Gpu, model: &Blip2Model, weights: u64, work: &Workload) -> Result<Self, Error> {
        let gpu = gpu.rehearsal();
        let cache = dry_run(&gpu, model, work)?;
        let [all, largest_buffer] = gpu.rehearsed_bytes();
        Ok(Self {
            weights,
            activations: all - cache,
            cache,
            largest_buffer,
        })
    }

    /// What encoding `batch` images at a time takes beside `weights` bytes of them, without a language model.
    ///
    /// # Errors
    /// More than a dispatch of this device can do.
    pub fn of_images(
        gpu: &Gpu,
        vit: &Vit,
        qformer: &QFormer,
        weights: u64,
        batch: usize,
    ) -> Result<Self, GpuError> {
        let gpu = gpu.rehearsal();
        let side = ImageSide::Features(vit, qformer);
        let batch = batch.max(side.least_batch());
        ImageProgram::record(&gpu, side, batch, Keep::Nothing, &ActivationPool::default())?;
        let [activations, largest_buffer] = gpu.rehearsed_bytes();
        Ok(Self {
            weights,
            activations,
            cache: 0,
            largest_buffer,
        })
    }
}

/// Most new tokens that are planned for.
const MAX_TOKENS: usize = 1 << 12;

/// Records what a queue would for one full batch. Gives the bytes of the cache.
fn dry_run(gpu: &Gpu, model: &Blip2Model, work: &Workload) -> Result<u64, Error> {
    let language_model = &model.language_model;
    let batch = work.batch.clamp(1, MAX_BATCH);
    // What no request may ask for anyway is not planned for.
    let most_tokens = language_model.max_positions().clamp(1, MAX_TOKENS);
    let options = Arc::new(GenerationOptions {
        num_beams: work.beams.clamp(1, MAX_BEAMS),
        max_new_tokens: work.new_tokens.clamp(1, most_tokens),
        eos_token_ids: vec![0],
        ..GenerationOptions::default()
    });
    let prompt = Prompt {
        visual_row: 0,
        visual_count: model.qformer.queries(),
        text: vec![0; work.text],
        decoder_start: language_model.decoder_start(),
    };
    let side = ImageSide::Generation(model);
    let at_once = 1 << batch.min(side.max_images(gpu)).ilog2();
    let shape = Shape {
        rows: batch * sequences_of(&options),
        max_length: prompt.len() + options.max_new_tokens,
        cache_rows: batch * cache_rows_of(prompt.len(), &options),
        rules_stride: rules_words(&options),
        images: 2 * at_once,
    };
    let shape = shape.rounded(language_model.max_positions());
    let pool = Arc::new(ActivationPool::default());
    let mut state = DeviceState::new(gpu, model, shape, None, &pool)?;

    let mut images = BTreeSet::new();
    let mut rest = batch;
    while rest > 0 {
        let count = 1 << rest.min(at_once).ilog2();
        images.insert(count);
        rest -= count;
    }
    for &count in images.iter().rev() {
        ImageProgram::record(gpu, side, count, Keep::Nothing, &pool)?;
    }

    let request = Request {
        text: prompt.text.clone(),
        history: Vec::new(),
        options: Arc::clone(&options),
        stop: None,
    };
    let group = |number| {
        let group = SequenceGroup::new(number, prompt.clone(), &request, Clock::start());
        group.map(|mut group| {
            group.lend((0..cache_rows_of(prompt.len(), &options) as u32).collect());
            group
        })
    };
    let together = (MAX_PREFILL_ROWS / prompt.len()).clamp(1, at_once);
    let groups = (0..together.min(batch) as u64)
        .map(group)
        .collect::<Result<Vec<_>, _>>()?;
    let vocabulary = language_model.vocabulary();
    for count in BTreeSet::from([groups.len(), batch % together])
        .into_iter()
        .rev()
    {
        if count > 0 {
            let groups = &groups[..count];
            let prefill = state.prefill(gpu, model, groups)?;
            state.candidate_sampler(
                gpu,
                SamplerKey::of(groups, prefill.prompts, true, vocabulary),
            )?;
        }
    }
    let mut decoded = BTreeSet::new();
    for running in (1..=batch).rev() {
        let sequences = running * sequences_of(&options);
        let rows = sequences.next_power_of_two().min(shape.rows);
        if decoded.insert(rows) {
            state.decode(gpu, model, rows)?;
            let key = SamplerKey::of(&groups[..1], rows, false, vocabulary);
            if options.num_beams > 1 {
                state.candidate_sampler(gpu, key)?;
            } else {
                state.greedy_sampler(gpu, key)?;
            }
        }
    }
    Ok(shape.cache_rows as u64 * language_model.cache_row_bytes())
}
