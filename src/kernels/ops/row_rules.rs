//! `shared/row_rules.wgsl`: how the scores of a row are processed and when it ends, as the shaders read it.

/// Words in front of the lists.
const LISTS: usize = 8;

/// How a row's scores are processed, and when it ends.
#[derive(Debug, Clone, Copy)]
pub struct RowRules<'a> {
    /// Whether scores become log-probabilities before they are processed.
    pub is_normalised: bool,
    /// Repetition penalty; 1 is none.
    pub repetition_penalty: f32,
    /// Length of the runs that may not repeat; 0 is any.
    pub no_repeat_ngram_size: usize,
    /// End tokens are masked below this many new ones.
    pub min_new_tokens: usize,
    /// A row of so many new tokens ends.
    pub max_new_tokens: usize,
    /// The tokens that end the row.
    pub eos_token_ids: &'a [u32],
    /// Tokens that are always masked.
    pub suppress_tokens: &'a [u32],
}

impl RowRules<'_> {
    /// Words of a row that hold the rules.
    #[must_use]
    pub fn words(&self) -> usize {
        LISTS + self.eos_token_ids.len() + self.suppress_tokens.len()
    }

    /// Writes the rules into `row`, which has at least [`RowRules::words`] words.
    pub fn write(&self, row: &mut [u32]) {
        let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let ends = self.eos_token_ids.len();
        row[..LISTS].copy_from_slice(&[
            u32::from(self.is_normalised),
            self.repetition_penalty.to_bits(),
            word(self.no_repeat_ngram_size),
            word(self.min_new_tokens),
            word(self.max_new_tokens),
            word(ends),
            word(self.suppress_tokens.len()),
            0,
        ]);
        let lists = &mut row[LISTS..];
        lists[..ends].copy_from_slice(self.eos_token_ids);
        lists[ends..][..self.suppress_tokens.len()].copy_from_slice(self.suppress_tokens);
    }
}

/// A row for each of `rules`, for tests of the kernels that read them: the words and their stride.
#[cfg(test)]
pub(super) fn rows_of<'a, R: 'a>(rules: &'a [R]) -> (Vec<u32>, usize)
where
    RowRules<'a>: From<&'a R>,
{
    let rules: Vec<RowRules> = rules.iter().map(RowRules::from).collect();
    let stride = rules.iter().map(RowRules::words).max().unwrap_or(LISTS) + 3;
    let mut words = vec![77; rules.len() * stride];
    for (row, rules) in words.chunks_mut(stride).zip(rules) {
        rules.write(row);
    }
    (words, stride)
}
