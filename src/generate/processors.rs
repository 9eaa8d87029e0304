use super::{Candidate, GenerationOptions, SequenceBias};

/// The score processors that depend on the sequence so far, in transformers' order: biased runs,
/// repetition penalty, no repeated n-gram, bad words, minimum length, forced tokens, suppressed tokens.
/// This is the plain twin of the GPU kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreProcessors {
    /// Runs whose last token's score is raised or lowered.
    pub sequence_bias: Vec<SequenceBias>,
    /// Factor on the scores of tokens in the history; 1 is off.
    pub repetition_penalty: f32,
    /// Length of the runs that may not repeat; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// Runs that are never completed. An end token alone is none, as in transformers.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// End tokens are banned below this many generated tokens.
    pub min_new_tokens: usize,
    /// The end tokens.
    pub eos_token_ids: Vec<u32>,
    /// The first token.
    pub forced_bos_token_id: Option<u32>,
    /// The tokens of which the last is one; none: any.
    pub forced_eos_token_ids: Vec<u32>,
    /// Most generated tokens.
    pub max_new_tokens: usize,
    /// Tokens always banned.
    pub suppress_tokens: Vec<u32>,
    /// Tokens banned as the first token that is not forced.
    pub begin_suppress_tokens: Vec<u32>,
}

impl ScoreProcessors {
    /// The processors that `options` asks for.
    pub fn from_options(options: &GenerationOptions) -> Self {
        let is_end =
            |word: &[u32]| matches!(word, [token] if options.eos_token_ids.contains(token));
        let bad_words = options.bad_words_ids.iter().filter(|word| !is_end(word));
        Self {
            sequence_bias: options.sequence_bias.clone(),
            repetition_penalty: options.repetition_penalty as f32,
            no_repeat_ngram_size: options.no_repeat_ngram_size,
            bad_words_ids: bad_words.cloned().collect(),
            min_new_tokens: options.min_new_tokens,
            eos_token_ids: options.eos_token_ids.clone(),
            forced_bos_token_id: options.forced_bos_token_id,
            forced_eos_token_ids: options.forced_eos_token_ids.clone(),
            max_new_tokens: options.max_new_tokens,
            suppress_tokens: options.suppress_tokens.clone(),
            begin_suppress_tokens: options.begin_suppress_tokens.clone(),
        }
    }

    /// True where the scores would come out as they went in, whatever the history.
    pub fn is_identity(&self) -> bool {
        self.sequence_bias.is_empty()
            && self.repetition_penalty == 1.0
            && self.no_repeat_ngram_size == 0
            && self.bad_words_ids.is_empty()
            && (self.min_new_tokens == 0 || self.eos_token_ids.is_empty())
            && self.forced_bos_token_id.is_none()
            && self.forced_eos_token_ids.is_empty()
            && self.suppress_tokens.is_empty()
            && self.begin_suppress_tokens.is_empty()
    }

    /// Changes `scores` (`[vocabulary]`) in place; a banned token gets −∞.
    ///
    /// Beam search passes log-probabilities, greedy and sampling raw logits: the repetition penalty
    /// acts differently on the two, as in transformers. `history` is the whole id sequence (prompt
    /// ids, where the prompt was given as ids, then the generated tokens), `new_tokens` how many of
    /// it were generated. Ids beyond the vocabulary are ignored.
    pub fn apply(&self, scores: &mut [f32], history: &[u32], new_tokens: usize) {
        for run in &self.sequence_bias {
            if let Some(score) =
                completed(&run.tokens, history).and_then(|t| scores.get_mut(t as usize))
            {
                *score += run.bias;
            }
        }
        self.penalise_repetition(scores, history);
        for token in self.repeated_ngram_ends(history) {
            ban(scores, token);
        }
        let bad = self.bad_words_ids.iter();
        bad.filter_map(|word| completed(word, history))
            .for_each(|t| ban(scores, t));
        if new_tokens < self.min_new_tokens {
            self.eos_token_ids.iter().for_each(|&t| ban(scores, t));
        }
        force(scores, self.forced(new_tokens));
        self.suppress_tokens.iter().for_each(|&t| ban(scores, t));
        if new_tokens == self.first_chosen() {
            self.begin_suppress_tokens
                .iter()
                .for_each(|&t| ban(scores, t));
        }
    }

    /// The tokens of which the next is one; none: any.
    fn forced(&self, new_tokens: usize) -> &[u32] {
        let last = new_tokens + 1 == self.max_new_tokens;
        match &self.forced_bos_token_id {
            _ if last && !self.forced_eos_token_ids.is_empty() => &self.forced_eos_token_ids,
            Some(first) if new_tokens == 0 => std::slice::from_ref(first),
            _ => &[],
        }
    }

    /// How many tokens there are before the first that the scores choose.
    fn first_chosen(&self) -> usize {
        usize::from(self.forced_bos_token_id.is_some())
    }

    fn penalise_repetition(&self, scores: &mut [f32], history: &[u32]) {
        if self.repetition_penalty == 1.0 {
            return;
        }
        let mut seen = history.to_vec();
        seen.sort_unstable();
        seen.dedup(); // a token is penalised once, however often it occurred
        for token in seen {
            if let Some(score) = scores.get_mut(token as usize) {
                *score = if *score < 0.0 {
                    *score * self.repetition_penalty
                } else {
                    *score / self.repetition_penalty
                };
            }
        }
    }

    /// Tokens that would complete an n-gram that `history` already holds.
    fn repeated_ngram_ends(&self, history: &[u32]) -> Vec<u32> {
        let n = self.no_repeat_ngram_size;
        if n == 0 || history.len() < n {
            return Vec::new();
        }
        let prefix = &history[history.len() + 1 - n..];
        history
            .windows(n)
            .filter(|ngram| ngram[..n - 1] == *prefix)
            .map(|ngram| ngram[n - 1])
            .collect()
    }
}

/// The last token of `run`, where the others are what `history` ends with.
fn completed(run: &[u32], history: &[u32]) -> Option<u32> {
    let (&last, others) = run.split_last()?;
    history.ends_with(others).then_some(last)
}

/// Leaves `tokens` alone to be chosen, each as likely; all, where there are none.
fn force(scores: &mut [f32], tokens: &[u32]) {
    if !tokens.is_empty() {
        scores.fill(f32::NEG_INFINITY);
    }
    for &token in tokens {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = 0.0;
        }
    }
}

fn ban(scores: &mut [f32], token: u32) {
    if let Some(score) = scores.get_mut(token as usize) {
        *score = f32::NEG_INFINITY;
    }
}

/// Turns logits (`[vocabulary]`) into log-probabilities, in place.
pub fn log_softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|&s| f64::from(s - max).exp()).sum();
    let log_sum = sum.ln() as f32;
    for score in scores {
        *score = (*score - max) - log_sum;
    }
}

/// The `k` best of `scores` (`[vocabulary]`), best first; of equal ones the lowest token first.
/// Fewer than `k` where the vocabulary is smaller. A NaN counts as best, so that it is not overlooked.
pub fn top_k(scores: &[f32], k: usize) -> Vec<Candidate> {
    let mut all: Vec<Candidate> = (0..)
        .zip(scores)
        .map(|(token, &score)| Candidate { token, score })
        .collect();
    sort_best_first(&mut all);
    all.truncate(k);
    all
}

/// Sorts by falling score; equal scores by rising token.
pub(super) fn sort_best_first(candidates: &mut [Candidate]) {
    candidates.sort_unstable_by(|a, b| falling(a.score, b.score).then(a.token.cmp(&b.token)));
}

/// Order of falling scores, NaN first, with −0 equal to 0.
pub(super) fn falling(a: f32, b: f32) -> std::cmp::Ordering {
    let key = |score: f32| {
        if score.is_nan() {
            f32::NAN.abs()
        } else {
            score + 0.0
        }
    };
    key(b).total_cmp(&key(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> ScoreProcessors {
        ScoreProcessors::from_options(&GenerationOptions::default())
    }
    const BANNED: f32 = f32::NEG_INFINITY;

    #[test]
    fn a_repeated_token_is_penalised_once_by_its_sign() {
        let processors = ScoreProcessors {
            repetition_penalty: 2.0,
            ..none()
        };
        let mut scores = [1.0, -1.0, 3.0, 0.0];
        processors.apply(&mut scores, &[0, 1, 1, 3, 0, 99], 0);
        assert_eq!(scores, [0.5, -2.0, 3.0, 0.0]);
    }

    #[test]
    fn ngrams_do_not_repeat() {
        let bans = |n, history: &[u32]| {
            let processors = ScoreProcessors {
                no_repeat_ngram_size: n,
                ..none()
            };
            let mut scores = [0.0; 5];
            processors.apply(&mut scores, history, 0);
            (0..5).filter(|&t| scores[t] == BANNED).collect::<Vec<_>>()
        };
        assert_eq!(bans(2, &[1, 2, 3, 1]), [2]);
        assert_eq!(bans(2, &[1, 2, 1, 4, 1]), [2, 4]);
        assert_eq!(bans(2, &[1]), [] as [usize; 0]);
        assert_eq!(bans(2, &[3, 3]), [3]);
        assert_eq!(bans(3, &[1, 2, 3, 1, 2]), [3]);
        assert_eq!(bans(3, &[1, 2, 3, 2]), [] as [usize; 0]);
        assert_eq!(bans(1, &[4, 0]), [0, 4]);
        assert_eq!(bans(2, &[1, 77, 1]), [] as [usize; 0]);
    }

    #[test]
    fn end_tokens_wait_for_the_minimum() {
        let processors = ScoreProcessors {
            min_new_tokens: 2,
            eos_token_ids: vec![0, 2],
            suppress_tokens: vec![3],
            ..none()
        };
        let mut scores = [0.0; 4];
        processors.apply(&mut scores, &[1, 1, 1], 1);
        assert_eq!(scores, [BANNED, 0.0, BANNED, BANNED]);
        let mut scores = [0.0; 4];
        processors.apply(&mut scores, &[1, 1, 1], 2);
        assert_eq!(scores, [0.0, 0.0, 0.0, BANNED]);
        assert!(!processors.is_identity() && none().is_identity());
    }

    #[test]
    fn runs_are_biased_and_bad_words_banned_where_they_would_be_completed() {
        let bias = |tokens: &[u32], bias| SequenceBias {
            tokens: tokens.to_vec(),
            bias,
        };
        let processors = ScoreProcessors {
            sequence_bias: vec![bias(&[1, 2, 0], 2.0), bias(&[0], 0.5), bias(&[9, 3], 7.0)],
            bad_words_ids: vec![vec![2, 3], vec![4], vec![3, 1]],
            ..none()
        };
        let scores = |history: &[u32]| {
            let mut scores = [0.0; 5];
            processors.apply(&mut scores, history, history.len());
            scores
        };
        assert_eq!(scores(&[5, 1, 2]), [2.5, 0.0, 0.0, BANNED, BANNED]);
        assert_eq!(scores(&[2, 2]), [0.5, 0.0, 0.0, BANNED, BANNED]);
        assert_eq!(scores(&[]), [0.5, 0.0, 0.0, 0.0, BANNED]);
        let ends = GenerationOptions {
            eos_token_ids: vec![4],
            bad_words_ids: vec![vec![4], vec![3, 4]],
            ..Default::default()
        };
        assert_eq!(ScoreProcessors::from_options(&ends).bad_words_ids, [[3, 4]]);
    }

    #[test]
    fn the_first_and_the_last_token_are_forced() {
        let processors = ScoreProcessors {
            forced_bos_token_id: Some(3),
            forced_eos_token_ids: vec![1, 2],
            max_new_tokens: 4,
            begin_suppress_tokens: vec![0, 3],
            ..none()
        };
        let scores = |new_tokens| {
            let mut scores = [1.0; 4];
            processors.apply(&mut scores, &[], new_tokens);
            scores
        };
        assert_eq!(scores(0), [BANNED, BANNED, BANNED, 0.0]);
        assert_eq!(scores(1), [BANNED, 1.0, 1.0, BANNED]);
        assert_eq!(scores(2), [1.0; 4]);
        assert_eq!(scores(3), [BANNED, 0.0, 0.0, BANNED]);
        let mut first = [1.0; 4];
        let unforced = ScoreProcessors {
            forced_bos_token_id: None,
            ..processors
        };
        unforced.apply(&mut first, &[], 0);
        assert_eq!(first, [BANNED, 1.0, 1.0, BANNED]);
    }

    #[test]
    fn log_softmax_sums_to_one() {
        let mut scores = [1000.0, 1001.0, 999.5, BANNED];
        log_softmax(&mut scores);
        let sum: f64 = scores.iter().map(|&s| f64::from(s).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert!((scores[1] - scores[0] - 1.0).abs() < 1e-6);
        assert_eq!(scores[3], BANNED);
    }

    #[test]
    fn top_k_takes_the_lowest_of_equal_tokens() {
        let tokens = |scores: &[f32], k| {
            let best = top_k(scores, k);
            best.iter().map(|c| c.token).collect::<Vec<_>>()
        };
        assert_eq!(tokens(&[1.0, 3.0, 3.0, 2.0, 3.0], 4), [1, 2, 4, 3]);
        assert_eq!(tokens(&[0.0, -0.0, BANNED], 9), [0, 1, 2]);
        assert_eq!(tokens(&[0.0, 5.0, -f32::NAN], 1), [2]);
    }
}
