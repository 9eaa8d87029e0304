//! `shared/row_rules.wgsl`: how the scores of a row are processed and when it ends, as the shaders read it.

/// Words in front of the lists.
const LISTS: usize = 14;

/// How a row's scores are processed, and when it ends.
#[derive(Debug, Clone)]
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
    /// Tokens that are masked where `begin` new tokens were said.
    pub begin_suppress_tokens: &'a [u32],
    /// New tokens before the first that the scores choose: 1 where it is forced.
    pub begin: usize,
    /// The first token; empty: any.
    pub forced_first: &'a [u32],
    /// Tokens of which the last is one; empty: any.
    pub forced_last: &'a [u32],
    /// Runs with what is added to the score of their last token where the others were said.
    pub biased_runs: Vec<(&'a [u32], f32)>,
    /// Runs whose last token is masked where the others were said.
    pub bad_runs: Vec<&'a [u32]>,
}

impl RowRules<'_> {
    /// Words of a row that hold the rules.
    #[must_use]
    pub fn words(&self) -> usize {
        let biased = self.biased_runs.iter().map(|(run, _)| run.len());
        let runs = biased.chain(self.bad_runs.iter().map(|run| run.len()));
        let lists = self.lists().map(<[u32]>::len);
        LISTS + lists.iter().sum::<usize>() + runs.map(|run| 2 + run).sum::<usize>()
    }

    /// The lists, in the order in which they stand.
    fn lists(&self) -> [&[u32]; 5] {
        [
            self.eos_token_ids,
            self.suppress_tokens,
            self.begin_suppress_tokens,
            self.forced_first,
            self.forced_last,
        ]
    }

    /// Writes the rules into `row`, which has at least [`RowRules::words`] words.
    pub fn write(&self, row: &mut [u32]) {
        let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let [
            ends,
            suppressed,
            begin_suppressed,
            forced_first,
            forced_last,
        ] = self.lists().map(|list| word(list.len()));
        let head = [
            u32::from(self.is_normalised),
            self.repetition_penalty.to_bits(),
            word(self.no_repeat_ngram_size),
            word(self.min_new_tokens),
            word(self.max_new_tokens),
            ends,
            suppressed,
            begin_suppressed,
            forced_first,
            forced_last,
            word(self.begin),
            word(self.biased_runs.len()),
            word(self.bad_runs.len()),
            0,
        ];
        let lists = self.lists().concat();
        let masked = self.bad_runs.iter().map(|run| (*run, 0.0));
        let runs = self.biased_runs.iter().copied().chain(masked);
        let runs = runs.flat_map(|(run, bias)| {
            let head = [word(run.len()), bias.to_bits()];
            head.into_iter().chain(run.iter().copied())
        });
        let words = head.into_iter().chain(lists).chain(runs);
        row.iter_mut()
            .zip(words)
            .for_each(|(place, word)| *place = word);
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
