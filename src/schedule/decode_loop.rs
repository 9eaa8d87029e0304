//! One turn of decoding all active sequences: several greedy steps in one submit, or one step whose tokens the host chooses.

use std::time::Duration;

use crate::platform::Instant;

use crate::Error;
use crate::gpu::{Gpu, Program};
use crate::model::Blip2Model;

use super::device_state::DeviceState;
use super::programs::sample::{MAX_WINDOW, RowScores, SamplerKey};
use super::request::Events;
use super::sequence::SequenceGroup;
use super::tables::TableRow;
use super::timings::Timings;

/// Work to put into one submit: enough to hide the round trip, short enough to stream.
const WINDOW_TIME: Duration = Duration::from_millis(20);

/// What the device knows of the active sequences.
#[derive(Debug, Default)]
pub(super) struct DeviceRows {
    tables: TablesHold,
    /// Steps of the next greedy window.
    window: usize,
    /// The next step of the same rows, encoded while the device was busy with the one before.
    ahead: Option<(SamplerKey, wgpu::CommandBuffer)>,
}

impl DeviceRows {
    /// Notes that other rows are active now.
    pub(super) fn forget(&mut self) {
        self.tables = TablesHold::Stale;
        self.ahead = None;
    }

    /// The step that was encoded ahead, if it is one that ends in the sampler of `key`.
    fn take_ahead(&mut self, key: SamplerKey) -> Option<wgpu::CommandBuffer> {
        let (ahead, commands) = self.ahead.take()?;
        (ahead == key).then_some(commands)
    }
}

/// What the tables on the device hold.
#[derive(Debug, Default, PartialEq, Eq)]
enum TablesHold {
    /// Other rows.
    #[default]
    Stale,
    /// The running rows; what changes with each token is written at each step.
    Rows,
    /// The running rows, and the device itself keeps everything up to date.
    All,
}

/// What every way of decoding needs.
pub(super) struct Decoder<'a> {
    pub gpu: &'a Gpu,
    pub model: &'a Blip2Model,
    pub state: &'a mut DeviceState,
    pub timings: &'a mut Timings,
}

/// A group that has ended at this turn, by its index among the active ones.
pub(super) type Ended = (usize, Result<(), Error>);

impl Decoder<'_> {
    /// Prefills `groups` and chooses their first tokens.
    ///
    /// # Errors
    /// The device failed.
    pub(super) async fn prefill(
        &mut self,
        groups: &mut [SequenceGroup],
        events: &mut Events,
    ) -> Result<Vec<Ended>, Error> {
        let started = Instant::now();
        let _phase = self.gpu.phase("prefill");
        let prefill = self.state.prefill(self.gpu, self.model, groups)?;
        let key = SamplerKey::of(
            groups,
            prefill.prompts,
            true,
            self.model.language_model.vocabulary(),
        );
        let sampler = self.state.candidate_sampler(self.gpu, key)?;
        let mut encoder = prefill.program.begin(self.gpu);
        sampler.encode_behind(&mut encoder);
        self.gpu.submit([encoder.finish()]);
        let scores = sampler.read(self.gpu).await?;
        self.timings.prefill += started.elapsed();
        let each_its_row = groups.iter_mut().zip(scores.chunks(1)).enumerate();
        let ended =
            each_its_row.filter_map(|(index, (group, row))| ended(index, group, row, events));
        Ok(ended.collect())
    }

    /// Decodes the next tokens of all `groups`.
    ///
    /// # Errors
    /// The device failed.
    pub(super) async fn decode(
        &mut self,
        groups: &mut [SequenceGroup],
        device: &mut DeviceRows,
        events: &mut Events,
    ) -> Result<Vec<Ended>, Error> {
        let started = Instant::now();
        let _phase = self.gpu.phase("decode");
        let running: usize = groups.iter().map(|group| group.running().count()).sum();
        let rows = running.next_power_of_two().min(self.state.shape.rows);
        let steps_before = self.timings.steps;
        let ended = if groups.iter().all(SequenceGroup::is_greedy) {
            self.greedy_window(groups, rows, device, events).await?
        } else {
            self.step(groups, rows, device, events).await?
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
        groups: &mut [SequenceGroup],
        rows: usize,
        device: &mut DeviceRows,
        events: &mut Events,
    ) -> Result<Vec<Ended>, Error> {
        let key = SamplerKey::of(groups, rows, false, self.model.language_model.vocabulary());
        let program = self.state.decode(self.gpu, self.model, rows)?;
        let sampler = self.state.greedy_sampler(self.gpu, key)?;
        if device.tables != TablesHold::All {
            let table_rows: Vec<TableRow> = groups.iter().map(|group| (group, 0)).collect();
            self.state.decoding.write(self.gpu, &table_rows);
            self.state.step.write(self.gpu, &table_rows, rows);
            device.tables = TablesHold::All;
        }
        let longest = groups
            .iter()
            .map(SequenceGroup::tokens_left)
            .max()
            .unwrap_or(1);
        let worth = groups
            .iter()
            .map(|group| worth_a_window(group.tokens(), group.tokens_certain()));
        let window = device.window.min(worth.max().unwrap_or(1));
        let window = window.clamp(1, longest.min(MAX_WINDOW));
        let encode_steps = |steps, encoder: &mut _| {
            let steps = (0..steps).flat_map(|_| [&*program, sampler.program()]);
            Program::encode_all(steps, encoder);
        };
        let encode_first = |decoder: &Self| {
            decoder.encode(|encoder| {
                sampler.begin(encoder);
                encode_steps(1, encoder);
            })
        };
        let mut commands = device.take_ahead(key).unwrap_or_else(|| encode_first(self));
        for steps in groups_after_the_first(window) {
            self.gpu.submit([commands]);
            commands = self.encode(|encoder| encode_steps(steps, encoder));
        }
        let copy = self.encode(|encoder| sampler.copy_chosen(encoder, window));
        self.gpu.submit([commands, copy]);
        if longest > window && self.encodes_ahead() {
            device.ahead = Some((key, encode_first(self)));
        }
        let chosen = sampler.read(self.gpu, window).await?;
        self.timings.steps += window;
        let mut all_ended = Vec::new();
        for (index, group) in groups.iter_mut().enumerate() {
            for step in &chosen {
                let (token, log_probability) = step[index];
                match group.push_greedy(token, log_probability, events) {
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
        groups: &mut [SequenceGroup],
        rows: usize,
        device: &mut DeviceRows,
        events: &mut Events,
    ) -> Result<Vec<Ended>, Error> {
        let key = SamplerKey::of(groups, rows, false, self.model.language_model.vocabulary());
        let program = self.state.decode(self.gpu, self.model, rows)?;
        let sampler = self.state.candidate_sampler(self.gpu, key)?;
        let table_rows: Vec<TableRow> = groups
            .iter()
            .flat_map(|group| group.running().map(move |sequence| (group, sequence)))
            .collect();
        let tables = &self.state.decoding;
        if device.tables == TablesHold::Stale {
            tables.write(self.gpu, &table_rows);
        } else {
            if groups.iter().any(SequenceGroup::has_beams) {
                tables.write_pages(self.gpu, &table_rows);
            }
            if key.reads_history() {
                tables.write_history(self.gpu, &table_rows);
            }
        }
        self.state.step.write(self.gpu, &table_rows, rows);
        let rows_of_groups: Vec<usize> =
            groups.iter().map(|group| group.running().count()).collect();
        let encode = |decoder: &Self| decoder.encode(|encoder| sampler.encode(&program, encoder));
        let commands = device.take_ahead(key).unwrap_or_else(|| encode(self));
        self.gpu.submit([commands]);
        if groups.iter().any(|group| group.tokens_left() > 1) && self.encodes_ahead() {
            device.ahead = Some((key, encode(self)));
        }
        let scores = sampler.read(self.gpu).await?;
        self.timings.steps += 1;
        let mut rest = scores.as_slice();
        let mut all_ended = Vec::new();
        for (index, (group, count)) in groups.iter_mut().zip(&rows_of_groups).enumerate() {
            let (own, others) = rest.split_at(*count);
            rest = others;
            all_ended.extend(ended(index, group, own, events));
        }
        // A draw that ends one text of several takes its row away.
        let running: usize = groups.iter().map(|group| group.running().count()).sum();
        device.tables = if running == rows_of_groups.iter().sum::<usize>() {
            TablesHold::Rows
        } else {
            TablesHold::Stale
        };
        Ok(all_ended)
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

/// Has `group` choose from its rows' scores; says so if it has ended thereby.
fn ended(
    index: usize,
    group: &mut SequenceGroup,
    rows: &[RowScores],
    events: &mut Events,
) -> Option<Ended> {
    let candidates: Result<Vec<_>, _> = rows.iter().map(|row| row.candidates(group)).collect();
    match candidates.and_then(|candidates| group.choose(&candidates, events)) {
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
