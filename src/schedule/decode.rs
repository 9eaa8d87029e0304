//! One turn of decoding all active jobs: several greedy steps in one submit, or one step whose tokens the host chooses.

use std::time::{Duration, Instant};

use crate::Error;
use crate::gpu::{Gpu, Program};
use crate::kernels::INACTIVE;
use crate::model::Blip2Model;

use super::Timings;
use super::job::Job;
use super::queue::Event;
use super::session::{Session, TableRow};
use super::tails::{RowScores, TailKey};

/// Steps recorded into one submit at most: what a finished text may waste.
pub(super) const MAX_WINDOW: usize = 8;

/// Work to put into one submit: enough to hide the round trip, short enough to stream.
const WINDOW_TIME: Duration = Duration::from_millis(20);

/// What the device knows of the active jobs.
#[derive(Debug, Default)]
pub(super) struct DeviceRows {
    tables: Tables,
    /// Steps of the next greedy window.
    window: usize,
}

impl DeviceRows {
    /// Notes that other jobs are active now.
    pub(super) fn forget(&mut self) {
        self.tables = Tables::Stale;
    }
}

/// The state of the tables on the device.
#[derive(Debug, Default, PartialEq, Eq)]
enum Tables {
    /// They hold other rows.
    #[default]
    Stale,
    /// They hold the running rows; what changes with each token is written at each step.
    Rows,
    /// The device itself has kept everything up to date.
    All,
}

/// What every way of decoding needs.
pub(super) struct Decoder<'a> {
    pub gpu: &'a Gpu,
    pub model: &'a Blip2Model,
    pub session: &'a mut Session,
    pub timings: &'a mut Timings,
}

/// A job that has ended at this turn, by its index among the active ones.
pub(super) type Ended = (usize, Result<(), Error>);

impl Decoder<'_> {
    /// Prefills `jobs` and chooses their first tokens.
    ///
    /// # Errors
    /// The device failed.
    pub(super) async fn prefill(
        &mut self,
        jobs: &mut [Job],
        events: &mut Vec<Event>,
    ) -> Result<Vec<Ended>, Error> {
        let started = Instant::now();
        let _phase = self.gpu.phase("prefill");
        let prefill = self.session.prefill(self.gpu, self.model, jobs)?;
        let key = TailKey::of(
            jobs,
            prefill.prompts,
            true,
            self.model.language_model.vocabulary(),
        );
        let tail = self.session.candidate_tail(self.gpu, key)?;
        let encoder = prefill.program.begin(self.gpu);
        let scores = tail.submit_and_read(self.gpu, encoder).await?;
        self.timings.prefill += started.elapsed();
        let each_its_row = jobs.iter_mut().zip(scores.chunks(1)).enumerate();
        let ended = each_its_row.filter_map(|(index, (job, row))| ended(index, job, row, events));
        Ok(ended.collect())
    }

    /// Decodes the next tokens of all `jobs`.
    ///
    /// # Errors
    /// The device failed.
    pub(super) async fn decode(
        &mut self,
        jobs: &mut [Job],
        device: &mut DeviceRows,
        events: &mut Vec<Event>,
    ) -> Result<Vec<Ended>, Error> {
        let started = Instant::now();
        let _phase = self.gpu.phase("decode");
        let running: usize = jobs.iter().map(|job| job.running().count()).sum();
        let rows = running.next_power_of_two().min(self.session.shape.rows);
        let steps_before = self.timings.steps;
        let ended = if jobs.iter().all(Job::is_greedy) {
            self.greedy_window(jobs, rows, device, events).await?
        } else {
            self.step(jobs, rows, device, events).await?
        };
        if !ended.is_empty() {
            device.forget(); // rows move up
        }
        let elapsed = started.elapsed();
        device.window = next_window(self.timings.steps - steps_before, elapsed);
        self.timings.decode += elapsed;
        Ok(ended)
    }

    /// Greedy: argmax, stop rule and the next input stay on the device; the host reads what was chosen.
    async fn greedy_window(
        &mut self,
        jobs: &mut [Job],
        rows: usize,
        device: &mut DeviceRows,
        events: &mut Vec<Event>,
    ) -> Result<Vec<Ended>, Error> {
        let key = TailKey::of(jobs, rows, false, self.model.language_model.vocabulary());
        let program = self.session.decode(self.gpu, self.model, rows)?;
        let tail = self.session.greedy_tail(self.gpu, key)?;
        if device.tables != Tables::All {
            let table_rows: Vec<TableRow> = jobs.iter().map(|job| (job, 0)).collect();
            self.session.decoding.write(self.gpu, &table_rows);
            self.write_inputs(&table_rows, rows);
            device.tables = Tables::All;
        }
        let longest = jobs.iter().map(Job::tokens_left).max().unwrap_or(1);
        let window = device.window.clamp(1, longest.min(MAX_WINDOW));
        let mut encoder = self.new_encoder();
        tail.begin(&mut encoder);
        let steps = (0..window).flat_map(|_| [&*program, tail.program()]);
        Program::encode_all(steps, &mut encoder);
        let chosen = tail.submit_and_read(self.gpu, encoder, window).await?;
        self.timings.steps += window;
        let mut all_ended = Vec::new();
        for (index, job) in jobs.iter_mut().enumerate() {
            for step in &chosen {
                let (token, log_probability) = step[index];
                match job.push_greedy(token, log_probability, events) {
                    Ok(false) => continue,
                    Ok(true) => all_ended.push((index, Ok(()))),
                    Err(error) => all_ended.push((index, Err(error.into()))),
                }
                break;
            }
        }
        Ok(all_ended)
    }

    /// One step of all rows; the host chooses from each row's candidates.
    async fn step(
        &mut self,
        jobs: &mut [Job],
        rows: usize,
        device: &mut DeviceRows,
        events: &mut Vec<Event>,
    ) -> Result<Vec<Ended>, Error> {
        let key = TailKey::of(jobs, rows, false, self.model.language_model.vocabulary());
        let program = self.session.decode(self.gpu, self.model, rows)?;
        let tail = self.session.candidate_tail(self.gpu, key)?;
        let table_rows: Vec<TableRow> = jobs
            .iter()
            .flat_map(|job| job.running().map(move |sequence| (job, sequence)))
            .collect();
        let tables = &self.session.decoding;
        if device.tables == Tables::Stale {
            tables.write(self.gpu, &table_rows);
        } else {
            if jobs.iter().any(Job::has_beams) {
                tables.write_pages(self.gpu, &table_rows);
            }
            if key.reads_history() {
                tables.write_history(self.gpu, &table_rows);
            }
        }
        self.write_inputs(&table_rows, rows);
        let rows_of_jobs: Vec<usize> = jobs.iter().map(|job| job.running().count()).collect();
        let mut encoder = self.new_encoder();
        program.encode(&mut encoder);
        let scores = tail.submit_and_read(self.gpu, encoder).await?;
        self.timings.steps += 1;
        let mut rest = scores.as_slice();
        let mut all_ended = Vec::new();
        for (index, (job, count)) in jobs.iter_mut().zip(&rows_of_jobs).enumerate() {
            let (own, others) = rest.split_at(*count);
            rest = others;
            all_ended.extend(ended(index, job, own, events));
        }
        // A draw that ends one text of several takes its row away.
        let running: usize = jobs.iter().map(|job| job.running().count()).sum();
        device.tables = if running == rows_of_jobs.iter().sum::<usize>() {
            Tables::Rows
        } else {
            Tables::Stale
        };
        Ok(all_ended)
    }

    /// Writes inputs and positions of the decode rows, and that those beyond do nothing.
    fn write_inputs(&self, table_rows: &[TableRow], rows: usize) {
        let mut tokens = vec![0; rows];
        let mut row_info = vec![[0, INACTIVE]; rows];
        for (row, (job, sequence)) in table_rows.iter().enumerate() {
            tokens[row] = job.input(*sequence);
            row_info[row] = [row as u32, job.position(*sequence) as u32];
        }
        self.gpu.write(&self.session.tokens, 0, &tokens);
        self.gpu.write(&self.session.row_info, 0, &row_info);
    }

    fn new_encoder(&self) -> wgpu::CommandEncoder {
        self.gpu
            .device()
            .create_command_encoder(&Default::default())
    }
}

/// Has `job` choose from its rows' scores; says so if it has ended thereby.
fn ended(
    index: usize,
    job: &mut Job,
    rows: &[RowScores],
    events: &mut Vec<Event>,
) -> Option<Ended> {
    let candidates: Result<Vec<_>, _> = rows.iter().map(|row| row.candidates(job)).collect();
    match candidates.and_then(|candidates| job.choose(&candidates, events)) {
        Ok(false) => None,
        Ok(true) => Some((index, Ok(()))),
        Err(error) => Some((index, Err(error.into()))),
    }
}

/// As many steps as fit [`WINDOW_TIME`], judged by the window just run.
fn next_window(window: usize, elapsed: Duration) -> usize {
    let step = elapsed.as_secs_f64() / window.max(1) as f64;
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
