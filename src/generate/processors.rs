use super::{Candidate, GenerationOptions};

/// The score processors that depend on the sequence so far, in transformers' order: repetition
/// penalty, no repeated n-gram, minimum length, suppressed tokens. This is the plain twin of the GPU
/// kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreProcessors {
    /// Factor on the scores of tokens in the history; 1 is off.
    pub repetition_penalty: f32,
    /// Length of the runs that may not repeat; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// End tokens are banned below this many generated tokens.
    pub min_new_tokens: usize,
    /// The end tokens.
    pub eos_token_ids: Vec<u32>,
    /// Tokens always banned.
    pub suppress_tokens: Vec<u32>,
}

impl ScoreProcessors {
    /// The processors that `options` asks for.
    pub fn from_options(options: &GenerationOptions) -> Self {
        Self {
            repetition_penalty: options.repetition_penalty as f32,
            no_repeat_ngram_size: options.no_repeat_ngram_size,
            min_new_tokens: options.min_new_tokens,
            eos_token_ids: options.eos_token_ids.clone(),
            suppress_tokens: options.suppress_tokens.clone(),
        }
    }

    /// True where the scores would come out as they went in, whatever the history.
    pub fn is_identity(&self) -> bool {
        self.repetition_penalty == 1.0
            && self.no_repeat_ngram_size == 0
            && (self.min_new_tokens == 0 || self.eos_token_ids.is_empty())
            && self.suppress_tokens.is_empty()
    }

    /// Changes `scores` (`[vocabulary]`) in place; a banned token gets −∞.
    ///
    /// Beam search passes log-probabilities, greedy and sampling raw logits: the repetition penalty
    /// acts differently on the two, as in transformers. `history` is the whole id sequence (prompt
    /// ids, where the prompt was given as ids, then the generated tokens), `new_tokens` how many of
    /// it were generated. Ids beyond the vocabulary are ignored.
    pub fn apply(&self, scores: &mut [f32], history: &[u32], new_tokens: usize) {
        self.penalise_repetition(scores, history);
        for token in self.repeated_ngram_ends(history) {
            ban(scores, token);
        }
        if new_tokens < self.min_new_tokens {
            self.eos_token_ids.iter().for_each(|&t| ban(scores, t));
        }
        self.suppress_tokens.iter().for_each(|&t| ban(scores, t));
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

    const NONE: ScoreProcessors = ScoreProcessors {
        repetition_penalty: 1.0,
        no_repeat_ngram_size: 0,
        min_new_tokens: 0,
        eos_token_ids: Vec::new(),
        suppress_tokens: Vec::new(),
    };
    const BANNED: f32 = f32::NEG_INFINITY;

    #[test]
    fn a_repeated_token_is_penalised_once_by_its_sign() {
        let processors = ScoreProcessors {
            repetition_penalty: 2.0,
            ..NONE
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
                ..NONE
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
            ..NONE
        };
        let mut scores = [0.0; 4];
        processors.apply(&mut scores, &[1, 1, 1], 1);
        assert_eq!(scores, [BANNED, 0.0, BANNED, BANNED]);
        let mut scores = [0.0; 4];
        processors.apply(&mut scores, &[1, 1, 1], 2);
        assert_eq!(scores, [0.0, 0.0, 0.0, BANNED]);
        assert!(!processors.is_identity() && NONE.is_identity());
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
