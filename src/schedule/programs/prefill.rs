//! Prompts into the cache: input rows → the logits of each prompt's first token.

use crate::gpu::{ActivationPool, Gpu, GpuError, Program};
use crate::kernels::INACTIVE;
use crate::model::{InputRows, PromptEnds};
use crate::schedule::sequence::Prompt;

use super::decode::LanguageSide;
use super::image::Keep;

/// A recorded prefill of some input rows that ends in a row of logits for each prompt.
#[derive(Debug)]
pub(in crate::schedule) struct Prefill {
    tokens: wgpu::Buffer,
    row_info: wgpu::Buffer,
    last_rows: wgpu::Buffer,
    start_tokens: wgpu::Buffer,
    start_info: wgpu::Buffer,
    /// Input rows.
    rows: usize,
    /// Rows of logits.
    pub prompts: usize,
    pub program: Program,
}

impl Prefill {
    /// Records `prompts` prompts of `rows` rows in all.
    pub(in crate::schedule) fn record(
        gpu: &Gpu,
        side: LanguageSide<'_>,
        rows: usize,
        prompts: usize,
        keep: Keep,
        pool: &ActivationPool,
    ) -> Result<Self, GpuError> {
        let words = |label: &str, count: usize| gpu.storage(label, count as u64 * 4);
        let tokens = words("prefill tokens", rows)?;
        let row_info = words("prefill rows", 2 * rows)?;
        let last_rows = words("last rows", prompts)?;
        let start_tokens = words("start tokens", prompts)?;
        let start_info = words("start rows", 2 * prompts)?;
        let mut program = keep.builder(gpu, "prefill");
        let inputs = InputRows {
            tokens: &tokens,
            count: rows,
            visual: side.visual,
            cache: side.cache,
            pages: &side.tables.pages(&row_info),
            prompt_lengths: &side.tables.prompt_lengths,
        };
        let ends = PromptEnds {
            count: prompts,
            last_rows: &last_rows,
            start_tokens: &start_tokens,
            start_info: &start_info,
        };
        let last = side.model.prefill(&mut program, &inputs, &ends);
        let logits = side.logits.reshaped(prompts, side.logits.columns);
        side.model.logits(&mut program, &last, &logits);
        Ok(Self {
            tokens,
            row_info,
            last_rows,
            start_tokens,
            start_info,
            rows,
            prompts,
            program: program.finish(pool)?,
        })
    }

    /// Writes the inputs: the prompts one after another, then rows that do nothing. The last position of prompt `i` gets
    /// row `i` of the logits.
    pub(in crate::schedule) fn write<'a>(
        &self,
        gpu: &Gpu,
        prompts: impl Iterator<Item = &'a Prompt>,
    ) {
        let mut tokens = Vec::with_capacity(self.rows);
        let mut row_info = Vec::with_capacity(self.rows);
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
        tokens.resize(self.rows, 0);
        row_info.resize(self.rows, [0, INACTIVE]);
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
