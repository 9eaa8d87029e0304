//! What a model needs on the device, before it is loaded: programs recorded over an outline of the weights.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Error;
use crate::generate::{GenerationOptions, MAX_BEAMS};
use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, ProgramBuilder};
use crate::kernels::{Pages, row_rules_words};
use crate::model::{Blip2Model, InputRows, PromptEnds, QFormer, Vit};

use super::encode::VisualEncoder;
use super::images::{ImageParts, max_images, rehearse_images};
use super::job::{Job, cache_rows_of, sequences_of};
use super::queue::{MAX_BATCH, MAX_PREFILL_ROWS};
use super::session::{Prompt, Session, Shape};
use super::tails::TailKey;

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

    /// What `work` takes beside `weights` bytes of them: a rehearsal of all its programs, over an outline of the model.
    ///
    /// # Errors
    /// More than a dispatch of this device can do, or beams that do not go together.
    pub fn of(gpu: &Gpu, model: &Blip2Model, weights: u64, work: &Workload) -> Result<Self, Error> {
        let gpu = gpu.rehearsal();
        let cache = rehearse(&gpu, model, work)?;
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
        let parts = ImageParts {
            vit,
            qformer,
            retrieval: None,
        };
        rehearse_images(&gpu, parts, batch, &ActivationPool::default())?;
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
fn rehearse(gpu: &Gpu, model: &Blip2Model, work: &Workload) -> Result<u64, Error> {
    let language_model = &model.language_model;
    let batch = work.batch.clamp(1, MAX_BATCH);
    // What no request may ask for anyway is not rehearsed.
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
    let at_once = 1 << batch.min(max_images(gpu, &model.vit)).ilog2();
    let shape = Shape {
        rows: batch * sequences_of(&options),
        max_length: prompt.len() + options.max_new_tokens,
        cache_rows: batch * cache_rows_of(prompt.len(), &options),
        rules_stride: row_rules_words(&options),
        images: 2 * at_once,
    };
    let shape = shape.rounded(language_model.max_positions());
    let pool = Arc::new(ActivationPool::default());
    let mut session = Session::new(gpu, model, shape, &pool)?;

    let mut images = BTreeSet::new();
    let mut rest = batch;
    while rest > 0 {
        let count = 1 << rest.min(at_once).ilog2();
        images.insert(count);
        rest -= count;
    }
    for &count in images.iter().rev() {
        VisualEncoder::record(gpu, model, count, &pool, false)?;
    }

    let job = |number| {
        let pages = (0..cache_rows_of(prompt.len(), &options) as u32).collect();
        Job::new(
            number,
            prompt.clone(),
            Vec::new(),
            Arc::clone(&options),
            pages,
        )
    };
    let together = (MAX_PREFILL_ROWS / prompt.len()).clamp(1, at_once);
    let jobs = (0..together.min(batch))
        .map(job)
        .collect::<Result<Vec<_>, _>>()?;
    let vocabulary = language_model.vocabulary();
    for count in BTreeSet::from([jobs.len(), batch % together])
        .into_iter()
        .rev()
    {
        if count > 0 {
            let jobs = &jobs[..count];
            let prefill = session.prefill(gpu, model, jobs)?;
            session.candidate_tail(gpu, TailKey::of(jobs, prefill.prompts, true, vocabulary))?;
        }
    }
    let mut decoded = BTreeSet::new();
    for running in (1..=batch).rev() {
        let sequences = running * sequences_of(&options);
        let rows = sequences.next_power_of_two().min(shape.rows);
        if decoded.insert(rows) {
            session.decode(gpu, model, rows)?;
            let key = TailKey::of(&jobs[..1], rows, false, vocabulary);
            if options.num_beams > 1 {
                session.candidate_tail(gpu, key)?;
            } else {
                session.greedy_tail(gpu, key)?;
            }
        }
    }
    Ok(shape.cache_rows as u64 * language_model.cache_row_bytes())
}

/// The programs of `batch` images at a time with `positions` positions each, recorded but not finished: image encoder,
/// Q-Former, prefill, a step of the decoder. Only their shapes matter.
pub(super) fn outlines<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    batch: usize,
    positions: usize,
) -> Result<[ProgramBuilder<'gpu>; 4], GpuError> {
    Ok([
        vit_outline(gpu, model, batch)?,
        qformer_outline(gpu, model, batch)?,
        prefill_outline(gpu, model, batch * positions, batch)?,
        decode_outline(gpu, model, batch)?,
    ])
}

fn vit_outline<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    batch: usize,
) -> Result<ProgramBuilder<'gpu>, GpuError> {
    let mut program = ProgramBuilder::new(gpu, "plan").with_products();
    let small = gpu.storage("plan", 16)?;
    let pixels = 3 * model.vit.image_size() * model.vit.image_size();
    let pixels = Activation::external(&small, batch, pixels);
    let tokens = model.vit.forward(&mut program, &pixels)?;
    crate::kernels::copy(&mut program, &tokens, &small);
    Ok(program)
}

fn qformer_outline<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    batch: usize,
) -> Result<ProgramBuilder<'gpu>, GpuError> {
    let mut program = ProgramBuilder::new(gpu, "plan").with_products();
    let small = gpu.storage("plan", 16)?;
    let tokens = Activation::external(&small, batch * model.vit.tokens(), model.vit.hidden_size());
    let visual = model.query_images(&mut program, &tokens, batch)?;
    crate::kernels::copy(&mut program, &visual, &small);
    Ok(program)
}

/// Prompts of `rows` rows in all.
fn prefill_outline<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    rows: usize,
    prompts: usize,
) -> Result<ProgramBuilder<'gpu>, GpuError> {
    language_outline(gpu, model, prompts, |program, small, inputs| {
        let prompt_rows = InputRows {
            count: rows,
            ..*inputs
        };
        let ends = PromptEnds {
            count: prompts,
            last_rows: small,
            start_tokens: small,
            start_info: small,
        };
        model.language_model.prefill(program, &prompt_rows, &ends)
    })
}

/// One decode step of `rows` rows.
fn decode_outline<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    rows: usize,
) -> Result<ProgramBuilder<'gpu>, GpuError> {
    language_outline(gpu, model, rows, |program, _, inputs| {
        model.language_model.decode(program, inputs)
    })
}

/// What `record` makes of `rows` rows of input, and of its logits. Its second argument is a small buffer.
fn language_outline<'gpu>(
    gpu: &'gpu Gpu,
    model: &Blip2Model,
    rows: usize,
    record: impl FnOnce(&mut ProgramBuilder, &wgpu::Buffer, &InputRows) -> Activation,
) -> Result<ProgramBuilder<'gpu>, GpuError> {
    let mut program = ProgramBuilder::new(gpu, "plan").with_products();
    let small = gpu.storage("plan", 16)?;
    let language_model = &model.language_model;
    let inputs = InputRows {
        tokens: &small,
        count: rows,
        visual: &Activation::external(&small, 1, language_model.hidden_size()),
        cache: &language_model.kv_cache(gpu, 0)?,
        pages: &Pages {
            row_info: small.clone(),
            page_table: small.clone(),
            max_length: 1,
        },
        prompt_lengths: &small,
    };
    let hidden = record(&mut program, &small, &inputs);
    let logits = Activation::external(&small, rows, language_model.vocabulary());
    language_model.logits(&mut program, &hidden, &logits);
    Ok(program)
}
