//! What follows the logits of a step: choosing on the device, or handing the best candidates to the host.

use crate::Error;
use crate::generate::{Candidate, GenerateError, MAX_CANDIDATES, ScoreProcessors};
use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program, ProgramBuilder, Readback};
use crate::kernels::{
    Advance, MAX_TOP_K, ProcessLogits, advance, argmax, copy, log_softmax, process_logits, top_k,
};

use crate::schedule::sequence::SequenceGroup;
use crate::schedule::tables::{RowTables, StepTables};

/// Greedy steps of one submit at most: what a finished text may waste.
pub(in crate::schedule) const MAX_WINDOW: usize = 8;

/// What a recorded sampler does. Samplers are few: each is recorded once a device state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::schedule) struct SamplerKey {
    /// Whether the rows are prompts just prefilled, or sequences being decoded.
    pub is_prefill: bool,
    /// Rows of logits.
    pub rows: usize,
    /// Candidates a row; `None`: all.
    pub candidates: Option<usize>,
    /// Whether some row works on log-probabilities.
    normalises: bool,
    /// Whether some row's scores are processed.
    processes: bool,
}

impl SamplerKey {
    /// The sampler that serves `groups` in `rows` rows of logits.
    pub(in crate::schedule) fn of(
        groups: &[SequenceGroup],
        rows: usize,
        is_prefill: bool,
        vocabulary: usize,
    ) -> Self {
        let needed = groups.iter().map(SequenceGroup::candidates_needed);
        let candidates = needed
            .reduce(|a, b| a.zip(b).map(|(a, b)| a.max(b)))
            .flatten()
            .map(|k| k.min(vocabulary).next_power_of_two().min(vocabulary))
            .filter(|&k| k <= MAX_TOP_K);
        Self {
            is_prefill,
            rows,
            candidates,
            normalises: groups.iter().any(SequenceGroup::has_beams),
            processes: groups
                .iter()
                .any(|group| !ScoreProcessors::from_options(&group.options).is_identity()),
        }
    }

    /// Whether the kernels read what the rows have said.
    pub(in crate::schedule) fn reads_history(&self) -> bool {
        self.processes
    }
}

/// Processors, argmax and the stop rule, all on the device.
#[derive(Debug)]
pub(in crate::schedule) struct GreedySampler {
    rows: usize,
    /// A step counter, then `(token, log-probability)` of each step and row.
    chosen: wgpu::Buffer,
    program: Program,
    readback: Readback,
}

impl GreedySampler {
    pub(in crate::schedule) fn record(
        gpu: &Gpu,
        inputs: SamplerInputs<'_>,
        step: &StepTables,
        key: SamplerKey,
    ) -> Result<Self, GpuError> {
        let (rows, tables) = (key.rows, inputs.tables);
        let chosen_bytes = 8 * (1 + MAX_WINDOW * rows) as u64;
        let chosen = gpu.storage("chosen", chosen_bytes)?;
        let mut program = ProgramBuilder::new(gpu, "greedy");
        let logits = inputs.processed(&mut program, &key);
        let bests = argmax(&mut program, &logits);
        advance(
            &mut program,
            &Advance {
                bests: &bests,
                rules: &tables.rules,
                rules_stride: tables.rules_stride,
                row_info: &step.row_info,
                row_state: &tables.row_state,
                tokens: &step.tokens,
                history: &tables.history,
                chosen: &chosen,
                rows,
                history_stride: tables.max_length,
            },
        );
        Ok(Self {
            rows,
            chosen,
            program: program.finish(&ActivationPool::default())?,
            readback: Readback::new(gpu, chosen_bytes)?,
        })
    }

    /// Starts a window of steps: the step counter goes back to zero.
    pub(in crate::schedule) fn begin(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.clear_buffer(&self.chosen, 0, Some(8));
    }

    /// The end of one step.
    pub(in crate::schedule) fn program(&self) -> &Program {
        &self.program
    }

    /// Ends a window of `steps` steps: what they chose is copied to where [`Self::read`] finds it.
    pub(in crate::schedule) fn copy_chosen(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        steps: usize,
    ) {
        let pairs = 1 + steps * self.rows;
        self.readback
            .record(encoder, &self.chosen, 0, 8 * pairs as u64);
    }

    /// Reads `(token, log-probability)` of each step and row of a submitted window of `steps`. Rows that are finished, and
    /// those beyond the running ones, hold nothing of meaning.
    pub(in crate::schedule) async fn read(
        &self,
        gpu: &Gpu,
        steps: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>, Error> {
        let pairs = 1 + steps * self.rows;
        let pairs: Vec<[u32; 2]> = self.readback.read(gpu, pairs).await?;
        let row = |&[token, bits]: &[u32; 2]| (token, f32::from_bits(bits));
        let steps = pairs[1..].chunks(self.rows);
        Ok(steps.map(|step| step.iter().map(row).collect()).collect())
    }
}

/// Processors, then each row's best candidates for the host to choose from.
#[derive(Debug)]
pub(in crate::schedule) struct CandidateSampler {
    rows: usize,
    program: Program,
    source: CandidateSource,
    readback: Readback,
}

/// What the host reads.
#[derive(Debug)]
enum CandidateSource {
    /// The `k` best of each row and each row's log-sum-exp.
    Top {
        k: usize,
        top: wgpu::Buffer,
        log_sum_exp: wgpu::Buffer,
    },
    /// All scores: for sampling without a limit.
    All {
        vocabulary: usize,
        scores: wgpu::Buffer,
    },
}

/// A row's best tokens by score (a logit, or a log-probability where the row was normalised) and `ln Σ exp` of the row.
#[derive(Debug)]
pub(in crate::schedule) struct RowScores {
    best: Vec<(u32, f32)>,
    log_sum_exp: f32,
}

impl CandidateSampler {
    pub(in crate::schedule) fn record(
        gpu: &Gpu,
        inputs: SamplerInputs<'_>,
        key: SamplerKey,
    ) -> Result<Self, GpuError> {
        let rows = key.rows;
        let mut program = ProgramBuilder::new(gpu, "candidates");
        let logits = inputs.processed(&mut program, &key);
        let (source, bytes) = match key.candidates {
            Some(k) => {
                let top = gpu.storage("top", (rows * k * 8) as u64)?;
                let log_sum_exp = gpu.storage("log_sum_exp", rows as u64 * 4)?;
                top_k(&mut program, &logits, k, &top, &log_sum_exp);
                let source = CandidateSource::Top {
                    k,
                    top,
                    log_sum_exp,
                };
                (source, rows * (k * 8 + 4))
            }
            None => {
                let vocabulary = logits.columns;
                let scores = gpu.storage("scores", (rows * vocabulary * 4) as u64)?;
                copy(&mut program, &logits, &scores);
                let source = CandidateSource::All { vocabulary, scores };
                (source, rows * vocabulary * 4)
            }
        };
        Ok(Self {
            rows,
            program: program.finish(&ActivationPool::default())?,
            source,
            readback: Readback::new(gpu, bytes as u64)?,
        })
    }

    /// Records `program`, which ends in logits, and the sampler behind it, as far as [`Self::read`] needs it.
    pub(in crate::schedule) fn encode(
        &self,
        program: &Program,
        encoder: &mut wgpu::CommandEncoder,
    ) {
        Program::encode_all([program, &self.program], encoder);
        self.encode_copies(encoder);
    }

    /// Records the sampler alone, behind a program that ends in logits.
    pub(in crate::schedule) fn encode_behind(&self, encoder: &mut wgpu::CommandEncoder) {
        self.program.encode(encoder);
        self.encode_copies(encoder);
    }

    fn encode_copies(&self, encoder: &mut wgpu::CommandEncoder) {
        match &self.source {
            CandidateSource::Top {
                k,
                top,
                log_sum_exp,
            } => {
                let top_bytes = (self.rows * k * 8) as u64;
                self.readback.record(encoder, top, 0, top_bytes);
                self.readback
                    .record(encoder, log_sum_exp, top_bytes, self.rows as u64 * 4);
            }
            CandidateSource::All { vocabulary, scores } => {
                let bytes = (self.rows * vocabulary * 4) as u64;
                self.readback.record(encoder, scores, 0, bytes);
            }
        }
    }

    /// Reads each row's best tokens of the step submitted last.
    pub(in crate::schedule) async fn read(&self, gpu: &Gpu) -> Result<Vec<RowScores>, Error> {
        match &self.source {
            CandidateSource::Top { k, .. } => {
                let words: Vec<u32> = self.readback.read(gpu, self.rows * (2 * k + 1)).await?;
                let (top, sums) = words.split_at(self.rows * k * 2);
                let entry = |entry: &[u32]| (entry[0], f32::from_bits(entry[1]));
                let row = |(row, sum): (&[u32], &u32)| RowScores {
                    best: row.chunks(2).map(entry).collect(),
                    log_sum_exp: f32::from_bits(*sum),
                };
                Ok(top.chunks(k * 2).zip(sums).map(row).collect())
            }
            CandidateSource::All { vocabulary, .. } => {
                let scores: Vec<f32> = self.readback.read(gpu, self.rows * vocabulary).await?;
                Ok(scores.chunks(*vocabulary).map(RowScores::of_all).collect())
            }
        }
    }
}

impl RowScores {
    /// A whole row of scores.
    fn of_all(scores: &[f32]) -> Self {
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = scores
            .iter()
            .map(|&score| f64::from(score - highest).exp())
            .sum();
        Self {
            best: (0..).zip(scores.iter().copied()).collect(),
            log_sum_exp: highest + sum.ln() as f32,
        }
    }

    /// The candidates that `group` asked for, as log-probabilities. Masked entries become −∞.
    ///
    /// # Errors
    /// Scores that leave no choice.
    pub(in crate::schedule) fn candidates(
        &self,
        group: &SequenceGroup,
    ) -> Result<Vec<Candidate>, GenerateError> {
        let log_sum_exp = self.log_sum_exp;
        if log_sum_exp == f32::NEG_INFINITY || log_sum_exp <= MASKED {
            return Err(GenerateError::NoToken);
        }
        if !log_sum_exp.is_finite() {
            return Err(GenerateError::NotANumber { token: 0 });
        }
        let shift = if group.has_beams() { 0.0 } else { log_sum_exp };
        let candidate = |&(token, score): &(u32, f32)| Candidate {
            token,
            score: if score <= MASKED {
                f32::NEG_INFINITY
            } else {
                score - shift
            },
        };
        let all: Vec<Candidate> = self.best.iter().map(candidate).collect();
        Ok(match group.candidates_needed() {
            // A group that needs few of a row that was read whole, for another's sake.
            Some(k) if k < all.len() => {
                let scores: Vec<f32> = all.iter().map(|candidate| candidate.score).collect();
                crate::generate::top_k(&scores, k)
                    .into_iter()
                    .map(|best| all[best.token as usize])
                    .collect()
            }
            _ => all,
        })
    }
}

/// What `generate` lets options ask for is what the kernel can rank.
const _: () = assert!(MAX_CANDIDATES <= MAX_TOP_K);

/// Scores at or below this stand for −∞ in the shaders.
const MASKED: f32 = -3.4e38;

/// What a sampler reads.
#[derive(Debug, Clone, Copy)]
pub(in crate::schedule) struct SamplerInputs<'a> {
    /// `[rows, vocabulary]`, of which the first rows count.
    pub logits: &'a Activation,
    pub tables: &'a RowTables,
}

impl SamplerInputs<'_> {
    /// The scores of the rows of `key`, behind their processors, if any row has some.
    fn processed(self, program: &mut ProgramBuilder, key: &SamplerKey) -> Activation {
        let Self { logits, tables } = self;
        let scores = logits.reshaped(key.rows, logits.columns);
        if key.normalises {
            log_softmax(program, &scores, &tables.rules, tables.rules_stride);
        }
        if key.processes {
            process_logits(
                program,
                &ProcessLogits {
                    scores: &scores,
                    history: &tables.history,
                    history_stride: tables.max_length,
                    row_state: &tables.row_state,
                    rules: &tables.rules,
                    rules_stride: tables.rules_stride,
                },
            );
        }
        scores
    }
}
