//! Decoding state on the device: cache, tables of the rows, and the recorded programs over them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program, ProgramBuilder};
use crate::kernels::{INACTIVE, Pages, VISUAL, write_row_rules};
use crate::model::{Blip2Model, InputRows, KvCache, PromptEnds};

use super::encode::ImageStore;
use super::job::Job;
use super::tails::{CandidateTail, GreedyTail, TailKey};

/// Prefill programs that are kept; beyond, all go.
const MAX_PREFILLS: usize = 32;

/// Sizes of a session.
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
    /// Rounded up, so that similar requests share a session.
    pub(super) fn rounded(self, max_positions: usize) -> Self {
        Self {
            rows: self.rows,
            max_length: self
                .max_length
                .next_power_of_two()
                .max(64)
                .min(max_positions),
            cache_rows: self.cache_rows.next_multiple_of(32),
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

/// A prompt: its image's query rows, then text, and behind an encoder the token that the decoder begins with.
#[derive(Debug, Clone)]
pub(super) struct Prompt {
    /// First row of its image in the image store.
    pub visual_row: usize,
    /// Visual rows in front of the text.
    pub visual_count: usize,
    /// Text ids, with the special tokens that they begin or end with.
    pub text: Vec<u32>,
    /// The decoder's first token, where an encoder reads image and text.
    pub decoder_start: Option<u32>,
}

impl Prompt {
    /// Positions it fills.
    pub(super) fn len(&self) -> usize {
        self.input_len() + usize::from(self.decoder_start.is_some())
    }

    /// Positions of image and text.
    fn input_len(&self) -> usize {
        self.visual_count + self.text.len()
    }

    /// Input rows: visual references, then token ids.
    fn inputs(&self) -> impl Iterator<Item = u32> {
        let visual =
            (self.visual_row..self.visual_row + self.visual_count).map(|row| VISUAL | row as u32);
        visual.chain(self.text.iter().copied())
    }
}

/// What the kernels look up for each row of logits: there is one set for prompts being prefilled and one for rows
/// being decoded.
#[derive(Debug)]
pub(super) struct Tables {
    shape: Shape,
    /// Cache row of each position, u32 `[rows, max_length]`.
    page_table: wgpu::Buffer,
    /// Positions of image and text, which an encoder reads, u32 `[rows]`.
    prompt_lengths: wgpu::Buffer,
    /// `(history length, new tokens)` `[rows]`.
    pub row_state: wgpu::Buffer,
    /// Ids that the score processors count as said, u32 `[rows, max_length]`.
    pub history: wgpu::Buffer,
    /// How the row's scores are processed and when it ends, u32 `[rows, rules_stride]`.
    pub rules: wgpu::Buffer,
}

/// A row of the tables: a sequence of a job.
pub(super) type TableRow<'a> = (&'a Job, usize);

impl Tables {
    fn new(gpu: &Gpu, shape: Shape) -> Result<Self, GpuError> {
        let words = |label: &str, count: usize| gpu.storage(label, (shape.rows * count) as u64 * 4);
        Ok(Self {
            page_table: words("page_table", shape.max_length)?,
            prompt_lengths: words("prompt_lengths", 1)?,
            row_state: words("row_state", 2)?,
            history: words("history", shape.max_length)?,
            rules: words("rules", shape.rules_stride)?,
            shape,
        })
    }

    /// Writes everything about `rows`.
    pub(super) fn write(&self, gpu: &Gpu, rows: &[TableRow]) {
        self.write_pages(gpu, rows);
        self.write_history(gpu, rows);
        let stride = self.shape.rules_stride;
        let mut rules = vec![0; rows.len() * stride];
        for (words, (job, _)) in rules.chunks_mut(stride).zip(rows) {
            write_row_rules(words, &job.options);
        }
        gpu.write(&self.rules, 0, &rules);
    }

    /// Writes where the keys and values of `rows` lie.
    pub(super) fn write_pages(&self, gpu: &Gpu, rows: &[TableRow]) {
        let stride = self.shape.max_length;
        let mut table = vec![0; rows.len() * stride];
        for (entries, (job, sequence)) in table.chunks_mut(stride).zip(rows) {
            for (entry, page) in entries.iter_mut().zip(job.pages_of(*sequence)) {
                *entry = page;
            }
        }
        gpu.write(&self.page_table, 0, &table);
        let lengths = rows.iter().map(|(job, _)| job.prompt.input_len() as u32);
        gpu.write(&self.prompt_lengths, 0, &lengths.collect::<Vec<_>>());
    }

    /// Writes what `rows` have said.
    pub(super) fn write_history(&self, gpu: &Gpu, rows: &[TableRow]) {
        let stride = self.shape.max_length;
        let mut history = vec![0; rows.len() * stride];
        let mut state = Vec::with_capacity(rows.len());
        for (words, (job, sequence)) in history.chunks_mut(stride).zip(rows) {
            let (before, new) = job.said(*sequence);
            for (word, &token) in words.iter_mut().zip(before.iter().chain(new)) {
                *word = token;
            }
            state.push([(before.len() + new.len()) as u32, new.len() as u32]);
        }
        gpu.write(&self.history, 0, &history);
        gpu.write(&self.row_state, 0, &state);
    }
}

/// Device state for decoding up to `shape.rows` sequences side by side.
#[derive(Debug)]
pub(super) struct Session {
    pub shape: Shape,
    pub images: ImageStore,
    cache: KvCache,
    /// Of the prompts being prefilled, a row a prompt.
    prompts: Tables,
    /// Of the sequences being decoded.
    pub decoding: Tables,
    /// Input token of each decode row.
    pub tokens: wgpu::Buffer,
    /// `(row of the tables, position)` of each decode row.
    pub row_info: wgpu::Buffer,
    /// `[rows, vocabulary]` of the last step.
    logits: Activation,
    /// One decode step, tokens → logits, by number of rows.
    decodes: HashMap<usize, Arc<Program>>,
    /// By input rows and prompts.
    prefills: HashMap<(usize, usize), Arc<Prefill>>,
    greedy_tails: HashMap<TailKey, Arc<GreedyTail>>,
    candidate_tails: HashMap<TailKey, Arc<CandidateTail>>,
    pool: Arc<ActivationPool>,
}

/// A recorded prefill of some input rows that ends in a row of logits for each prompt.
#[derive(Debug)]
pub(super) struct Prefill {
    tokens: wgpu::Buffer,
    row_info: wgpu::Buffer,
    last_rows: wgpu::Buffer,
    start_tokens: wgpu::Buffer,
    start_info: wgpu::Buffer,
    /// Rows of logits.
    pub prompts: usize,
    pub program: Program,
}

impl Session {
    /// Allocates the state.
    pub(super) fn new(
        gpu: &Gpu,
        model: &Blip2Model,
        shape: Shape,
        pool: &Arc<ActivationPool>,
    ) -> Result<Self, GpuError> {
        let words = |label: &str, count: usize| gpu.storage(label, count as u64 * 4);
        let language_model = &model.language_model;
        let vocabulary = language_model.vocabulary();
        let logits = words("logits", shape.rows * vocabulary)?;
        let session = Self {
            images: ImageStore::new(gpu, model, shape.images)?,
            cache: language_model.kv_cache(gpu, shape.cache_rows)?,
            prompts: Tables::new(gpu, shape)?,
            decoding: Tables::new(gpu, shape)?,
            tokens: words("tokens", shape.rows)?,
            row_info: words("row_info", 2 * shape.rows)?,
            logits: Activation::external(&logits, shape.rows, vocabulary),
            decodes: HashMap::new(),
            prefills: HashMap::new(),
            greedy_tails: HashMap::new(),
            candidate_tails: HashMap::new(),
            pool: Arc::clone(pool),
            shape,
        };
        gpu.check("making room for decoding")?;
        Ok(session)
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
        let language_model = &model.language_model;
        let mut program = ProgramBuilder::new(gpu, "decode");
        let pages = Pages {
            row_info: self.row_info.clone(),
            page_table: self.decoding.page_table.clone(),
            max_length: self.shape.max_length,
        };
        let inputs = InputRows {
            tokens: &self.tokens,
            count: rows,
            visual: self.images.visual(),
            cache: &self.cache,
            pages: &pages,
            prompt_lengths: &self.decoding.prompt_lengths,
        };
        let hidden = language_model.decode(&mut program, &inputs);
        let logits = self.logits.reshaped(rows, self.logits.columns);
        language_model.logits(&mut program, &hidden, &logits);
        let program = Arc::new(program.finish(&self.pool)?);
        self.decodes.insert(rows, Arc::clone(&program));
        Ok(program)
    }

    /// The end of a greedy step.
    pub(super) fn greedy_tail(
        &mut self,
        gpu: &Gpu,
        key: TailKey,
    ) -> Result<Arc<GreedyTail>, GpuError> {
        if let Some(tail) = self.greedy_tails.get(&key) {
            return Ok(Arc::clone(tail));
        }
        let tail = Arc::new(GreedyTail::record(gpu, self, key)?);
        self.greedy_tails.insert(key, Arc::clone(&tail));
        Ok(tail)
    }

    /// The end of a step whose tokens the host chooses.
    pub(super) fn candidate_tail(
        &mut self,
        gpu: &Gpu,
        key: TailKey,
    ) -> Result<Arc<CandidateTail>, GpuError> {
        if let Some(tail) = self.candidate_tails.get(&key) {
            return Ok(Arc::clone(tail));
        }
        let tail = Arc::new(CandidateTail::record(gpu, self, key)?);
        self.candidate_tails.insert(key, Arc::clone(&tail));
        Ok(tail)
    }

    /// The logits of the first `rows` rows, and the tables that say how to process them.
    pub(super) fn logits(&self, key: &TailKey) -> (Activation, &Tables) {
        let tables = if key.is_prefill {
            &self.prompts
        } else {
            &self.decoding
        };
        (self.logits.reshaped(key.rows, self.logits.columns), tables)
    }

    /// Writes the inputs of a prefill of `jobs` and returns its program; the last position of job `i` gets row `i` of
    /// the logits.
    pub(super) fn prefill(
        &mut self,
        gpu: &Gpu,
        model: &Blip2Model,
        jobs: &[Job],
    ) -> Result<Arc<Prefill>, GpuError> {
        let used: usize = jobs.iter().map(|job| job.prompt.input_len()).sum();
        // Few different programs, at most an eighth of them for nothing.
        let step = (used.next_power_of_two() / 16).max(8);
        let rows = used.next_multiple_of(step);
        let prompts = jobs.len().next_power_of_two().min(self.shape.rows);
        let prefill = match self.prefills.get(&(rows, prompts)) {
            Some(prefill) => Arc::clone(prefill),
            None => {
                if self.prefills.len() >= MAX_PREFILLS {
                    self.prefills.clear();
                }
                let recorded = Arc::new(self.record_prefill(gpu, model, rows, prompts, false)?);
                self.prefills.insert((rows, prompts), Arc::clone(&recorded));
                recorded
            }
        };
        let table_rows: Vec<TableRow> = jobs.iter().map(|job| (job, 0)).collect();
        self.prompts.write(gpu, &table_rows);
        prefill.write(gpu, jobs.iter().map(|job| &job.prompt), rows);
        Ok(prefill)
    }

    /// Runs `prompt` alone with every stage kept.
    pub(super) fn prefill_with_stages(
        &mut self,
        gpu: &Gpu,
        model: &Blip2Model,
        prompt: &Prompt,
    ) -> Result<Prefill, GpuError> {
        let rows = prompt.input_len();
        let prefill = self.record_prefill(gpu, model, rows, 1, true)?;
        let table: Vec<u32> = (0..prompt.len() as u32).collect();
        gpu.write(&self.prompts.page_table, 0, &table);
        gpu.write(&self.prompts.prompt_lengths, 0, &[rows as u32]);
        prefill.write(gpu, [prompt].into_iter(), rows);
        prefill.program.run(gpu);
        Ok(prefill)
    }

    fn record_prefill(
        &self,
        gpu: &Gpu,
        model: &Blip2Model,
        rows: usize,
        prompts: usize,
        keep_stages: bool,
    ) -> Result<Prefill, GpuError> {
        let words = |label: &str, count: usize| gpu.storage(label, count as u64 * 4);
        let tokens = words("prefill tokens", rows)?;
        let row_info = words("prefill rows", 2 * rows)?;
        let last_rows = words("last rows", prompts)?;
        let start_tokens = words("start tokens", prompts)?;
        let start_info = words("start rows", 2 * prompts)?;
        let pages = Pages {
            row_info: row_info.clone(),
            page_table: self.prompts.page_table.clone(),
            max_length: self.shape.max_length,
        };
        let mut program = ProgramBuilder::new(gpu, "prefill");
        if keep_stages {
            program = program.with_taps();
        }
        let inputs = InputRows {
            tokens: &tokens,
            count: rows,
            visual: self.images.visual(),
            cache: &self.cache,
            pages: &pages,
            prompt_lengths: &self.prompts.prompt_lengths,
        };
        let ends = PromptEnds {
            count: prompts,
            last_rows: &last_rows,
            start_tokens: &start_tokens,
            start_info: &start_info,
        };
        let language_model = &model.language_model;
        let last = language_model.prefill(&mut program, &inputs, &ends);
        let logits = self.logits.reshaped(prompts, self.logits.columns);
        language_model.logits(&mut program, &last, &logits);
        Ok(Prefill {
            tokens,
            row_info,
            last_rows,
            start_tokens,
            start_info,
            prompts,
            program: program.finish(&self.pool)?,
        })
    }
}

impl Prefill {
    /// Writes the inputs: the prompts one after another, then rows that do nothing up to `rows`.
    fn write<'a>(&self, gpu: &Gpu, prompts: impl Iterator<Item = &'a Prompt>, rows: usize) {
        let mut tokens = Vec::with_capacity(rows);
        let mut row_info = Vec::with_capacity(rows);
        let mut last_rows = Vec::with_capacity(self.prompts);
        let mut start_tokens = Vec::with_capacity(self.prompts);
        let mut start_info = Vec::with_capacity(self.prompts);
        for (sequence, prompt) in (0_u32..).zip(prompts) {
            let length = prompt.input_len() as u32;
            row_info.extend((0..length).map(|position| [sequence, position]));
            tokens.extend(prompt.inputs());
            last_rows.push(tokens.len() as u32 - 1);
            start_tokens.push(prompt.decoder_start.unwrap_or(0));
            start_info.push([sequence, length]);
        }
        tokens.resize(rows, 0);
        row_info.resize(rows, [0, INACTIVE]);
        last_rows.resize(self.prompts, 0);
        start_tokens.resize(self.prompts, 0);
        start_info.resize(self.prompts, [0, INACTIVE]);
        gpu.write(&self.tokens, 0, &tokens);
        gpu.write(&self.row_info, 0, &row_info);
        gpu.write(&self.last_rows, 0, &last_rows);
        gpu.write(&self.start_tokens, 0, &start_tokens);
        gpu.write(&self.start_info, 0, &start_info);
    }
}
