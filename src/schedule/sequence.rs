//! A request that is being decoded: its sequences, where their keys and values lie, and how their tokens are chosen.

use std::sync::Arc;

use crate::generate::{
    BeamSearch, Candidate, GenerateError, Generated, GenerationOptions, RandomStream, Row, Warp,
    sample,
};

use crate::kernels::VISUAL;

use super::request::{Event, Events, Request, RequestId, StopRule, cache_rows_of, sequences_of};
use super::timings::Clock;

/// A prompt: its image's query rows, then text, and behind an encoder the token that the decoder begins with.
#[derive(Debug, Clone)]
pub(super) struct Prompt {
    /// First row of its image in the image store.
    pub visual_row: usize,
    /// Visual rows in front of the text.
    pub visual_count: usize,
    /// Text ids, with the special tokens that they begin or end with.
    pub text: Vec<u32>,
    /// The decoder's first token, where an encoder reads image and text.
    pub decoder_start: Option<u32>,
}

impl Prompt {
    /// Positions it fills.
    pub(super) fn len(&self) -> usize {
        self.input_len() + usize::from(self.decoder_start.is_some())
    }

    /// Positions of image and text.
    pub(super) fn input_len(&self) -> usize {
        self.visual_count + self.text.len()
    }

    /// Input rows: visual references, then token ids.
    pub(super) fn inputs(&self) -> impl Iterator<Item = u32> {
        let visual =
            (self.visual_row..self.visual_row + self.visual_count).map(|row| VISUAL | row as u32);
        visual.chain(self.text.iter().copied())
    }
}

/// The sequences of a request on the device.
#[derive(Debug)]
pub(super) struct SequenceGroup {
    /// Number of its request.
    pub id: RequestId,
    pub clock: Clock,
    pub prompt: Prompt,
    pub options: Arc<GenerationOptions>,
    stop: Option<StopRule>,
    /// Ids that the score processors count as already said.
    history: Vec<u32>,
    /// Physical cache rows: the prompt's, which all sequences share, then one a step for each sequence.
    pages: Vec<u32>,
    sequences: Vec<Sequence>,
    choosing: Choosing,
}

/// One text in the making.
#[derive(Debug, Clone, Default)]
struct Sequence {
    /// Generated tokens.
    tokens: Vec<u32>,
    /// For each of them, which of the group's sequences wrote its keys and values: a beam's ancestry.
    writers: Vec<usize>,
}

/// The three ways of choosing tokens.
#[derive(Debug)]
enum Choosing {
    /// The best token each time; the device can do it alone.
    Greedy(Row),
    Beams(BeamSearch),
    /// Draws, one text a sequence.
    Sampling {
        warp: Warp,
        texts: Vec<(Row, RandomStream)>,
    },
}

impl SequenceGroup {
    /// A group at its first token. It lies nowhere until [`SequenceGroup::lend`] gives it room.
    ///
    /// # Errors
    /// Options that do not go together.
    pub(super) fn new(
        id: RequestId,
        prompt: Prompt,
        request: &Request,
        clock: Clock,
    ) -> Result<Self, GenerateError> {
        let options = Arc::clone(&request.options);
        let choosing = if options.num_beams > 1 {
            Choosing::Beams(BeamSearch::new(&options)?)
        } else if options.do_sample {
            // A text's numbers depend on the seed and its number within its request, not on what it is batched with.
            let text = |number| {
                let random = RandomStream::new(options.seed, number as u64);
                (Row::new(&options), random)
            };
            Choosing::Sampling {
                warp: Warp::from_options(&options),
                texts: (0..options.num_return_sequences).map(text).collect(),
            }
        } else {
            Choosing::Greedy(Row::new(&options))
        };
        Ok(Self {
            id,
            clock,
            sequences: vec![Sequence::default(); sequences_of(&options)],
            prompt,
            options,
            stop: request.stop.clone(),
            history: request.history.clone(),
            pages: Vec::new(),
            choosing,
        })
    }

    /// Gives it its cache rows, [`cache_rows_of`] many.
    pub(super) fn lend(&mut self, pages: Vec<u32>) {
        debug_assert_eq!(pages.len(), cache_rows_of(self.prompt.len(), &self.options));
        self.pages = pages;
    }

    /// Rows of the decoder that it is lent.
    pub(super) fn rows(&self) -> usize {
        sequences_of(&self.options)
    }

    /// Whether the device can choose its tokens without the host.
    pub(super) fn is_greedy(&self) -> bool {
        matches!(self.choosing, Choosing::Greedy(_))
    }

    /// Whether its sequences change places between steps, so that the page table must follow.
    pub(super) fn has_beams(&self) -> bool {
        matches!(self.choosing, Choosing::Beams(_))
    }

    /// Best tokens that each of its rows needs; `None`: all of them.
    pub(super) fn candidates_needed(&self) -> Option<usize> {
        match &self.choosing {
            Choosing::Greedy(_) => Some(1),
            Choosing::Beams(search) => Some(search.candidates_per_beam()),
            Choosing::Sampling { warp, .. } => warp.candidates_needed(),
        }
    }

    /// Tokens that it may still generate.
    pub(super) fn tokens_left(&self) -> usize {
        let longest = self.sequences.iter().map(|sequence| sequence.tokens.len());
        self.options.max_new_tokens - longest.max().unwrap_or(0)
    }

    /// Tokens that it must still generate.
    pub(super) fn tokens_certain(&self) -> usize {
        self.options.min_new_tokens.saturating_sub(self.tokens())
    }

    /// Tokens of its longest sequence.
    pub(super) fn tokens(&self) -> usize {
        self.options.max_new_tokens - self.tokens_left()
    }

    /// Sequences that have a next step, each a row of the decoder.
    pub(super) fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.sequences.len()).filter(|&sequence| match &self.choosing {
            Choosing::Sampling { texts, .. } => !texts[sequence].0.is_done(),
            _ => true,
        })
    }

    /// The last token of a sequence: the input of its next step.
    pub(super) fn input(&self, sequence: usize) -> u32 {
        let tokens = &self.sequences[sequence].tokens;
        tokens.last().copied().unwrap_or(0)
    }

    /// Where that input stands.
    pub(super) fn position(&self, sequence: usize) -> usize {
        (self.prompt.len() + self.sequences[sequence].tokens.len()).saturating_sub(1)
    }

    /// What a sequence's score processors see: `(what was said before, what was generated)`.
    pub(super) fn said(&self, sequence: usize) -> (&[u32], &[u32]) {
        (&self.history, &self.sequences[sequence].tokens)
    }

    /// The physical cache row of a sequence's `position`. Those of steps to come are each sequence's own.
    fn page(&self, sequence: usize, position: usize) -> u32 {
        let prompt = self.prompt.len();
        let Some(step) = position.checked_sub(prompt) else {
            return self.pages[position];
        };
        let writers = &self.sequences[sequence].writers;
        let writer = writers.get(step).copied().unwrap_or(sequence);
        self.pages[prompt + step * self.sequences.len() + writer]
    }

    /// The physical cache rows of all positions that a sequence may reach.
    pub(super) fn pages_of(&self, sequence: usize) -> impl Iterator<Item = u32> {
        let positions = self.prompt.len() + self.options.max_new_tokens;
        (0..positions).map(move |position| self.page(sequence, position))
    }

    /// Takes the candidates of the next token: after the prefill one row for all sequences, later one for each
    /// of [`SequenceGroup::running`]. Reports what was chosen; `true` when the request is finished.
    ///
    /// # Errors
    /// Scores that leave no choice.
    pub(super) fn choose(
        &mut self,
        candidates: &[Vec<Candidate>],
        events: &mut Events,
    ) -> Result<bool, GenerateError> {
        match &mut self.choosing {
            Choosing::Greedy(_) => {
                let best = candidates.first().and_then(|row| row.first());
                let best = *best.ok_or(GenerateError::NoToken)?;
                self.push_greedy(best.token, best.score, events)
            }
            Choosing::Beams(search) => {
                let stop = |tokens: &[u32]| has_ended(&self.stop, tokens);
                let next = search.step_until(candidates, &stop)?.to_vec();
                let done = search.is_done();
                self.follow(next.iter().map(|beam| (beam.parent, beam.token)));
                Ok(done)
            }
            Choosing::Sampling { warp, texts } => {
                let mut rows = candidates.iter();
                let mut row = rows.next().ok_or(GenerateError::NoToken)?;
                for (number, (text, random)) in texts.iter_mut().enumerate() {
                    if text.is_done() {
                        continue;
                    }
                    let drawn = sample(warp, row, random)?;
                    text.push(drawn.token, drawn.score);
                    if has_ended(&self.stop, text.tokens()) {
                        text.stop();
                    }
                    self.sequences[number].push(drawn.token, number);
                    let (text, token) = (number, drawn.token);
                    events.push((self.id, Event::Token { text, token }));
                    row = rows.next().unwrap_or(row);
                }
                Ok(texts.iter().all(|(text, _)| text.is_done()))
            }
        }
    }

    /// Takes the token that greedy search chose; `true` when the text is finished.
    ///
    /// # Errors
    /// A score that is not a number.
    pub(super) fn push_greedy(
        &mut self,
        token: u32,
        log_probability: f32,
        events: &mut Events,
    ) -> Result<bool, GenerateError> {
        if !log_probability.is_finite() {
            return Err(GenerateError::NotANumber { token });
        }
        let Choosing::Greedy(row) = &mut self.choosing else {
            debug_assert!(false, "only greedy search chooses on the device");
            return Ok(true);
        };
        row.push(token, log_probability);
        if has_ended(&self.stop, row.tokens()) {
            row.stop();
        }
        let done = row.is_done();
        self.sequences[0].push(token, 0);
        events.push((self.id, Event::Token { text: 0, token }));
        Ok(done)
    }

    /// Makes each sequence the continuation of its parent by a token.
    fn follow(&mut self, next: impl Iterator<Item = (usize, u32)>) {
        let next: Vec<_> = next
            .enumerate()
            .map(|(beam, (parent, token))| {
                let mut sequence = self.sequences[parent].clone();
                sequence.push(token, beam);
                sequence
            })
            .collect();
        self.sequences = next;
    }

    /// The finished texts, best first, and the cache rows that are free again.
    pub(super) fn finish(self) -> (Vec<Generated>, Vec<u32>) {
        let texts = match self.choosing {
            Choosing::Greedy(row) => vec![row.finish()],
            Choosing::Beams(search) => search.finish(),
            Choosing::Sampling { texts, .. } => {
                texts.into_iter().map(|(row, _)| row.finish()).collect()
            }
        };
        (texts, self.pages)
    }
}

/// Whether the request's own rule ends a text of these tokens.
fn has_ended(stop: &Option<StopRule>, tokens: &[u32]) -> bool {
    stop.as_ref().is_some_and(|StopRule(rule)| rule(tokens))
}

impl Sequence {
    fn push(&mut self, token: u32, writer: usize) {
        self.tokens.push(token);
        self.writers.push(writer);
    }
}
