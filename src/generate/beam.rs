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
    can_improve: bool,
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
    finished: bool,
}

/// One of the best continuations of a step.
#[derive(Clone, Copy)]
struct Continuation {
    step: BeamStep,
    score: f32,
    /// It ends here, by an end token or by length.
    ends: bool,
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
            finished: false,
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
            can_improve: true,
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
        if self.done {
            return Err(GenerateError::Done);
        }
        let best = self.best_continuations(rows)?;
        if best.len() < self.rules.beams {
            return Err(GenerateError::NoToken);
        }
        self.merge_finished(&best);
        self.advance(&best);
        self.generated += 1;
        self.update_done(best.iter().all(|c| c.ends));
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
                    ends: at_length || self.rules.eos_token_ids.contains(&token),
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
    /// continuations may: those after them are there to carry the search on.
    fn merge_finished(&mut self, best: &[Continuation]) {
        let full = self.finished.iter().all(|slot| slot.finished);
        let closed = full && self.rules.early_stopping == EarlyStopping::True;
        let penalty = self.length_divisor(self.generated + 1);
        let mut merged = std::mem::take(&mut self.finished);
        for continuation in best.iter().take(self.rules.beams).filter(|c| c.ends) {
            let mut score = continuation.score / penalty;
            if closed {
                score += BARRED;
            }
            if !self.can_improve {
                score += BARRED;
            }
            merged.push(Slot {
                tokens: self.continued(continuation.step),
                score,
                finished: true,
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
        for continuation in next.iter_mut().filter(|c| c.ends) {
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
        let worst = self.finished.iter().map(|slot| slot.score);
        let worst = worst.fold(f32::INFINITY, f32::min);
        let beatable = |slot: &Slot| best_possible > if slot.finished { worst } else { BARRED };
        self.can_improve &= self.finished.iter().any(beatable);
        let full = self.finished.iter().all(|slot| slot.finished);
        let closed = full && rules.early_stopping == EarlyStopping::True;
        self.done = !self.can_improve || closed || all_end;
    }

    /// The best `num_return_sequences` finished texts, best first. Where none has finished (a search
    /// cut short), the best running beam, scored at its length.
    pub fn finish(self) -> Vec<Generated> {
        let text = |tokens: Vec<u32>, score| {
            let ended = tokens
                .last()
                .is_some_and(|t| self.rules.eos_token_ids.contains(t));
            Generated {
                tokens,
                score,
                finish: if ended {
                    FinishReason::EndToken
                } else {
                    FinishReason::Length
                },
            }
        };
        let texts: Vec<Generated> = self
            .finished
            .iter()
            .filter(|slot| slot.finished)
            .take(self.rules.returned)
            .map(|slot| text(slot.tokens.clone(), slot.score))
            .collect();
        if !texts.is_empty() {
            return texts;
        }
        let divisor = self.length_divisor(self.generated.max(1));
        let best = self.running.first();
        best.map(|beam| text(beam.tokens.clone(), beam.score / divisor))
            .into_iter()
            .collect()
    }
}
