use super::GenerateError;

/// Most beams a request may ask for.
pub const MAX_BEAMS: usize = 32;

/// Most end tokens of a text: what the device's stop rule holds.
pub const MAX_END_TOKENS: usize = 16;

/// Most texts that end a text: each is looked for after each token.
pub const MAX_STOPS: usize = 16;

/// Most texts a request may ask for: each has a row of every device buffer.
pub const MAX_TEXTS: usize = 1024;

/// Most candidates a row that the GPU's top-k hands over.
pub const MAX_CANDIDATES: usize = 256;

/// When a beam search that holds `num_beams` finished texts stops (transformers' `early_stopping`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// When the best running beam, scored at its present length, cannot beat the worst finished one.
    #[default]
    False,
    /// As soon as there are `num_beams` finished texts.
    True,
    /// When no running beam could beat the worst finished one at any length still allowed.
    Never,
}

/// Most words that the runs of [`GenerationOptions`] may take together, two a run and one a token: the device
/// looks through all of them at each token.
pub const MAX_RUN_WORDS: usize = 1 << 16;

/// A run of tokens, and what is added to the score of its last where the others were said before it.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceBias {
    /// The run; one token alone counts wherever it would stand.
    pub tokens: Vec<u32>,
    /// Above 0 makes it likelier. In the unit of the scores: logits, or log-probabilities for beams.
    pub bias: f32,
}

/// How tokens are chosen and when to stop. Names and meaning follow transformers' `GenerationConfig`;
/// lengths count generated tokens only, never the prompt or the image.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationOptions {
    /// Most tokens to generate, the end token included.
    pub max_new_tokens: usize,
    /// The end tokens are banned until this many tokens are generated.
    pub min_new_tokens: usize,
    /// Beams; 1 is greedy (or sampling).
    pub num_beams: usize,
    /// Exponent on the length by which a finished beam's sum of log-probabilities is divided.
    /// Above 0 favours long texts, below 0 short ones; 0 leaves the sum as it is.
    pub length_penalty: f64,
    /// Stop rule of the beam search.
    pub early_stopping: EarlyStopping,
    /// Draw tokens at random instead of taking the best.
    pub do_sample: bool,
    /// Divides the scores before a draw.
    pub temperature: f64,
    /// A draw is among the `top_k` best tokens; 0: among all.
    pub top_k: usize,
    /// A draw is among the smallest set of best tokens whose probabilities sum to this.
    pub top_p: f64,
    /// A draw is among tokens that are at least this share as probable as the best; 0 is off.
    pub min_p: f64,
    /// A draw is among the tokens whose surprise is nearest to the row's entropy and whose probabilities sum
    /// to this (Meister et al. 2022); 1 is off.
    pub typical_p: f64,
    /// A draw is among tokens that are at least so probable (Hewitt et al. 2022); 0 is off.
    pub epsilon_cutoff: f64,
    /// The same with a bound that falls with the row's entropy (Hewitt et al. 2022); 0 is off.
    pub eta_cutoff: f64,
    /// Seed of the draws: same seed, same scores, same text.
    pub seed: u64,
    /// Factor (> 1 discourages) on the scores of tokens already in the sequence.
    pub repetition_penalty: f64,
    /// No run of this many tokens occurs twice; 0: off.
    pub no_repeat_ngram_size: usize,
    /// Texts returned a request.
    pub num_return_sequences: usize,
    /// Tokens that end a text. Empty: only the length does.
    pub eos_token_ids: Vec<u32>,
    /// Texts that end a text: it ends before the first of them (transformers' `stop_strings`). Whoever turns
    /// tokens into text looks for them.
    pub stop: Vec<String>,
    /// Tokens that are never generated (transformers' `suppress_tokens`).
    pub suppress_tokens: Vec<u32>,
    /// Tokens that are not the first.
    pub begin_suppress_tokens: Vec<u32>,
    /// Added to the score of a run's last token where the others of the run were said.
    pub sequence_bias: Vec<SequenceBias>,
    /// Runs that are never completed.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// The first token, whatever the model says.
    pub forced_bos_token_id: Option<u32>,
    /// One of these is the last token of a text that reaches `max_new_tokens`.
    pub forced_eos_token_ids: Vec<u32>,
    /// Fills rows that finished before the others of their batch.
    pub pad_token_id: Option<u32>,
    /// First token of a prompt.
    pub bos_token_id: Option<u32>,
}

impl Default for GenerationOptions {
    /// What transformers 5.23 uses where nothing is set: greedy, 20 new tokens.
    fn default() -> Self {
        Self {
            max_new_tokens: 20,
            min_new_tokens: 0,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::False,
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            seed: 0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            num_return_sequences: 1,
            eos_token_ids: Vec::new(),
            stop: Vec::new(),
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            sequence_bias: Vec::new(),
            bad_words_ids: Vec::new(),
            forced_bos_token_id: None,
            forced_eos_token_ids: Vec::new(),
            pad_token_id: None,
            bos_token_id: None,
        }
    }
}

/// Options that one source sets: a `generation_config.json`, a preset or the command line.
/// `None` leaves what a weaker source said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationOverrides {
    /// For [`GenerationOptions::max_new_tokens`].
    pub max_new_tokens: Option<usize>,
    /// For [`GenerationOptions::min_new_tokens`].
    pub min_new_tokens: Option<usize>,
    /// For [`GenerationOptions::num_beams`].
    pub num_beams: Option<usize>,
    /// For [`GenerationOptions::length_penalty`].
    pub length_penalty: Option<f64>,
    /// For [`GenerationOptions::early_stopping`].
    pub early_stopping: Option<EarlyStopping>,
    /// For [`GenerationOptions::do_sample`].
    pub do_sample: Option<bool>,
    /// For [`GenerationOptions::temperature`].
    pub temperature: Option<f64>,
    /// For [`GenerationOptions::top_k`].
    pub top_k: Option<usize>,
    /// For [`GenerationOptions::top_p`].
    pub top_p: Option<f64>,
    /// For [`GenerationOptions::min_p`].
    pub min_p: Option<f64>,
    /// For [`GenerationOptions::typical_p`].
    pub typical_p: Option<f64>,
    /// For [`GenerationOptions::epsilon_cutoff`].
    pub epsilon_cutoff: Option<f64>,
    /// For [`GenerationOptions::eta_cutoff`].
    pub eta_cutoff: Option<f64>,
    /// For [`GenerationOptions::seed`].
    pub seed: Option<u64>,
    /// For [`GenerationOptions::repetition_penalty`].
    pub repetition_penalty: Option<f64>,
    /// For [`GenerationOptions::no_repeat_ngram_size`].
    pub no_repeat_ngram_size: Option<usize>,
    /// For [`GenerationOptions::num_return_sequences`].
    pub num_return_sequences: Option<usize>,
    /// For [`GenerationOptions::eos_token_ids`].
    pub eos_token_ids: Option<Vec<u32>>,
    /// For [`GenerationOptions::stop`].
    pub stop: Option<Vec<String>>,
    /// For [`GenerationOptions::suppress_tokens`].
    pub suppress_tokens: Option<Vec<u32>>,
    /// For [`GenerationOptions::begin_suppress_tokens`].
    pub begin_suppress_tokens: Option<Vec<u32>>,
    /// For [`GenerationOptions::sequence_bias`].
    pub sequence_bias: Option<Vec<SequenceBias>>,
    /// For [`GenerationOptions::bad_words_ids`].
    pub bad_words_ids: Option<Vec<Vec<u32>>>,
    /// For [`GenerationOptions::forced_bos_token_id`].
    pub forced_bos_token_id: Option<u32>,
    /// For [`GenerationOptions::forced_eos_token_ids`].
    pub forced_eos_token_ids: Option<Vec<u32>>,
    /// For [`GenerationOptions::pad_token_id`].
    pub pad_token_id: Option<u32>,
    /// For [`GenerationOptions::bos_token_id`].
    pub bos_token_id: Option<u32>,
}

impl GenerationOptions {
    /// These options with everything that `overrides` sets replaced. Chain from the weakest source to
    /// the strongest: defaults, file, preset, flags.
    #[must_use]
    pub fn overlay(self, overrides: &GenerationOverrides) -> Self {
        let o = overrides;
        Self {
            max_new_tokens: o.max_new_tokens.unwrap_or(self.max_new_tokens),
            min_new_tokens: o.min_new_tokens.unwrap_or(self.min_new_tokens),
            num_beams: o.num_beams.unwrap_or(self.num_beams),
            length_penalty: o.length_penalty.unwrap_or(self.length_penalty),
            early_stopping: o.early_stopping.unwrap_or(self.early_stopping),
            do_sample: o.do_sample.unwrap_or(self.do_sample),
            temperature: o.temperature.unwrap_or(self.temperature),
            top_k: o.top_k.unwrap_or(self.top_k),
            top_p: o.top_p.unwrap_or(self.top_p),
            min_p: o.min_p.unwrap_or(self.min_p),
            typical_p: o.typical_p.unwrap_or(self.typical_p),
            epsilon_cutoff: o.epsilon_cutoff.unwrap_or(self.epsilon_cutoff),
            eta_cutoff: o.eta_cutoff.unwrap_or(self.eta_cutoff),
            seed: o.seed.unwrap_or(self.seed),
            repetition_penalty: o.repetition_penalty.unwrap_or(self.repetition_penalty),
            no_repeat_ngram_size: o.no_repeat_ngram_size.unwrap_or(self.no_repeat_ngram_size),
            num_return_sequences: o.num_return_sequences.unwrap_or(self.num_return_sequences),
            eos_token_ids: o.eos_token_ids.clone().unwrap_or(self.eos_token_ids),
            stop: o.stop.clone().unwrap_or(self.stop),
            suppress_tokens: o.suppress_tokens.clone().unwrap_or(self.suppress_tokens),
            begin_suppress_tokens: (o.begin_suppress_tokens.clone())
                .unwrap_or(self.begin_suppress_tokens),
            sequence_bias: o.sequence_bias.clone().unwrap_or(self.sequence_bias),
            bad_words_ids: o.bad_words_ids.clone().unwrap_or(self.bad_words_ids),
            forced_bos_token_id: o.forced_bos_token_id.or(self.forced_bos_token_id),
            forced_eos_token_ids: (o.forced_eos_token_ids.clone())
                .unwrap_or(self.forced_eos_token_ids),
            pad_token_id: o.pad_token_id.or(self.pad_token_id),
            bos_token_id: o.bos_token_id.or(self.bos_token_id),
        }
    }

    /// Candidates a running beam must be given each step: `max(2, 1 + #eos) · beams`, so that enough
    /// unfinished ones remain when the best all end (transformers' `beams_to_keep`).
    pub fn candidates_per_beam(&self) -> usize {
        (1 + self.eos_token_ids.len()).max(2) * self.num_beams
    }

    /// Checks every value and their combination.
    ///
    /// # Errors
    /// [`GenerateError::Option`] for the first one that cannot be used.
    pub fn validate(&self) -> Result<(), GenerateError> {
        self.validate_lengths()?;
        self.validate_beams()?;
        self.validate_sampling()?;
        self.validate_stop()?;
        self.validate_runs()?;
        if !positive(self.repetition_penalty) {
            return Err(unusable(
                "repetition_penalty",
                self.repetition_penalty,
                "give a number above 0 (1 is off)",
            ));
        }
        Ok(())
    }

    fn validate_lengths(&self) -> Result<(), GenerateError> {
        if self.eos_token_ids.len() > MAX_END_TOKENS {
            let remedy = format!("give at most {MAX_END_TOKENS} end tokens");
            return Err(unusable("eos_token_id", self.eos_token_ids.len(), &remedy));
        }
        if self.max_new_tokens == 0 {
            return Err(unusable("max_new_tokens", 0, "give at least 1"));
        }
        if self.min_new_tokens > self.max_new_tokens {
            return Err(GenerateError::Option {
                option: "min_new_tokens",
                problem: format!(
                    "{} is more than max_new_tokens ({})",
                    self.min_new_tokens, self.max_new_tokens
                ),
                remedy: "lower it or raise max_new_tokens".into(),
            });
        }
        Ok(())
    }

    fn validate_beams(&self) -> Result<(), GenerateError> {
        if self.num_beams == 0 || self.num_beams > MAX_BEAMS {
            let remedy = format!("give 1 to {MAX_BEAMS}");
            return Err(unusable("num_beams", self.num_beams, &remedy));
        }
        if self.num_beams > 1 && self.candidates_per_beam() > MAX_CANDIDATES {
            return Err(GenerateError::Option {
                option: "num_beams",
                problem: format!(
                    "{} beams with {} end tokens need {} candidates a beam, more than {MAX_CANDIDATES}",
                    self.num_beams,
                    self.eos_token_ids.len(),
                    self.candidates_per_beam()
                ),
                remedy: "use fewer beams or fewer end tokens".into(),
            });
        }
        if !self.length_penalty.is_finite() {
            return Err(unusable(
                "length_penalty",
                self.length_penalty,
                "give a finite number",
            ));
        }
        self.validate_returned()
    }

    fn validate_returned(&self) -> Result<(), GenerateError> {
        let n = self.num_return_sequences;
        if n == 0 || n > MAX_TEXTS {
            let remedy = format!("give 1 to {MAX_TEXTS}");
            return Err(unusable("num_return_sequences", n, &remedy));
        }
        if self.num_beams > 1 && n > self.num_beams {
            return Err(GenerateError::Option {
                option: "num_return_sequences",
                problem: format!("{n} texts from {} beams", self.num_beams),
                remedy: "ask for at most as many as there are beams, or use more beams".into(),
            });
        }
        if self.num_beams == 1 && !self.do_sample && n > 1 {
            return Err(GenerateError::Option {
                option: "num_return_sequences",
                problem: format!("greedy decoding gives one text, not {n}"),
                remedy: "use beams or sampling for more".into(),
            });
        }
        Ok(())
    }

    fn validate_stop(&self) -> Result<(), GenerateError> {
        if self.stop.len() > MAX_STOPS {
            let remedy = format!("give at most {MAX_STOPS} texts");
            return Err(unusable("stop", self.stop.len(), &remedy));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(unusable("stop", "\"\"", "give texts that are not empty"));
        }
        Ok(())
    }

    fn validate_sampling(&self) -> Result<(), GenerateError> {
        if self.do_sample && self.num_beams > 1 {
            return Err(GenerateError::Option {
                option: "do_sample",
                problem: "sampling within a beam search is not supported".into(),
                remedy: "sample with one beam, or search with beams and do not sample".into(),
            });
        }
        // What nobody draws by may be anything: `temperature: 0` is how some say "do not sample".
        if !self.do_sample {
            return Ok(());
        }
        if !positive(self.temperature) {
            return Err(unusable(
                "temperature",
                self.temperature,
                "give a number above 0 (for the best token each time, do not sample)",
            ));
        }
        for (option, share) in [("top_p", self.top_p), ("typical_p", self.typical_p)] {
            if !(share > 0.0 && share <= 1.0) {
                return Err(unusable(
                    option,
                    share,
                    "give a number above 0 and at most 1",
                ));
            }
        }
        for (option, share) in [
            ("min_p", self.min_p),
            ("epsilon_cutoff", self.epsilon_cutoff),
            ("eta_cutoff", self.eta_cutoff),
        ] {
            let most = if option == "min_p" {
                1.0
            } else {
                1.0f64.next_down()
            };
            if !(share >= 0.0 && share <= most) {
                return Err(unusable(
                    option,
                    share,
                    "give a number from 0 (off) to below 1",
                ));
            }
        }
        Ok(())
    }

    fn validate_runs(&self) -> Result<(), GenerateError> {
        let empty = self.sequence_bias.iter().any(|run| run.tokens.is_empty());
        if empty || self.sequence_bias.iter().any(|run| !run.bias.is_finite()) {
            let remedy = "give runs of at least one token, each with a finite number";
            return Err(unusable("sequence_bias", "one of its runs", remedy));
        }
        if self.bad_words_ids.iter().any(Vec::is_empty) {
            return Err(unusable("bad_words_ids", "an empty word", "take it out"));
        }
        let biased = self.sequence_bias.iter().map(|run| run.tokens.len());
        let bad = self.bad_words_ids.iter().map(Vec::len);
        let words: usize = biased.chain(bad).map(|tokens| tokens + 2).sum();
        let option = "bad_words_ids";
        match words > MAX_RUN_WORDS {
            true => Err(GenerateError::Option {
                option,
                problem: format!(
                    "with `sequence_bias` it takes {words} words, more than {MAX_RUN_WORDS}"
                ),
                remedy: "leave some out".into(),
            }),
            false => Ok(()),
        }
    }

    /// Checks that tokens which are to be raised, banned in runs or forced are among the `vocabulary`.
    ///
    /// # Errors
    /// [`GenerateError::Option`] for the first that is not.
    pub fn check_tokens(&self, vocabulary: usize) -> Result<(), GenerateError> {
        let check = |option: &'static str, tokens: Vec<u32>| {
            let beyond = tokens
                .into_iter()
                .find(|&token| token as usize >= vocabulary);
            beyond.map_or(Ok(()), |token| {
                Err(GenerateError::Option {
                    option,
                    problem: format!("token {token} is not among the vocabulary of {vocabulary}"),
                    remedy: "take it out".into(),
                })
            })
        };
        let biased = self.sequence_bias.iter().flat_map(|run| run.tokens.clone());
        check("sequence_bias", biased.collect())?;
        check("bad_words_ids", self.bad_words_ids.concat())?;
        check(
            "forced_bos_token_id",
            self.forced_bos_token_id.into_iter().collect(),
        )?;
        check("forced_eos_token_id", self.forced_eos_token_ids.clone())
    }

    /// The options that `asked` sets though, by these options that came of it, they change nothing: those of
    /// drawing where nothing is drawn, those of beams where there are none. In the order of the fields.
    #[must_use]
    pub fn without_effect(&self, asked: &GenerationOverrides) -> Vec<&'static str> {
        let (greedy, one_beam) = (!self.do_sample, self.num_beams == 1);
        let options = [
            ("length_penalty", one_beam && asked.length_penalty.is_some()),
            ("early_stopping", one_beam && asked.early_stopping.is_some()),
            ("temperature", greedy && asked.temperature.is_some()),
            ("top_k", greedy && asked.top_k.is_some()),
            ("top_p", greedy && asked.top_p.is_some()),
            ("min_p", greedy && asked.min_p.is_some()),
            ("typical_p", greedy && asked.typical_p.is_some()),
            ("epsilon_cutoff", greedy && asked.epsilon_cutoff.is_some()),
            ("eta_cutoff", greedy && asked.eta_cutoff.is_some()),
            ("seed", greedy && asked.seed.is_some()),
        ];
        let idle = options.into_iter().filter(|(_, is_idle)| *is_idle);
        idle.map(|(option, _)| option).collect()
    }
}

/// Whether a number is above 0 in f32, which scores are computed in.
fn positive(value: f64) -> bool {
    let value = value as f32;
    value.is_finite() && value > 0.0
}

fn unusable(option: &'static str, value: impl std::fmt::Display, remedy: &str) -> GenerateError {
    GenerateError::Option {
        option,
        problem: format!("{value} cannot be used"),
        remedy: remedy.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        GenerationOptions::default().validate().unwrap();
    }

    #[test]
    fn the_stronger_source_wins() {
        let file = GenerationOverrides {
            num_beams: Some(3),
            length_penalty: Some(-1.0),
            eos_token_ids: Some(vec![7, 8]),
            ..Default::default()
        };
        let flags = GenerationOverrides {
            num_beams: Some(5),
            ..Default::default()
        };
        let options = GenerationOptions::default().overlay(&file).overlay(&flags);
        assert_eq!(options.num_beams, 5);
        assert_eq!(options.length_penalty, -1.0);
        assert_eq!(options.max_new_tokens, 20);
        assert_eq!(options.candidates_per_beam(), 15);
    }

    /// The option that `validate` complains about after `change`.
    fn refused(change: impl Fn(&mut GenerationOptions)) -> Option<&'static str> {
        let mut options = GenerationOptions::default();
        change(&mut options);
        match options.validate() {
            Ok(()) => None,
            Err(GenerateError::Option { option, .. }) => Some(option),
            Err(other) => panic!("unexpected {other}"),
        }
    }

    #[test]
    fn unusable_values_are_named() {
        assert_eq!(refused(|o| o.max_new_tokens = 0), Some("max_new_tokens"));
        assert_eq!(refused(|o| o.min_new_tokens = 21), Some("min_new_tokens"));
        assert_eq!(refused(|o| o.min_new_tokens = 20), None);
        assert_eq!(refused(|o| o.num_beams = 0), Some("num_beams"));
        assert_eq!(
            refused(|o| o.stop = vec!["a".into(), "".into()]),
            Some("stop")
        );
        assert_eq!(refused(|o| o.stop = vec!["a".into(); 17]), Some("stop"));
        assert_eq!(refused(|o| o.stop = vec!["a".into(); 16]), None);
        assert_eq!(refused(|o| o.num_beams = 33), Some("num_beams"));
        assert_eq!(refused(|o| o.num_beams = 32), None);
        assert_eq!(
            refused(|o| o.repetition_penalty = -1.0),
            Some("repetition_penalty")
        );
        assert_eq!(
            refused(|o| o.repetition_penalty = 1e300),
            Some("repetition_penalty")
        );
        assert_eq!(
            refused(|o| o.length_penalty = f64::INFINITY),
            Some("length_penalty")
        );
    }

    #[test]
    fn what_draws_is_checked_where_something_is_drawn() {
        type Change = fn(&mut GenerationOptions);
        let unusable: [(&str, Change); 9] = [
            ("temperature", |o| o.temperature = 0.0),
            ("temperature", |o| o.temperature = f64::NAN),
            ("temperature", |o| o.temperature = 1e-300),
            ("top_p", |o| o.top_p = 0.0),
            ("top_p", |o| o.top_p = 1.01),
            ("typical_p", |o| o.typical_p = 0.0),
            ("min_p", |o| o.min_p = 1.5),
            ("epsilon_cutoff", |o| o.epsilon_cutoff = 1.0),
            ("eta_cutoff", |o| o.eta_cutoff = -0.1),
        ];
        for (option, change) in unusable {
            assert_eq!(refused(change), None, "{option}");
            let sampled = |o: &mut GenerationOptions| {
                o.do_sample = true;
                change(o);
            };
            assert_eq!(refused(sampled), Some(option));
        }
        let coldest = |o: &mut GenerationOptions| {
            (o.do_sample, o.temperature, o.min_p) = (true, 1e-30, 1.0);
        };
        assert_eq!(refused(coldest), None);
    }

    #[test]
    fn runs_are_checked() {
        let bias = |tokens: Vec<u32>, bias| {
            move |o: &mut GenerationOptions| {
                o.sequence_bias = vec![SequenceBias {
                    tokens: tokens.clone(),
                    bias,
                }];
            }
        };
        assert_eq!(refused(bias(vec![1, 2], -3.5)), None);
        assert_eq!(refused(bias(vec![], 1.0)), Some("sequence_bias"));
        assert_eq!(refused(bias(vec![1], f32::NAN)), Some("sequence_bias"));
        let bad =
            |words: usize| move |o: &mut GenerationOptions| o.bad_words_ids = vec![vec![1]; words];
        assert_eq!(refused(bad(MAX_RUN_WORDS / 3)), None);
        assert_eq!(refused(bad(MAX_RUN_WORDS / 3 + 1)), Some("bad_words_ids"));
        assert_eq!(
            refused(|o| o.bad_words_ids = vec![vec![]]),
            Some("bad_words_ids")
        );
    }

    #[test]
    fn options_that_change_nothing_are_named() {
        let asked = GenerationOverrides {
            length_penalty: Some(2.0),
            early_stopping: Some(EarlyStopping::True),
            temperature: Some(0.5),
            top_k: Some(3),
            top_p: Some(0.5),
            seed: Some(1),
            max_new_tokens: Some(9),
            ..Default::default()
        };
        let idle = |do_sample, num_beams| {
            let options = GenerationOptions {
                do_sample,
                num_beams,
                ..Default::default()
            };
            options.overlay(&asked).without_effect(&asked).join(" ")
        };
        assert_eq!(
            idle(false, 1),
            "length_penalty early_stopping temperature top_k top_p seed"
        );
        assert_eq!(idle(true, 1), "length_penalty early_stopping");
        assert_eq!(idle(false, 4), "temperature top_k top_p seed");
        let nothing = GenerationOverrides::default();
        assert!(
            GenerationOptions::default()
                .without_effect(&nothing)
                .is_empty()
        );
    }

    #[test]
    fn combinations_are_checked() {
        let texts = "num_return_sequences";
        assert_eq!(refused(|o| o.num_return_sequences = 0), Some(texts));
        assert_eq!(refused(|o| o.num_return_sequences = 2), Some(texts));
        assert_eq!(
            refused(|o| {
                o.num_beams = 2;
                o.num_return_sequences = 3;
            }),
            Some(texts)
        );
        assert_eq!(
            refused(|o| {
                o.do_sample = true;
                o.num_return_sequences = 3;
            }),
            None
        );
        assert_eq!(
            refused(|o| {
                o.do_sample = true;
                o.num_return_sequences = usize::MAX;
            }),
            Some(texts)
        );
        assert_eq!(
            refused(|o| {
                o.do_sample = true;
                o.num_beams = 2;
            }),
            Some("do_sample")
        );
        // 32 beams x (1 + 8 end tokens) is more than the GPU's top-k hands over.
        assert_eq!(
            refused(|o| {
                o.num_beams = 32;
                o.eos_token_ids = (0..8).collect();
            }),
            Some("num_beams")
        );
    }
}
