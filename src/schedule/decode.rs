//! One turn of decoding all active jobs: several greedy steps in one submit, or one step whose tokens the host chooses.

use std::time::Duration;

use crate::platform::Instant;

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
    /// The next step of the same jobs, encoded while the device was busy with the one before.
    ahead: Option<(TailKey, wgpu::CommandBuffer)>,
}

impl DeviceRows {
    /// Notes that other jobs are active now.
    pub(super) fn forget(&mut self) {
        self.tables = Tables::Stale;
        self.ahead = None;
    }

    /// The step that was encoded ahead, if it is one that ends in the tail of `key`.
    fn take_ahead(&mut self, key: TailKey) -> Option<wgpu::CommandBuffer> {
        let (ahead, commands) = self.ahead.take()?;
        (ahead == key).then_some(commands)
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
        let mut encoder = prefill.program.begin(self.gpu);
        tail.encode_behind(&mut encoder);
        self.gpu.submit([encoder.finish()]);
        let scores = tail.read(self.gpu).await?;
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

    /// Greedy: argmax, stop rule and the next input stay on the device; the host reads what was chosen. The device has its
    /// first step while the host encodes the others, and the first of the next window is encoded while it is busy.
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
        let worth = jobs
            .iter()
            .map(|job| worth_a_window(job.tokens(), job.tokens_certain()));
        let window = device.window.min(worth.max().unwrap_or(1));
        let window = window.clamp(1, longest.min(MAX_WINDOW));
        let encode_steps = |steps, encoder: &mut _| {
            let steps = (0..steps).flat_map(|_| [&*program, tail.program()]);
            Program::encode_all(steps, encoder);
        };
        let encode_first = |decoder: &Self| {
            decoder.encode(|encoder| {
                tail.begin(encoder);
                encode_steps(1, encoder);
            })
        };
        let mut commands = device.take_ahead(key).unwrap_or_else(|| encode_first(self));
        for steps in groups_after_the_first(window) {
            self.gpu.submit([commands]);
            commands = self.encode(|encoder| encode_steps(steps, encoder));
        }
        let copy = self.encode(|encoder| tail.copy_chosen(encoder, window));
        self.gpu.submit([commands, copy]);
        if longest > window && self.encodes_ahead() {
            device.ahead = Some((key, encode_first(self)));
        }
        let chosen = tail.read(self.gpu, window).await?;
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
        let encode = |decoder: &Self| decoder.encode(|encoder| tail.encode(&program, encoder));
        let commands = device.take_ahead(key).unwrap_or_else(|| encode(self));
        self.gpu.submit([commands]);
        if jobs.iter().any(|job| job.tokens_left() > 1) && self.encodes_ahead() {
            device.ahead = Some((key, encode(self)));
        }
        let scores = tail.read(self.gpu).await?;
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

    /// The commands that `record` puts into an encoder.
    fn encode(&self, record: impl FnOnce(&mut wgpu::CommandEncoder)) -> wgpu::CommandBuffer {
        let device = self.gpu.device();
        let mut encoder = device.create_command_encoder(&Default::default());
        record(&mut encoder);
        encoder.finish()
    }

    /// Whether a step may be encoded before it is known to be needed: the profiler waits for the times of all it has seen.
    fn encodes_ahead(&self) -> bool {
        self.gpu.profiler().is_none()
    }
}

/// Sizes of the groups that the steps of a window are submitted in, after the first step, which goes alone: each about
/// twice the one before, so that the device is never out of work while the host encodes (which takes it less than half
/// as long as the device), in few submits.
fn groups_after_the_first(window: usize) -> impl Iterator<Item = usize> {
    let mut left = window.saturating_sub(1);
    let mut size = 1;
    std::iter::from_fn(move || {
        size *= 2;
        let group = if left < 2 * size { left } else { size };
        left -= group;
        (group > 0).then_some(group)
    })
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

/// Steps to take before the host looks whether a text of `tokens` tokens has ended: those that are certain, or a quarter as
/// many as it has. Steps behind the end are for nothing, and most texts are short.
fn worth_a_window(tokens: usize, certain: usize) -> usize {
    certain.max(tokens / 4).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_goes_out_in_growing_groups() {
        let groups = |window| groups_after_the_first(window).collect::<Vec<_>>();
        assert!(groups(1).is_empty());
        assert_eq!(groups(2), [1]);
        assert_eq!(groups(5), [2, 2]);
        assert_eq!(groups(8), [2, 5]);
        for window in 1..40 {
            assert_eq!(1 + groups(window).iter().sum::<usize>(), window);
        }
    }

    #[test]
    fn a_young_text_is_looked_at_often() {
        let worth = [0, 1, 8, 40].map(|tokens| worth_a_window(tokens, 0));
        assert_eq!(worth, [1, 1, 2, 10]);
        assert_eq!(worth_a_window(8, 12), 12);
    }

    #[test]
    fn windows_grow_for_fast_devices_and_shrink_for_slow_ones() {
        assert_eq!(next_window(1, Duration::from_millis(800)), 1);
        assert_eq!(next_window(1, Duration::from_micros(100)), MAX_WINDOW);
        assert_eq!(next_window(4, Duration::from_millis(20)), 4);
    }
}
