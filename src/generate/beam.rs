use super::{
    Candidate, EarlyStopping, FinishReason, GenerateError, Generated, GenerationOptions,
    processors::falling,
};

/// Marks what may not be chosen; added to scores in f32, as transformers does.
const BARRED: f32 = -1.0e9;

/// What one running beam becomes: `parent`'s tokens and `token`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeamStep {
    /// Running beam (before the step) whose sequence and KV cache are carried on.
    pub parent: usize,
    /// Token appended to them.
    pub token: u32,
}

/// Beam search for one request, equal to transformers 5.23's (`GenerationMixin._beam_search`).
///
/// Each step wants, for each running beam, its best tokens by log-probability *after* the score
/// processors and answers which beam goes on with which token. Lengths count generated tokens: there
/// transformers subtracts the prompt (`decoder_prompt_len`) wherever it uses a length.
#[derive(Clone, Debug)]
pub struct BeamSearch {
    rules: Rules,
    /// Best first. `[beams]`
    running: Vec<Beam>,
    /// The best finished texts so far, best first; barred where there is none yet. `[beams]`
    finished: Vec<Slot>,
    steps: Vec<BeamStep>,
    generated: usize,
    done: bool,
}

#[derive(Clone, Debug)]
struct Rules {
    beams: usize,
    kept: usize,
    max_new_tokens: usize,
    length_penalty: f64,
    early_stopping: EarlyStopping,
    eos_token_ids: Vec<u32>,
    returned: usize,
}

#[derive(Clone, Debug)]
struct Beam {
    tokens: Vec<u32>,
    /// Sum of log-probabilities.
    score: f32,
}

#[derive(Clone, Debug)]
struct Slot {
    tokens: Vec<u32>,
    /// Length-penalised.
    score: f32,
    /// Why it ended; `None`: there is no text yet.
    finish: Option<FinishReason>,
}

/// One of the best continuations of a step.
#[derive(Clone, Copy)]
struct Continuation {
    step: BeamStep,
    score: f32,
    /// Why it ends here, if it does.
    ends: Option<FinishReason>,
}

impl BeamSearch {
    /// A search by `options` (any number of beams, 1 included).
    ///
    /// # Errors
    /// What [`GenerationOptions::validate`] refuses.
    pub fn new(options: &GenerationOptions) -> Result<Self, GenerateError> {
        options.validate()?;
        let beams = options.num_beams;
        let beam = |index| Beam {
            tokens: Vec::new(),
            // All beams start alike: only the first may be continued, or all would stay alike.
            score: if index == 0 { 0.0 } else { BARRED },
        };
        let empty = Slot {
            tokens: Vec::new(),
            score: BARRED,
            finish: None,
        };
        Ok(Self {
            rules: Rules {
                beams,
                kept: options.candidates_per_beam(),
                max_new_tokens: options.max_new_tokens,
                length_penalty: options.length_penalty,
                early_stopping: options.early_stopping,
                eos_token_ids: options.eos_token_ids.clone(),
                returned: options.num_return_sequences,
            },
            running: (0..beams).map(beam).collect(),
            finished: vec![empty; beams],
            steps: Vec::with_capacity(beams),
            generated: 0,
            done: false,
        })
    }

    /// Candidates a row that [`BeamSearch::step`] wants (the whole vocabulary where it is smaller).
    pub fn candidates_per_beam(&self) -> usize {
        self.rules.kept
    }

    /// Running beams.
    pub fn num_beams(&self) -> usize {
        self.rules.beams
    }

    /// Generated tokens of a running beam, for the score processors.
    pub fn tokens(&self, beam: usize) -> &[u32] {
        self.running.get(beam).map_or(&[], |beam| &beam.tokens)
    }

    /// Tokens generated so far by each running beam.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// Whether no further step can change what [`BeamSearch::finish`] returns.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// One step: `rows[b]` are running beam `b`'s best [`BeamSearch::candidates_per_beam`] tokens with
    /// their log-probabilities, in any order. At the first step, where all beams are alike, one row is
    /// enough. Returns what becomes of each running beam, best first.
    ///
    /// # Errors
    /// [`GenerateError::Rows`] on a wrong number of rows, [`GenerateError::NotANumber`] on a NaN,
    /// [`GenerateError::NoToken`] where there are fewer candidates in all than beams,
    /// [`GenerateError::Done`] after the end. The search is then as it was.
    pub fn step(&mut self, rows: &[impl AsRef<[Candidate]>]) -> Result<&[BeamStep], GenerateError> {
        self.step_until(rows, &|_| false)
    }

    /// [`BeamSearch::step`] where a text also ends when `stops` says so of its tokens.
    ///
    /// # Errors
    /// As [`BeamSearch::step`].
    pub fn step_until(
        &mut self,
        rows: &[impl AsRef<[Candidate]>],
        stops: &dyn Fn(&[u32]) -> bool,
    ) -> Result<&[BeamStep], GenerateError> {
        if self.done {
            return Err(GenerateError::Done);
        }
        let mut best = self.best_continuations(rows)?;
        for continuation in &mut best {
            if continuation.ends != Some(FinishReason::EndToken)
                && stops(&self.continued(continuation.step))
            {
                continuation.ends = Some(FinishReason::StopString);
            }
        }
        if best.len() < self.rules.beams {
            return Err(GenerateError::NoToken);
        }
        self.merge_finished(&best);
        self.advance(&best);
        self.generated += 1;
        self.update_done(best.iter().all(|c| c.ends.is_some()));
        Ok(&self.steps)
    }

    /// The best `kept` continuations of all beams; of equal ones that of the lowest beam and token first.
    fn best_continuations(
        &self,
        rows: &[impl AsRef<[Candidate]>],
    ) -> Result<Vec<Continuation>, GenerateError> {
        let beams = self.rules.beams;
        if rows.len() != beams && !(rows.len() == 1 && self.generated == 0) {
            return Err(GenerateError::Rows {
                rows: rows.len(),
                beams,
            });
        }
        let at_length = self.generated + 1 >= self.rules.max_new_tokens;
        let mut all = Vec::new();
        for (parent, beam) in self.running.iter().enumerate() {
            let row = if rows.len() == 1 {
                &rows[0]
            } else {
                &rows[parent]
            };
            for &Candidate { token, score } in row.as_ref() {
                if score.is_nan() {
                    return Err(GenerateError::NotANumber { token });
                }
                all.push(Continuation {
                    step: BeamStep { parent, token },
                    score: score + beam.score,
                    ends: if self.rules.eos_token_ids.contains(&token) {
                        Some(FinishReason::EndToken)
                    } else {
                        at_length.then_some(FinishReason::Length)
                    },
                });
            }
        }
        all.sort_unstable_by(|a, b| {
            falling(a.score, b.score)
                .then(a.step.parent.cmp(&b.step.parent))
                .then(a.step.token.cmp(&b.step.token))
        });
        all.truncate(self.rules.kept);
        Ok(all)
    }

    /// Puts the texts that end at this step among the finished ones. Only the best `beams`
    /// continuations may: those after them are there to carry the search on. (transformers also bars
    /// texts of requests that are done while others of the batch go on; here each request ends alone.)
    fn merge_finished(&mut self, best: &[Continuation]) {
        let penalty = self.length_divisor(self.generated + 1);
        let mut merged = std::mem::take(&mut self.finished);
        for continuation in best.iter().take(self.rules.beams) {
            if continuation.ends.is_none() {
                continue;
            }
            merged.push(Slot {
                tokens: self.continued(continuation.step),
                score: continuation.score / penalty,
                finish: continuation.ends,
            });
        }
        // Stable: an older text stays before a new one of equal score.
        merged.sort_by(|a, b| falling(a.score, b.score));
        merged.truncate(self.rules.beams);
        self.finished = merged;
    }

    /// Carries the best `beams` continuations on, those that do not end first.
    fn advance(&mut self, best: &[Continuation]) {
        let mut next: Vec<Continuation> = best.to_vec();
        for continuation in next.iter_mut().filter(|c| c.ends.is_some()) {
            continuation.score += BARRED;
        }
        next.sort_by(|a, b| falling(a.score, b.score));
        next.truncate(self.rules.beams);
        self.steps = next.iter().map(|c| c.step).collect();
        self.running = next
            .iter()
            .map(|c| Beam {
                tokens: self.continued(c.step),
                score: c.score,
            })
            .collect();
    }

    fn continued(&self, step: BeamStep) -> Vec<u32> {
        let mut tokens = self.running[step.parent].tokens.clone();
        tokens.push(step.token);
        tokens
    }

    /// `length ^ length_penalty`
    fn length_divisor(&self, length: usize) -> f32 {
        (length as f64).powf(self.rules.length_penalty) as f32
    }

    /// After a step: can a running beam still beat a finished text, and may the search go on?
    fn update_done(&mut self, all_end: bool) {
        let rules = &self.rules;
        let hopeful_length =
            if rules.early_stopping == EarlyStopping::Never && rules.length_penalty > 0.0 {
                rules.max_new_tokens
            } else {
                self.generated
            };
        let best_possible = self.running[0].score / self.length_divisor(hopeful_length);
        // A slot that holds no finished text is barred, so any beam can still fill it.
        let can_improve = self.finished.iter().any(|slot| best_possible > slot.score);
        let full = self.finished.iter().all(|slot| slot.finish.is_some());
        let closed = full && rules.early_stopping == EarlyStopping::True;
        self.done = !can_improve || closed || all_end;
    }

    /// The best `num_return_sequences` finished texts, best first. Where none has finished (a search
    /// cut short), the best running beam, scored at its length.
    pub fn finish(self) -> Vec<Generated> {
        let texts: Vec<Generated> = self
            .finished
            .iter()
            .filter_map(|slot| {
                Some(Generated {
                    tokens: slot.tokens.clone(),
                    score: slot.score,
                    finish: slot.finish?,
                })
            })
            .take(self.rules.returned)
            .collect();
        if !texts.is_empty() {
            return texts;
        }
        let divisor = self.length_divisor(self.generated.max(1));
        let best = self.running.first();
        best.map(|beam| Generated {
            tokens: beam.tokens.clone(),
            score: beam.score / divisor,
            finish: FinishReason::Length,
        })
        .into_iter()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(beams: usize, eos: &[u32], max_new_tokens: usize) -> BeamSearch {
        let options = GenerationOptions {
            num_beams: beams,
            eos_token_ids: eos.to_vec(),
            max_new_tokens,
            num_return_sequences: beams,
            ..Default::default()
        };
        BeamSearch::new(&options).unwrap()
    }

    fn row(scores: &[(u32, f32)]) -> Vec<Candidate> {
        let candidates = scores
            .iter()
            .map(|&(token, score)| Candidate { token, score });
        candidates.collect()
    }

    fn step(parent: usize, token: u32) -> BeamStep {
        BeamStep { parent, token }
    }

    #[test]
    fn beams_go_on_though_every_end_token_is_better() {
        let mut search = search(2, &[8, 9], 5);
        assert_eq!(search.candidates_per_beam(), 6);
        let first = row(&[
            (8, -1.0),
            (9, -1.1),
            (3, -5.0),
            (4, -6.0),
            (5, -7.0),
            (6, -8.0),
        ]);
        assert_eq!(search.step(&[first]).unwrap(), [step(0, 3), step(0, 4)]);
        // Both slots are filled and no running beam can do better.
        assert!(search.is_done());
        let texts = search.finish();
        assert_eq!(texts[0].tokens, [8]);
        assert_eq!(texts[1].tokens, [9]);
        assert_eq!(texts[0].finish, FinishReason::EndToken);
    }

    #[test]
    fn only_the_best_continuations_may_end_a_text() {
        let mut search = search(2, &[9], 5);
        // The end token is third of two beams' best: it is dropped.
        let first = row(&[(3, -1.0), (4, -2.0), (9, -3.0), (5, -4.0)]);
        search.step(&[first]).unwrap();
        let second = [
            row(&[(5, -1.0), (6, -1.5), (7, -9.0), (9, -9.5)]),
            row(&[(9, -0.5), (6, -9.0), (7, -9.1), (8, -9.2)]),
        ];
        // -2 (3 5), -2.5 (3 6) and (4 9): of equal ones the lower beam is first, so (4 9) is third.
        assert_eq!(search.step(&second).unwrap(), [step(0, 5), step(0, 6)]);
        assert_eq!(search.tokens(1), [3, 6]);
        assert!(search.finished.iter().all(|slot| slot.finish.is_none()));
    }

    #[test]
    fn at_the_last_place_everything_ends() {
        let mut search = search(2, &[9], 1);
        search
            .step(&[row(&[(3, -1.0), (9, -2.0), (4, -3.0), (5, -4.0)])])
            .unwrap();
        assert!(search.is_done());
        assert!(matches!(search.step(&[row(&[])]), Err(GenerateError::Done)));
        let texts = search.finish();
        assert_eq!(
            (texts[0].score, texts[0].finish),
            (-1.0, FinishReason::Length)
        );
        assert_eq!(
            (texts[1].score, texts[1].finish),
            (-2.0, FinishReason::EndToken)
        );
    }

    #[test]
    fn a_search_cut_short_gives_its_best_beam() {
        let mut search = search(2, &[9], 9);
        assert!(search.clone().finish()[0].tokens.is_empty());
        search.step(&[row(&[(3, -1.0), (4, -2.0)])]).unwrap();
        let rows = [row(&[(5, -2.0), (6, -4.0)]), row(&[(5, -3.0), (6, -4.0)])];
        search.step(&rows).unwrap();
        let texts = search.finish();
        assert_eq!((&texts[0].tokens[..], texts[0].score), (&[3, 5][..], -1.5));
    }

    #[test]
    fn bad_rows_are_errors_and_change_nothing() {
        let mut search = search(3, &[9], 9);
        let good = row(&[(3, -1.0), (4, -2.0), (5, -3.0)]);
        let two = [good.clone(), good.clone()];
        assert!(matches!(
            search.step(&two),
            Err(GenerateError::Rows { rows: 2, beams: 3 })
        ));
        assert!(matches!(
            search.step(&[row(&[(3, 0.0), (4, f32::NAN)])]),
            Err(GenerateError::NotANumber { token: 4 })
        ));
        assert!(matches!(
            search.step(&[row(&[])]),
            Err(GenerateError::NoToken)
        ));
        search.step(std::slice::from_ref(&good)).unwrap();
        // Later steps want a row for every beam.
        assert!(matches!(
            search.step(&[good]),
            Err(GenerateError::Rows { rows: 1, beams: 3 })
        ));
        assert_eq!(search.generated(), 1);
    }
}
