//! `--profile` and `--trace`: where the time of a run went.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use crate::Error;
use crate::gpu::{KernelTime, Profiler};

use super::Shared;
use super::output::Output;

/// A profile that is being taken.
pub(super) struct Profile {
    profiler: Profiler,
    /// Whether the table was asked for.
    table: bool,
    trace: Option<(PathBuf, File)>,
}

impl Profile {
    /// Begins what `shared` asks for, if anything, and has every device that it opens take part.
    ///
    /// # Errors
    /// [`Error::Output`] where the trace's file cannot be made.
    pub(super) fn begin(shared: &mut Shared) -> Result<Option<Self>, Error> {
        if !shared.profile && shared.trace.is_none() {
            return Ok(None);
        }
        let create = |path: &PathBuf| match File::create(path) {
            Ok(file) => Ok((path.clone(), file)),
            Err(cause) => Err(Error::Output {
                file: path.clone(),
                cause,
            }),
        };
        let trace = shared.trace.as_ref().map(create).transpose()?;
        let profiler = Profiler::new(trace.is_some());
        shared.profiler = Some(profiler.clone());
        Ok(Some(Self {
            profiler,
            table: shared.profile,
            trace,
        }))
    }

    /// Shows and writes what was collected; `false` if the trace cannot be written, which is reported.
    pub(super) fn end(self, output: &Output) -> bool {
        if self.table {
            for line in self.lines() {
                output.report(&line);
            }
        }
        let Some((path, file)) = self.trace else {
            return true;
        };
        let mut file = BufWriter::new(file);
        let written = self
            .profiler
            .write_trace(&mut file)
            .and_then(|()| file.flush());
        match written {
            Ok(()) => true,
            Err(cause) => output.fail(&Error::Output { file: path, cause }),
        }
    }

    fn lines(&self) -> Vec<String> {
        let times = self.profiler.kernel_times();
        let total: f64 = times.iter().map(|it| it.time.as_secs_f64()).sum();
        let mut lines = vec![format!(
            "{:<22}{:<14}{:>11}{:>12}{:>11}{:>8}",
            "kernel", "program", "dispatches", "total ms", "mean µs", "share"
        )];
        lines.extend(times.iter().map(|kernel| row(kernel, total)));
        lines.push(format!(
            "on the device {:.1} ms of {:.1} ms in all",
            total * 1e3,
            self.profiler.elapsed().as_secs_f64() * 1e3
        ));
        let phases: Vec<_> = self
            .profiler
            .phase_times()
            .iter()
            .map(|it| format!("{} {:.1} ms", it.phase, it.time.as_secs_f64() * 1e3))
            .collect();
        if !phases.is_empty() {
            lines.push(format!("on the host: {}", phases.join(", ")));
        }
        let untimed = self.profiler.untimed();
        if untimed > 0 {
            lines.push(format!("{untimed} dispatches gave no time"));
        }
        lines
    }
}

fn row(kernel: &KernelTime, total: f64) -> String {
    let seconds = kernel.time.as_secs_f64();
    format!(
        "{:<22}{:<14}{:>11}{:>12.3}{:>11.1}{:>7.1}%",
        kernel.kernel,
        kernel.program,
        kernel.dispatches,
        seconds * 1e3,
        seconds * 1e6 / kernel.dispatches.max(1) as f64,
        100.0 * seconds / total.max(1e-12),
    )
}
