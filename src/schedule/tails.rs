//! What follows the logits of a step: choosing on the device, or handing the best candidates to the host.

use crate::Error;
use crate::generate::{Candidate, GenerateError, GenerationOptions, ScoreProcessors};
use crate::gpu::{ActivationPool, Gpu, GpuError, Program, ProgramBuilder, Readback};
use crate::kernels::{
    Advance, MAX_TOP_K, ProcessLogits, advance, argmax, log_softmax, process_logits, top_k,
};

use super::decode::MAX_WINDOW;
use super::session::Session;

/// Processors, argmax and the stop rule, all on the device.
#[derive(Debug)]
pub(super) struct GreedyTail {
    rows: usize,
    stop: wgpu::Buffer,
    /// A step counter, then `(token, log-probability)` of each step and row.
    chosen: wgpu::Buffer,
    program: Program,
    readback: Readback,
}

impl GreedyTail {
    pub(super) fn record(
        gpu: &Gpu,
        session: &Session,
        options: &GenerationOptions,
    ) -> Result<Self, GpuError> {
        let rows = session.shape.rows;
        let chosen_bytes = 8 * (1 + MAX_WINDOW * rows) as u64;
        let choices = gpu.storage("choices", 16 * rows as u64)?;
        let stop = gpu.storage("stop", 4 * rows as u64)?;
        let chosen = gpu.storage("chosen", chosen_bytes)?;
        let mut program = ProgramBuilder::new(gpu, "greedy");
        record_processors(&mut program, session, options);
        argmax(&mut program, &session.logits, &choices);
        advance(
            &mut program,
            &Advance {
                choices: &choices,
                stop: &stop,
                row_info: &session.pages.row_info,
                row_state: &session.row_state,
                tokens: &session.tokens,
                history: &session.history,
                chosen: &chosen,
                rows,
                history_stride: session.shape.max_length,
                pad_token: options.pad_token_id.unwrap_or(0),
                end_tokens: &options.eos_token_ids,
            },
        );
        Ok(Self {
            rows,
            stop,
            chosen,
            program: program.finish(&ActivationPool::default())?,
            readback: Readback::new(gpu, chosen_bytes)?,
        })
    }

    /// Sets each row's greatest number of new tokens.
    pub(super) fn write_stops(&self, gpu: &Gpu, max_new_tokens: usize, rows: usize) {
        gpu.write(&self.stop, 0, &vec![max_new_tokens as u32; rows]);
    }

    /// Starts a window of steps: the step counter goes back to zero.
    pub(super) fn begin(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.clear_buffer(&self.chosen, 0, Some(8));
    }

    /// Records the end of one step.
    pub(super) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        self.program.encode(encoder);
    }

    /// Submits `encoder`, which holds `steps` steps, and reads `(token, log-probability)` of each step and row.
    pub(super) async fn submit_and_read(
        &self,
        gpu: &Gpu,
        mut encoder: wgpu::CommandEncoder,
        steps: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>, Error> {
        let pairs = 1 + steps * self.rows;
        self.readback
            .record(&mut encoder, &self.chosen, 0, 8 * pairs as u64);
        gpu.submit([encoder.finish()]);
        let pairs: Vec<[u32; 2]> = self.readback.read(gpu, pairs).await?;
        let chosen = |&[token, bits]: &[u32; 2]| {
            let log_probability = f32::from_bits(bits);
            if log_probability.is_finite() {
                Ok((token, log_probability))
            } else {
                Err(Error::from(GenerateError::NotANumber { token }))
            }
        };
        pairs[1..]
            .chunks(self.rows)
            .map(|step| step.iter().map(chosen).collect())
            .collect()
    }
}

/// Processors, then each row's best candidates for the host to choose from.
#[derive(Debug)]
pub(super) struct CandidateTail {
    rows: usize,
    program: Program,
    source: CandidateSource,
    readback: Readback,
    /// Whether the scores are log-probabilities already, or logits still.
    normalised: bool,
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

impl CandidateTail {
    /// `k` candidates a row (`None`, or more than the device can rank: all of them); for beams the processors see
    /// log-probabilities, else logits.
    pub(super) fn record(
        gpu: &Gpu,
        session: &Session,
        options: &GenerationOptions,
        k: Option<usize>,
        normalise: bool,
    ) -> Result<Self, GpuError> {
        let rows = session.shape.rows;
        let vocabulary = session.logits.columns;
        let mut program = ProgramBuilder::new(gpu, "candidates");
        if normalise {
            log_softmax(&mut program, &session.logits);
        }
        record_processors(&mut program, session, options);
        let (source, bytes) = match k.map(|k| k.min(vocabulary)).filter(|&k| k <= MAX_TOP_K) {
            Some(k) => {
                let top = gpu.storage("top", (rows * k * 8) as u64)?;
                let log_sum_exp = gpu.storage("log_sum_exp", rows as u64 * 4)?;
                top_k(&mut program, &session.logits, k, &top, &log_sum_exp);
                (
                    CandidateSource::Top {
                        k,
                        top,
                        log_sum_exp,
                    },
                    rows * (k * 8 + 4),
                )
            }
            None => {
                let scores = gpu.storage("scores", (rows * vocabulary * 4) as u64)?;
                crate::kernels::copy(&mut program, &session.logits, &scores);
                (
                    CandidateSource::All { vocabulary, scores },
                    rows * vocabulary * 4,
                )
            }
        };
        Ok(Self {
            rows,
            program: program.finish(&ActivationPool::default())?,
            source,
            readback: Readback::new(gpu, bytes as u64)?,
            normalised: normalise,
        })
    }

    /// Submits `encoder`, which ends in logits, and reads each row's candidates with their log-probabilities.
    pub(super) async fn submit_and_read(
        &self,
        gpu: &Gpu,
        mut encoder: wgpu::CommandEncoder,
    ) -> Result<Vec<Vec<Candidate>>, Error> {
        self.program.encode(&mut encoder);
        match &self.source {
            CandidateSource::Top {
                k,
                top,
                log_sum_exp,
            } => {
                let top_bytes = (self.rows * k * 8) as u64;
                self.readback.record(&mut encoder, top, 0, top_bytes);
                self.readback
                    .record(&mut encoder, log_sum_exp, top_bytes, self.rows as u64 * 4);
                gpu.submit([encoder.finish()]);
                let words: Vec<u32> = self.readback.read(gpu, self.rows * (2 * k + 1)).await?;
                let (top, sums) = words.split_at(self.rows * k * 2);
                top.chunks(k * 2)
                    .zip(sums)
                    .map(|(row, &sum)| {
                        let entries = row
                            .chunks(2)
                            .map(|entry| (entry[0], f32::from_bits(entry[1])));
                        self.candidates(entries, f32::from_bits(sum))
                    })
                    .collect()
            }
            CandidateSource::All { vocabulary, scores } => {
                let count = self.rows * vocabulary;
                self.readback
                    .record(&mut encoder, scores, 0, count as u64 * 4);
                gpu.submit([encoder.finish()]);
                let scores: Vec<f32> = self.readback.read(gpu, count).await?;
                scores
                    .chunks(*vocabulary)
                    .map(|row| {
                        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                        let sum: f64 = row
                            .iter()
                            .map(|&score| f64::from(score - highest).exp())
                            .sum();
                        self.candidates((0..).zip(row.iter().copied()), highest + sum.ln() as f32)
                    })
                    .collect()
            }
        }
    }

    /// A row's candidates as log-probabilities. Masked entries become −∞.
    fn candidates(
        &self,
        entries: impl Iterator<Item = (u32, f32)>,
        log_sum_exp: f32,
    ) -> Result<Vec<Candidate>, Error> {
        if log_sum_exp == f32::NEG_INFINITY || log_sum_exp <= MASKED {
            return Err(GenerateError::NoToken.into());
        }
        if !log_sum_exp.is_finite() {
            return Err(GenerateError::NotANumber { token: 0 }.into());
        }
        let shift = if self.normalised { 0.0 } else { log_sum_exp };
        Ok(entries
            .map(|(token, score)| Candidate {
                token,
                score: if score <= MASKED {
                    f32::NEG_INFINITY
                } else {
                    score - shift
                },
            })
            .collect())
    }
}

/// What `generate` lets options ask for is what the kernel can rank.
const _: () = assert!(crate::generate::MAX_CANDIDATES <= MAX_TOP_K);

/// Scores at or below this stand for −∞ in the shaders.
const MASKED: f32 = -3.4e38;

/// Records the score processors that `options` ask for, if any.
fn record_processors(program: &mut ProgramBuilder, session: &Session, options: &GenerationOptions) {
    let processors = ScoreProcessors::from_options(options);
    if processors.is_identity() {
        return;
    }
    let inputs = ProcessLogits {
        scores: &session.logits,
        history: &session.history,
        history_stride: session.shape.max_length,
        row_state: &session.row_state,
        repetition_penalty: processors.repetition_penalty,
        // Longer than any history it bans nothing, whatever its length.
        no_repeat_ngram: processors
            .no_repeat_ngram_size
            .min(session.shape.max_length + 1),
        banned: &processors.eos_token_ids,
        min_new_tokens: processors.min_new_tokens,
    };
    process_logits(program, &inputs);
    if !processors.suppress_tokens.is_empty() {
        // The same kernel with nothing but a ban that never ends.
        let always = ProcessLogits {
            repetition_penalty: 1.0,
            no_repeat_ngram: 0,
            banned: &processors.suppress_tokens,
            min_new_tokens: usize::MAX,
            ..inputs
        };
        process_logits(program, &always);
    }
}
