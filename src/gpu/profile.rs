//! How long each dispatch takes, by the device's own timestamps, and when the host did what.
//!
//! A [`Profiler`] handed to [`super::GpuOptions`] collects both; without one, nothing is asked of the device and a
//! replay is the same as ever. Within a profile, every dispatch is followed by a timestamp: where the hardware would
//! have overlapped the end of one kernel with the start of the next, that is lost, so a profiled run is a little slower.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::platform::Instant;

/// Events kept for a trace; a run that has more keeps the first ones (60 MB of them).
const MAX_EVENTS: usize = 1 << 20;

/// Collects what is measured on the devices it is given to. Cheap to clone; all clones are the same collection.
#[derive(Debug, Clone)]
pub struct Profiler {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    started: Instant,
    keeps_events: bool,
    collected: Mutex<Collected>,
}

#[derive(Debug, Default)]
struct Collected {
    kernels: BTreeMap<[&'static str; 2], (u64, Duration)>,
    phases: BTreeMap<&'static str, (u64, Duration)>,
    events: Vec<Event>,
    /// Events that [`MAX_EVENTS`] left out.
    dropped: u64,
    /// Dispatches recorded into command buffers whose times have not come back.
    untimed: u64,
}

/// The dispatches of one kernel within one program, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelTime {
    /// Name of the program.
    pub program: &'static str,
    /// Name of the kernel.
    pub kernel: &'static str,
    /// How often it ran.
    pub dispatches: u64,
    /// How long that took on the device.
    pub time: Duration,
}

/// Something the host did, all times together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhaseTime {
    /// What.
    pub phase: &'static str,
    /// How often.
    pub count: u64,
    /// How long, waiting for the device included.
    pub time: Duration,
}

/// What an [`Event`] is about; events of one lane are ordered, and nest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// A phase of the task that drives the device.
    Host,
    /// A program on the device, or a dispatch within it.
    Device,
    /// A phase on a worker thread, by its number.
    Worker(usize),
}

/// A span of time, in nanoseconds since the profiler was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Where it happened.
    pub lane: Lane,
    /// Phase, program or kernel.
    pub name: &'static str,
    /// Whether it is a kernel, within its program.
    pub is_kernel: bool,
    /// Its start.
    pub start: u64,
    /// Its length.
    pub length: u64,
}

impl Profiler {
    /// An empty collection; `keeps_events` keeps every span for [`Profiler::write_trace`], not only the sums.
    #[must_use]
    pub fn new(keeps_events: bool) -> Self {
        Self {
            inner: Arc::new(Inner {
                started: Instant::now(),
                keeps_events,
                collected: Mutex::default(),
            }),
        }
    }

    /// Time by program and kernel, the longest first. Complete when the devices are gone, or nothing is under way on
    /// them: [`Profiler::untimed`] is then 0.
    #[must_use]
    pub fn kernel_times(&self) -> Vec<KernelTime> {
        let of = |(&[program, kernel], &(dispatches, time)): (&[&'static str; 2], &(u64, _))| {
            KernelTime {
                program,
                kernel,
                dispatches,
                time,
            }
        };
        let mut times: Vec<_> = self.lock().kernels.iter().map(of).collect();
        times.sort_by_key(|kernel| std::cmp::Reverse(kernel.time));
        times
    }

    /// Time by phase, the longest first.
    #[must_use]
    pub fn phase_times(&self) -> Vec<PhaseTime> {
        let of =
            |(&phase, &(count, time)): (&&'static str, &(u64, _))| PhaseTime { phase, count, time };
        let mut times: Vec<_> = self.lock().phases.iter().map(of).collect();
        times.sort_by_key(|phase| std::cmp::Reverse(phase.time));
        times
    }

    /// Dispatches whose times have not come back from the device.
    #[must_use]
    pub fn untimed(&self) -> u64 {
        self.lock().untimed
    }

    /// Time since the profiler was made.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.inner.started.elapsed()
    }

    /// What was kept for a trace, by lane and start; a program comes before its kernels.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.lock().events.clone();
        let longest_first = |event: &Event| std::cmp::Reverse(event.length);
        events.sort_by_key(|event| {
            (
                event.lane,
                event.start,
                longest_first(event),
                event.is_kernel,
            )
        });
        events
    }

    /// Writes the events in Chrome's trace-event format, which ui.perfetto.dev and chrome://tracing open: a lane for
    /// the host's phases, one for the device's programs with their kernels, one for each worker thread.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_trace(&self, out: &mut impl Write) -> io::Result<()> {
        let events = self.events();
        let mut lanes: Vec<Lane> = events.iter().map(|event| event.lane).collect();
        lanes.dedup();
        let dropped = self.lock().dropped;
        write!(
            out,
            "{{\"displayTimeUnit\":\"ms\",\"otherData\":{{\"dropped_events\":{dropped}}},\"traceEvents\":["
        )?;
        let names = lanes.iter().map(|&lane| {
            serde_json::json!({"ph": "M", "pid": 1, "tid": lane.number(), "name": "thread_name", "args": {"name": lane.name()}})
        });
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let spans = events.iter().map(|event| {
            serde_json::json!({
                "ph": "X",
                "pid": 1,
                "tid": event.lane.number(),
                "name": event.name,
                "cat": event.category(),
                "ts": micros(event.start),
                "dur": micros(event.length),
            })
        });
        for (index, object) in names.chain(spans).enumerate() {
            let separator = if index == 0 { "\n" } else { ",\n" };
            write!(out, "{separator}{object}")?;
        }
        writeln!(out, "\n]}}")
    }

    /// Notes that the host does `name` until the result is dropped.
    pub fn phase(&self, name: &'static str) -> Phase {
        self.phase_in(Lane::Host, name)
    }

    /// [`Profiler::phase`] in the lane of the calling thread, if it is one of those that work beside the host.
    pub fn worker_phase(&self, name: &'static str) -> Phase {
        let lane = crate::platform::worker_index().map_or(Lane::Host, Lane::Worker);
        self.phase_in(lane, name)
    }

    fn phase_in(&self, lane: Lane, name: &'static str) -> Phase {
        Phase {
            running: Some((self.clone(), lane, name, Instant::now())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Collected> {
        let collected = &self.inner.collected;
        collected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds from the profiler's making to `instant`.
    pub(super) fn nanos_at(&self, instant: Instant) -> u64 {
        nanos(instant.saturating_duration_since(self.inner.started))
    }

    /// Notes that `count` dispatches will be timed.
    pub(super) fn expect(&self, count: usize) {
        self.lock().untimed += count as u64;
    }

    /// Takes the times of a program's dispatches: `spans` has start and end of each of `kernels`.
    pub(super) fn take(&self, program: &'static str, kernels: &[&'static str], spans: &[[u64; 2]]) {
        let mut collected = self.lock();
        collected.untimed = collected.untimed.saturating_sub(kernels.len() as u64);
        for (kernel, [start, end]) in kernels.iter().zip(spans) {
            let entry = collected.kernels.entry([program, kernel]).or_default();
            entry.0 += 1;
            entry.1 += Duration::from_nanos(end - start);
        }
        let (Some([start, _]), Some([_, end])) = (spans.first(), spans.last()) else {
            return;
        };
        if self.inner.keeps_events {
            let event = |name, is_kernel, [start, end]: [u64; 2]| Event {
                lane: Lane::Device,
                name,
                is_kernel,
                start,
                length: end - start,
            };
            collected.push(event(program, false, [*start, *end]));
            for (kernel, span) in kernels.iter().zip(spans) {
                collected.push(event(kernel, true, *span));
            }
        }
    }
}

impl Collected {
    fn push(&mut self, event: Event) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        } else {
            self.dropped += 1;
        }
    }
}

impl Lane {
    fn number(self) -> usize {
        match self {
            Self::Host => 1,
            Self::Device => 2,
            Self::Worker(number) => 3 + number,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Host => "host".into(),
            Self::Device => "GPU".into(),
            Self::Worker(number) => format!("worker {number}"),
        }
    }
}

impl Event {
    fn category(&self) -> &'static str {
        match (self.lane, self.is_kernel) {
            (Lane::Device, true) => "kernel",
            (Lane::Device, false) => "program",
            _ => "phase",
        }
    }
}

/// Something the host does, as long as this lives.
#[derive(Debug, Default)]
#[must_use = "a phase lasts as long as this value"]
pub struct Phase {
    running: Option<(Profiler, Lane, &'static str, Instant)>,
}

impl Drop for Phase {
    fn drop(&mut self) {
        let Some((profiler, lane, name, started)) = self.running.take() else {
            return;
        };
        let time = started.elapsed();
        let start = profiler.nanos_at(started);
        let mut collected = profiler.lock();
        let entry = collected.phases.entry(name).or_default();
        entry.0 += 1;
        entry.1 += time;
        if profiler.inner.keeps_events {
            collected.push(Event {
                lane,
                name,
                is_kernel: false,
                start,
                length: nanos(time),
            });
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Where the device's clock stands on the profiler's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// Nanoseconds a tick.
    pub period: f64,
    /// A reading of the device's clock …
    pub tick: u64,
    /// … and the nanoseconds since the profiler was made at that moment.
    pub nanos: u64,
}

impl Clock {
    /// When `tick` was, on the profiler's clock. One before the profiler was made becomes 0.
    fn nanos_of(&self, tick: u64) -> u64 {
        let ticks = tick.wrapping_sub(self.tick).cast_signed();
        let nanos = self.nanos as f64 + ticks as f64 * self.period;
        nanos.max(0.0) as u64
    }

    /// Start and end of each dispatch from the ticks `[first, last]` of each. A clock that steps back gives empty spans.
    pub(super) fn spans(&self, ticks: impl Iterator<Item = [u64; 2]>) -> Vec<[u64; 2]> {
        let mut latest = 0;
        ticks
            .map(|[first, last]| {
                let start = self.nanos_of(first).max(latest);
                latest = self.nanos_of(last).max(start);
                [start, latest]
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_clock_is_put_on_the_profilers() {
        let clock = Clock {
            period: 2.0,
            tick: 1000,
            nanos: 500,
        };
        assert_eq!(clock.nanos_of(1100), 700);
        assert_eq!(clock.nanos_of(900), 300);
        assert_eq!(clock.nanos_of(0), 0, "before the profiler was made");
        let spans = clock.spans([[1000, 1010], [1010, 1004], [1004, 1030]].into_iter());
        assert_eq!(spans, [[500, 520], [520, 520], [520, 560]]);
    }

    #[test]
    fn sums_are_by_program_and_kernel_and_the_longest_comes_first() {
        let profiler = Profiler::new(true);
        profiler.expect(3);
        profiler.take(
            "vit",
            &["copy", "matmul", "copy"],
            &[[10, 11], [11, 31], [31, 33]],
        );
        assert_eq!(profiler.untimed(), 0);
        let times = profiler.kernel_times();
        let short: Vec<_> = times
            .iter()
            .map(|it| (it.kernel, it.dispatches, it.time.as_nanos()))
            .collect();
        assert_eq!(short, [("matmul", 1, 20), ("copy", 2, 3)]);
        let events = profiler.events();
        assert_eq!(events.len(), 4);
        assert_eq!((events[0].name, events[0].length), ("vit", 23));
    }
}
