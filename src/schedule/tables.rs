//! What the kernels look up for each row, on the device.

use crate::generate::GenerationOptions;
use crate::gpu::{Gpu, GpuError};
use crate::kernels::{INACTIVE, Pages, RowRules};

use super::sequence::SequenceGroup;

/// A beam search works on log-probabilities, which its score processors see; greedy search and sampling work on logits, as
/// in transformers' `generate`.
impl<'a> From<&'a GenerationOptions> for RowRules<'a> {
    fn from(options: &'a GenerationOptions) -> Self {
        Self {
            is_normalised: options.num_beams > 1,
            repetition_penalty: options.repetition_penalty as f32,
            no_repeat_ngram_size: options.no_repeat_ngram_size,
            min_new_tokens: options.min_new_tokens,
            max_new_tokens: options.max_new_tokens,
            eos_token_ids: &options.eos_token_ids,
            suppress_tokens: &options.suppress_tokens,
            begin_suppress_tokens: &options.begin_suppress_tokens,
            begin: usize::from(options.forced_bos_token_id.is_some()),
            forced_first: options.forced_bos_token_id.as_slice(),
            forced_last: &options.forced_eos_token_ids,
            biased_runs: (options.sequence_bias.iter())
                .map(|run| (run.tokens.as_slice(), run.bias))
                .collect(),
            bad_runs: (options.bad_words_ids.iter())
                .filter(|word| !matches!(word[..], [end] if options.eos_token_ids.contains(&end)))
                .map(Vec::as_slice)
                .collect(),
        }
    }
}

/// Words of a row of rules that hold those of `options`.
pub(super) fn rules_words(options: &GenerationOptions) -> usize {
    RowRules::from(options).words()
}

/// Of each row of logits: where its keys and values lie, what it has said, and its rules. There is one set for prompts
/// being prefilled and one for sequences being decoded.
#[derive(Debug)]
pub(super) struct RowTables {
    /// Most positions of a row.
    pub max_length: usize,
    /// Words of a row's rules.
    pub rules_stride: usize,
    /// Cache row of each position, u32 `[rows, max_length]`.
    page_table: wgpu::Buffer,
    /// Positions of image and text, which an encoder reads, u32 `[rows]`.
    pub prompt_lengths: wgpu::Buffer,
    /// `(history length, new tokens)` `[rows]`.
    pub row_state: wgpu::Buffer,
    /// Ids that the score processors count as said, u32 `[rows, max_length]`.
    pub history: wgpu::Buffer,
    /// How the row's scores are processed and when it ends, u32 `[rows, rules_stride]`.
    pub rules: wgpu::Buffer,
}

/// A row of the tables: a sequence of a group.
pub(super) type TableRow<'a> = (&'a SequenceGroup, usize);

impl RowTables {
    pub(super) fn new(
        gpu: &Gpu,
        rows: usize,
        max_length: usize,
        rules_stride: usize,
    ) -> Result<Self, GpuError> {
        let words = |label: &str, count: usize| gpu.storage(label, (rows * count) as u64 * 4);
        Ok(Self {
            max_length,
            rules_stride,
            page_table: words("page_table", max_length)?,
            prompt_lengths: words("prompt_lengths", 1)?,
            row_state: words("row_state", 2)?,
            history: words("history", max_length)?,
            rules: words("rules", rules_stride)?,
        })
    }

    /// The cache rows of inputs whose rows and positions are in `row_info`.
    pub(super) fn pages(&self, row_info: &wgpu::Buffer) -> Pages {
        Pages {
            row_info: row_info.clone(),
            page_table: self.page_table.clone(),
            max_length: self.max_length,
        }
    }

    /// Writes everything about `rows`.
    pub(super) fn write(&self, gpu: &Gpu, rows: &[TableRow]) {
        self.write_pages(gpu, rows);
        self.write_history(gpu, rows);
        let stride = self.rules_stride;
        let mut rules = vec![0; rows.len() * stride];
        for (words, (group, _)) in rules.chunks_mut(stride).zip(rows) {
            RowRules::from(&*group.options).write(words);
        }
        gpu.write(&self.rules, 0, &rules);
    }

    /// Writes where the keys and values of `rows` lie.
    pub(super) fn write_pages(&self, gpu: &Gpu, rows: &[TableRow]) {
        let stride = self.max_length;
        let mut table = vec![0; rows.len() * stride];
        for (entries, (group, sequence)) in table.chunks_mut(stride).zip(rows) {
            for (entry, page) in entries.iter_mut().zip(group.pages_of(*sequence)) {
                *entry = page;
            }
        }
        gpu.write(&self.page_table, 0, &table);
        let lengths = rows
            .iter()
            .map(|(group, _)| group.prompt.input_len() as u32);
        gpu.write(&self.prompt_lengths, 0, &lengths.collect::<Vec<_>>());
    }

    /// Writes of one sequence, whose prompt has `input_len` rows, that position `i` lies in cache row `i`.
    pub(super) fn write_plain(&self, gpu: &Gpu, positions: usize, input_len: usize) {
        let table: Vec<u32> = (0..positions as u32).collect();
        gpu.write(&self.page_table, 0, &table);
        gpu.write(&self.prompt_lengths, 0, &[input_len as u32]);
    }

    /// Writes what `rows` have said.
    pub(super) fn write_history(&self, gpu: &Gpu, rows: &[TableRow]) {
        let stride = self.max_length;
        let mut history = vec![0; rows.len() * stride];
        let mut state = Vec::with_capacity(rows.len());
        for (words, (group, sequence)) in history.chunks_mut(stride).zip(rows) {
            let (before, new) = group.said(*sequence);
            for (word, &token) in words.iter_mut().zip(before.iter().chain(new)) {
                *word = token;
            }
            state.push([(before.len() + new.len()) as u32, new.len() as u32]);
        }
        gpu.write(&self.history, 0, &history);
        gpu.write(&self.row_state, 0, &state);
    }
}

/// Of each row of a decode step: its input, and where that stands.
#[derive(Debug)]
pub(super) struct StepTables {
    /// Input tokens.
    pub tokens: wgpu::Buffer,
    /// `(row of the tables, position)`.
    pub row_info: wgpu::Buffer,
}

impl StepTables {
    pub(super) fn new(gpu: &Gpu, rows: usize) -> Result<Self, GpuError> {
        Ok(Self {
            tokens: gpu.storage("tokens", rows as u64 * 4)?,
            row_info: gpu.storage("row_info", rows as u64 * 8)?,
        })
    }

    /// Writes that the only row is `token`, at `position`.
    pub(super) fn write_plain(&self, gpu: &Gpu, token: u32, position: usize) {
        gpu.write(&self.tokens, 0, &[token]);
        gpu.write(&self.row_info, 0, &[[0, position as u32]]);
    }

    /// Writes inputs and positions of `table_rows`, and that further rows up to `rows` do nothing.
    pub(super) fn write(&self, gpu: &Gpu, table_rows: &[TableRow], rows: usize) {
        let mut tokens = vec![0; rows];
        let mut row_info = vec![[0, INACTIVE]; rows];
        for (row, (group, sequence)) in table_rows.iter().enumerate() {
            tokens[row] = group.input(*sequence);
            row_info[row] = [row as u32, group.position(*sequence) as u32];
        }
        gpu.write(&self.tokens, 0, &tokens);
        gpu.write(&self.row_info, 0, &row_info);
    }
}
