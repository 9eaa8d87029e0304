//! The three ways of choosing tokens, over one session: greedy (on the device), beams and sampling (on the host,
//! from each row's best candidates).

use std::time::{Duration, Instant};

use crate::Error;
use crate::generate::{
    BeamSearch, Candidate, Generated, GenerationOptions, RandomStream, Row, Warp, sample,
};
use crate::gpu::{Activation, Gpu};
use crate::kernels::INACTIVE;
use crate::model::Blip2Model;

use super::Timings;
use super::session::{Prompt, Session};
use super::tails::{CandidateTail, GreedyTail};

/// Steps recorded into one submit at most: what a finished text may waste.
pub(super) const MAX_WINDOW: usize = 8;

/// Work to put into one submit: enough to hide the round trip, short enough to stream.
const WINDOW_TIME: Duration = Duration::from_millis(20);

/// One text to generate.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub prompt: Prompt,
    /// Ids that the score processors count as already said.
    pub history: Vec<u32>,
    /// Index of this job's first physical cache row.
    pub first_cache_row: usize,
}

/// Hears each token as it is chosen: job, alternative, token.
pub(super) type OnToken<'a> = dyn FnMut(usize, usize, u32) + Send + 'a;

/// What every way of decoding needs.
pub(super) struct Decoder<'a> {
    pub gpu: &'a Gpu,
    pub model: &'a Blip2Model,
    pub session: &'a mut Session,
    pub visual: &'a Activation,
    pub jobs: &'a [Job],
    pub options: &'a GenerationOptions,
    pub timings: &'a mut Timings,
}

/// Sequences that one job decodes side by side.
pub(super) fn rows_per_job(options: &GenerationOptions) -> usize {
    if options.num_beams > 1 {
        options.num_beams
    } else {
        options.num_return_sequences
    }
}

/// Physical cache rows of a job: its prompt once, then a row a step for each of its sequences.
pub(super) fn cache_rows(prompt: &Prompt, options: &GenerationOptions) -> usize {
    prompt.len() + options.max_new_tokens * rows_per_job(options)
}

impl Decoder<'_> {
    /// Generates for every job; the best text first.
    ///
    /// # Errors
    /// The device failed, or the model's scores leave no choice.
    pub(super) async fn generate(
        &mut self,
        on_token: &mut OnToken<'_>,
    ) -> Result<Vec<Vec<Generated>>, Error> {
        if self.options.max_new_tokens == 0 {
            return Ok(vec![Vec::new(); self.jobs.len()]);
        }
        if self.options.num_beams > 1 {
            self.beams().await
        } else if self.options.do_sample {
            self.sampling(on_token).await
        } else {
            self.greedy(on_token).await
        }
    }

    /// Greedy: argmax, stop rule and the next input stay on the device; the host reads what was chosen.
    async fn greedy(&mut self, on_token: &mut OnToken<'_>) -> Result<Vec<Vec<Generated>>, Error> {
        let tail = GreedyTail::record(self.gpu, self.session, self.options)?;
        let sequences = Sequences::new(self.jobs, 1);
        sequences.write_pages(self.gpu, self.session);
        // Where each prompt ends: `advance` moves on from there.
        let ends: Vec<[u32; 2]> = (0..)
            .zip(self.jobs)
            .map(|(row, job)| [row, job.prompt.len() as u32 - 1])
            .collect();
        self.gpu.write(&self.session.pages.row_info, 0, &ends);
        self.write_job_histories();
        tail.write_stops(self.gpu, self.options.max_new_tokens, self.jobs.len());

        let mut rows: Vec<Row> = self.jobs.iter().map(|_| Row::new(self.options)).collect();
        let prefill = self.prefill(1)?;
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        prefill.program.encode(&mut encoder);
        let mut window = 1;
        let mut is_prefill = true;
        tail.begin(&mut encoder);
        tail.encode(&mut encoder);
        loop {
            let started = Instant::now();
            let chosen = tail.submit_and_read(self.gpu, encoder, window).await?;
            self.count_time(is_prefill, window, started.elapsed());
            for step in chosen {
                for (job, (row, (token, log_probability))) in rows.iter_mut().zip(step).enumerate()
                {
                    if !row.is_done() {
                        row.push(token, log_probability);
                        on_token(job, 0, token);
                    }
                }
            }
            if rows.iter().all(Row::is_done) {
                return Ok(rows.into_iter().map(|row| vec![row.finish()]).collect());
            }
            // The prefill says little about a step: the first window of steps is one step.
            window = if is_prefill {
                1
            } else {
                next_window(window, started.elapsed())
            };
            is_prefill = false;
            encoder = self
                .gpu
                .device()
                .create_command_encoder(&Default::default());
            tail.begin(&mut encoder);
            for _ in 0..window {
                self.session.decode.encode(&mut encoder);
                tail.encode(&mut encoder);
            }
        }
    }

    /// Beam search: the host keeps the beams; the page table follows their ancestry, no cache row is copied.
    async fn beams(&mut self) -> Result<Vec<Vec<Generated>>, Error> {
        let beams = self.options.num_beams;
        let mut searches = self
            .jobs
            .iter()
            .map(|_| BeamSearch::new(self.options))
            .collect::<Result<Vec<_>, _>>()?;
        let per_row = searches.first().map_or(0, BeamSearch::candidates_per_beam);
        let tail =
            CandidateTail::record(self.gpu, self.session, self.options, Some(per_row), true)?;
        let mut sequences = Sequences::new(self.jobs, beams);
        let mut candidates = self.first_candidates(&sequences, &tail).await?;
        let mut step = 0;
        loop {
            for (job, search) in searches.iter_mut().enumerate() {
                if search.is_done() {
                    continue;
                }
                // After the prefill a job has one row, the same for all of its beams.
                let rows = if step == 0 {
                    &candidates[job..=job]
                } else {
                    &candidates[job * beams..][..beams]
                };
                let next = search.step(rows)?;
                sequences.follow(job, step, next.iter().map(|beam| (beam.parent, beam.token)));
            }
            if searches.iter().all(BeamSearch::is_done) {
                return Ok(searches.into_iter().map(BeamSearch::finish).collect());
            }
            let going: Vec<bool> = searches.iter().map(|search| !search.is_done()).collect();
            sequences.write_pages(self.gpu, self.session);
            self.write_step(&sequences, step, &going);
            candidates = self.step(&tail).await?;
            step += 1;
        }
    }

    /// Sampling: the host draws from each row's candidates.
    async fn sampling(&mut self, on_token: &mut OnToken<'_>) -> Result<Vec<Vec<Generated>>, Error> {
        let texts = self.options.num_return_sequences;
        let warp = Warp::from_options(self.options);
        let tail = CandidateTail::record(
            self.gpu,
            self.session,
            self.options,
            warp.candidates_needed(),
            false,
        )?;
        let mut sequences = Sequences::new(self.jobs, texts);
        // A text's numbers depend on the seed and its number within its job, not on what it is batched with.
        let mut randoms: Vec<_> = (0..self.jobs.len() * texts)
            .map(|row| RandomStream::new(self.options.seed, (row % texts) as u64))
            .collect();
        let mut rows: Vec<Row> = randoms.iter().map(|_| Row::new(self.options)).collect();
        let mut candidates = self.first_candidates(&sequences, &tail).await?;
        let mut step = 0;
        loop {
            for (index, row) in rows.iter_mut().enumerate() {
                if row.is_done() {
                    continue;
                }
                let from = if step == 0 { index / texts } else { index };
                let drawn = sample(&warp, &candidates[from], &mut randoms[index])?;
                row.push(drawn.token, drawn.score);
                sequences.push(index, drawn.token);
                on_token(index / texts, index % texts, drawn.token);
            }
            if rows.iter().all(Row::is_done) {
                let mut texts_of_jobs = vec![Vec::new(); self.jobs.len()];
                for (index, row) in rows.into_iter().enumerate() {
                    texts_of_jobs[index / texts].push(row.finish());
                }
                return Ok(texts_of_jobs);
            }
            let going: Vec<bool> = rows
                .chunks(texts)
                .map(|rows| rows.iter().any(|row| !row.is_done()))
                .collect();
            self.write_step(&sequences, step, &going);
            candidates = self.step(&tail).await?;
            step += 1;
        }
    }

    fn prefill(
        &mut self,
        rows_per_job: usize,
    ) -> Result<std::sync::Arc<super::session::Prefill>, Error> {
        let prompts: Vec<Prompt> = self.jobs.iter().map(|job| job.prompt.clone()).collect();
        Ok(self.session.prefill(
            self.gpu,
            self.model,
            self.visual,
            &prompts,
            rows_per_job,
            false,
        )?)
    }

    /// Prefill, and the candidates of each job's first token.
    async fn first_candidates(
        &mut self,
        sequences: &Sequences<'_>,
        tail: &CandidateTail,
    ) -> Result<Vec<Vec<Candidate>>, Error> {
        sequences.write_pages(self.gpu, self.session);
        // The logits of job i are in row i, so its history must be there too.
        self.write_job_histories();
        let prefill = self.prefill(sequences.per_job)?;
        let started = Instant::now();
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        prefill.program.encode(&mut encoder);
        let candidates = tail.submit_and_read(self.gpu, encoder).await?;
        self.count_time(true, 1, started.elapsed());
        Ok(candidates)
    }

    /// Adds to the timings of prefill or decode.
    fn count_time(&mut self, is_prefill: bool, steps: usize, elapsed: Duration) {
        if is_prefill {
            self.timings.prefill += elapsed;
        } else {
            self.timings.decode += elapsed;
            self.timings.steps += steps;
        }
    }

    /// One decode step of all rows, and each row's candidates.
    async fn step(&mut self, tail: &CandidateTail) -> Result<Vec<Vec<Candidate>>, Error> {
        let started = Instant::now();
        let mut encoder = self
            .gpu
            .device()
            .create_command_encoder(&Default::default());
        self.session.decode.encode(&mut encoder);
        let candidates = tail.submit_and_read(self.gpu, encoder).await?;
        self.count_time(false, 1, started.elapsed());
        Ok(candidates)
    }

    /// Writes inputs, positions and histories of the token that step `step` chose for each sequence.
    fn write_step(&self, sequences: &Sequences<'_>, step: usize, going: &[bool]) {
        let per_job = sequences.per_job;
        let tokens: Vec<u32> = sequences
            .tokens
            .iter()
            .map(|tokens| tokens.last().copied().unwrap_or(0))
            .collect();
        let row_info: Vec<[u32; 2]> = (0..tokens.len())
            .map(|row| {
                let job = row / per_job;
                let position = (self.jobs[job].prompt.len() + step) as u32;
                [row as u32, if going[job] { position } else { INACTIVE }]
            })
            .collect();
        self.gpu.write(&self.session.tokens, 0, &tokens);
        self.gpu.write(&self.session.pages.row_info, 0, &row_info);
        let histories: Vec<Vec<u32>> = sequences
            .tokens
            .iter()
            .enumerate()
            .map(|(row, tokens)| [&self.jobs[row / per_job].history, tokens.as_slice()].concat())
            .collect();
        let histories: Vec<_> = histories
            .iter()
            .zip(&sequences.tokens)
            .map(|(history, tokens)| (history.as_slice(), tokens.len()))
            .collect();
        self.write_history(&histories);
    }

    /// Writes what each job has said before its first token, a row a job.
    fn write_job_histories(&self) {
        let histories: Vec<_> = self
            .jobs
            .iter()
            .map(|job| (job.history.as_slice(), 0))
            .collect();
        self.write_history(&histories);
    }

    /// Rows of `(history, how many of it are new)`, into history and row state.
    fn write_history(&self, histories: &[(&[u32], usize)]) {
        let stride = self.session.shape.max_length;
        let mut words = vec![0; histories.len() * stride];
        let mut state = Vec::with_capacity(histories.len());
        for ((history, new), row) in histories.iter().zip(words.chunks_mut(stride)) {
            row[..history.len()].copy_from_slice(history);
            state.push([history.len() as u32, *new as u32]);
        }
        self.gpu.write(&self.session.history, 0, &words);
        self.gpu.write(&self.session.row_state, 0, &state);
    }
}

/// Tokens and cache rows of the sequences of all jobs, `per_job` a job.
struct Sequences<'a> {
    jobs: &'a [Job],
    per_job: usize,
    /// Generated tokens of each sequence.
    tokens: Vec<Vec<u32>>,
    /// For each sequence and generated token, which of its job's sequences wrote it: the beam's ancestry.
    writers: Vec<Vec<usize>>,
}

impl<'a> Sequences<'a> {
    fn new(jobs: &'a [Job], per_job: usize) -> Self {
        Self {
            jobs,
            per_job,
            tokens: vec![Vec::new(); jobs.len() * per_job],
            writers: vec![Vec::new(); jobs.len() * per_job],
        }
    }

    /// Appends a token to a sequence.
    fn push(&mut self, sequence: usize, token: u32) {
        self.tokens[sequence].push(token);
        self.writers[sequence].push(sequence % self.per_job);
    }

    /// Makes each sequence of `job` the continuation of its parent by a token.
    fn follow(&mut self, job: usize, step: usize, next: impl Iterator<Item = (usize, u32)>) {
        let first = job * self.per_job;
        let (tokens, writers): (Vec<_>, Vec<_>) = next
            .enumerate()
            .map(|(beam, (parent, token))| {
                let parent = first + parent;
                let mut tokens = self.tokens[parent][..step].to_vec();
                let mut writers = self.writers[parent][..step].to_vec();
                tokens.push(token);
                writers.push(beam);
                (tokens, writers)
            })
            .unzip();
        self.tokens.splice(first..first + self.per_job, tokens);
        self.writers.splice(first..first + self.per_job, writers);
    }

    /// Writes the page table: a job's prompt rows are shared by its sequences; the row of generated token `t` is the
    /// one its writer had at that step. Entries of steps to come are each sequence's own.
    fn write_pages(&self, gpu: &Gpu, session: &Session) {
        let max_length = session.shape.max_length;
        let last = session.cache_rows() as u32 - 1;
        let mut table = vec![0_u32; self.tokens.len() * max_length];
        for (sequence, row) in table.chunks_mut(max_length).enumerate() {
            let job = &self.jobs[sequence / self.per_job];
            let own = sequence % self.per_job;
            let prompt = job.prompt.len();
            for (position, entry) in row.iter_mut().enumerate() {
                let within = if position < prompt {
                    position
                } else {
                    let step = position - prompt;
                    let writer = self.writers[sequence].get(step).copied().unwrap_or(own);
                    prompt + step * self.per_job + writer
                };
                *entry = ((job.first_cache_row + within) as u32).min(last);
            }
        }
        gpu.write(&session.pages.page_table, 0, &table);
    }
}

/// As many steps as fit [`WINDOW_TIME`], judged by the window just run.
fn next_window(window: usize, elapsed: Duration) -> usize {
    let step = elapsed.as_secs_f64() / window as f64;
    ((WINDOW_TIME.as_secs_f64() / step.max(1e-6)) as usize).clamp(1, MAX_WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_grow_for_fast_devices_and_shrink_for_slow_ones() {
        assert_eq!(next_window(1, Duration::from_millis(800)), 1);
        assert_eq!(next_window(1, Duration::from_micros(100)), MAX_WINDOW);
        assert_eq!(next_window(4, Duration::from_millis(20)), 4);
    }
}
