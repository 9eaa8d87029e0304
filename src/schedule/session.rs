//! Decoding state on the device: cache, page table, rows, and the recorded programs over them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program, ProgramBuilder};
use crate::kernels::{INACTIVE, Pages, VISUAL, gather_rows};
use crate::model::{Blip2Model, KvCache};

/// Sizes of a session. Rounded up by [`Shape::rounded`] so that similar requests share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Sequences decoded at once: requests × beams.
    pub rows: usize,
    /// Most positions of a sequence.
    pub max_length: usize,
    /// Physical rows of the cache.
    pub cache_rows: usize,
}

impl Shape {
    /// Lengths in steps of 32.
    pub(super) fn rounded(
        rows: usize,
        max_length: usize,
        cache_rows: usize,
        max_positions: usize,
    ) -> Self {
        let up = |value: usize| value.next_multiple_of(32);
        Self {
            rows,
            max_length: up(max_length).min(max_positions),
            cache_rows: up(cache_rows),
        }
    }
}

/// A prompt in the session's first row numbering.
#[derive(Debug, Clone)]
pub(super) struct Prompt {
    /// First row of its image in the visual rows.
    pub visual_row: usize,
    /// Visual rows in front of the text.
    pub visual_count: usize,
    /// Text ids, BOS included.
    pub text: Vec<u32>,
}

impl Prompt {
    /// Positions it fills.
    pub(super) fn len(&self) -> usize {
        self.visual_count + self.text.len()
    }

    /// Input rows: visual references, then token ids.
    fn inputs(&self) -> impl Iterator<Item = u32> {
        let visual =
            (self.visual_row..self.visual_row + self.visual_count).map(|row| VISUAL | row as u32);
        visual.chain(self.text.iter().copied())
    }
}

/// Device state for decoding `shape.rows` sequences side by side.
#[derive(Debug)]
pub(super) struct Session {
    pub shape: Shape,
    pub cache: KvCache,
    /// `(sequence, position)` of each decode row, and the page table `[rows, max_length]`.
    pub pages: Pages,
    /// Input token of each decode row.
    pub tokens: wgpu::Buffer,
    /// `(history length, new tokens)` of each decode row.
    pub row_state: wgpu::Buffer,
    /// Prompt and generated ids of each decode row, `[rows, max_length]`.
    pub history: wgpu::Buffer,
    /// `[rows, vocabulary]` of the last step.
    pub logits: Activation,
    /// One decode step: tokens → logits.
    pub decode: Program,
    /// By input rows, prompts and visual rows: each batch size of the image encoder has its own output.
    prefills: HashMap<(usize, usize, usize), Arc<Prefill>>,
    pool: Arc<ActivationPool>,
}

/// A recorded prefill of `rows` input rows that ends in `prompts` rows of logits.
#[derive(Debug)]
pub(super) struct Prefill {
    tokens: wgpu::Buffer,
    row_info: wgpu::Buffer,
    last_rows: wgpu::Buffer,
    pub program: Program,
}

impl Session {
    /// Allocates the state and records the decode step.
    pub(super) fn new(
        gpu: &Gpu,
        model: &Blip2Model,
        shape: Shape,
        pool: &Arc<ActivationPool>,
    ) -> Result<Self, GpuError> {
        let words = |label: &str, count: usize| gpu.storage(label, count as u64 * 4);
        let Shape {
            rows,
            max_length,
            cache_rows,
        } = shape;
        let opt = &model.opt;
        let vocabulary = opt.vocabulary();
        let cache = opt.kv_cache(gpu, cache_rows)?;
        let pages = Pages {
            row_info: words("row_info", 2 * rows)?,
            page_table: words("page_table", rows * max_length)?,
            max_length,
        };
        let tokens = words("tokens", rows)?;
        let logits = words("logits", rows * vocabulary)?;
        let logits = Activation::external(&logits, rows, vocabulary);

        let mut program = ProgramBuilder::new(gpu, "decode");
        // No visual rows while decoding: the binding needs some buffer of the right shape.
        let no_visual = Activation::external(
            &words("no visual rows", opt.hidden_size())?,
            1,
            opt.hidden_size(),
        );
        let hidden = opt.forward(&mut program, &tokens, rows, &no_visual, &cache, &pages);
        opt.logits(&mut program, &hidden, &logits);
        let decode = program.finish(pool)?;
        Ok(Self {
            shape,
            cache,
            pages,
            tokens,
            row_state: words("row_state", 2 * rows)?,
            history: words("history", rows * max_length)?,
            logits,
            decode,
            prefills: HashMap::new(),
            pool: Arc::clone(pool),
        })
    }

    /// Physical rows of the cache.
    pub(super) fn cache_rows(&self) -> usize {
        self.cache.rows()
    }

    /// Writes the inputs of a prefill of `prompts` and returns its program; prompt `i` is sequence
    /// `i · rows_per_prompt` and gets row `i` of the logits.
    pub(super) fn prefill(
        &mut self,
        gpu: &Gpu,
        model: &Blip2Model,
        visual: &Activation,
        prompts: &[Prompt],
        rows_per_prompt: usize,
        keep_stages: bool,
    ) -> Result<Arc<Prefill>, GpuError> {
        let used: usize = prompts.iter().map(Prompt::len).sum();
        // Rows in steps of 8: prompts of nearly equal length share a program.
        let rows = if keep_stages {
            used
        } else {
            used.next_multiple_of(8)
        };
        let key = (rows, prompts.len(), visual.rows);
        let prefill = match self.prefills.get(&key) {
            Some(prefill) if !keep_stages => Arc::clone(prefill),
            _ => {
                let recorded =
                    self.record_prefill(gpu, model, visual, (rows, prompts.len()), keep_stages)?;
                let recorded = Arc::new(recorded);
                self.prefills.insert(key, Arc::clone(&recorded));
                recorded
            }
        };
        let mut tokens = Vec::with_capacity(rows);
        let mut row_info = Vec::with_capacity(rows);
        let mut last_rows = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.iter().enumerate() {
            let sequence = (index * rows_per_prompt) as u32;
            row_info.extend((0..prompt.len() as u32).map(|position| [sequence, position]));
            tokens.extend(prompt.inputs());
            last_rows.push(tokens.len() as u32 - 1);
        }
        tokens.resize(rows, 0);
        row_info.resize(rows, [0, INACTIVE]);
        gpu.write(&prefill.tokens, 0, &tokens);
        gpu.write(&prefill.row_info, 0, &row_info);
        gpu.write(&prefill.last_rows, 0, &last_rows);
        Ok(prefill)
    }

    fn record_prefill(
        &self,
        gpu: &Gpu,
        model: &Blip2Model,
        visual: &Activation,
        (rows, prompts): (usize, usize),
        keep_stages: bool,
    ) -> Result<Prefill, GpuError> {
        let words = |label: &str, count: usize| gpu.storage(label, count as u64 * 4);
        let tokens = words("prefill tokens", rows)?;
        let row_info = words("prefill rows", 2 * rows)?;
        let last_rows = words("last rows", prompts)?;
        let pages = Pages {
            row_info: row_info.clone(),
            ..self.pages.clone()
        };
        let mut program = ProgramBuilder::new(gpu, "prefill");
        if keep_stages {
            program = program.with_taps();
        }
        let opt = &model.opt;
        let hidden = opt.forward(&mut program, &tokens, rows, visual, &self.cache, &pages);
        let last = gather_rows(&mut program, &hidden, &last_rows, prompts);
        let logits = self.logits.reshaped(prompts, opt.vocabulary());
        opt.logits(&mut program, &last, &logits);
        Ok(Prefill {
            tokens,
            row_info,
            last_rows,
            program: program.finish(&self.pool)?,
        })
    }
}
