//! `--profile` and `--trace`: where the time of a run went.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::files::atomic::AtomicFile;
use crate::gpu::{KernelTime, Profiler};

use super::Shared;
use super::output::Output;

/// A profile that is being taken.
pub struct Profile {
    profiler: Profiler,
    /// Whether the table was asked for.
    table: bool,
    trace: Option<Trace>,
}

impl Profile {
    /// Begins what `shared` asks for, if anything, and has every device that it opens take part.
    ///
    /// # Errors
    /// [`Error::Output`] where the trace's file cannot be made.
    pub fn begin(shared: &mut Shared) -> Result<Option<Self>, Error> {
        if !shared.profile && shared.trace.is_none() {
            return Ok(None);
        }
        let trace = shared.trace.as_deref().map(Trace::prepare).transpose()?;
        let profiler = Profiler::new(trace.is_some());
        shared.profiler = Some(profiler.clone());
        Ok(Some(Self {
            profiler,
            table: shared.profile,
            trace,
        }))
    }

    /// Shows and writes what was collected; `false` if the trace cannot be written, which is
    /// reported.
    pub fn end(self, output: &Output) -> bool {
        if self.table {
            for line in self.lines() {
                output.report(&line);
            }
        }
        match self.trace.map(|trace| trace.write(&self.profiler)) {
            None | Some(Ok(())) => true,
            Some(Err(error)) => output.fail(&error),
        }
    }

    fn lines(&self) -> Vec<String> {
        let times = self.profiler.kernel_times();
        // The sum of nothing is -0.
        let total: f64 = 0.0 + times.iter().map(|it| it.time.as_secs_f64()).sum::<f64>();
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

/// Where the trace goes. A run that is stopped leaves there what was there before.
struct Trace {
    path: PathBuf,
    /// Whether it is a file, old or new; a pipe or a device is written as it stands.
    is_file: bool,
}

impl Trace {
    /// Finds out before the run whether a file can be made there.
    fn prepare(path: &Path) -> Result<Self, Error> {
        let there = path.metadata().ok();
        let trace = Self {
            path: path.into(),
            is_file: there.as_ref().is_none_or(|it| it.is_file()),
        };
        let tried = match there {
            Some(it) if it.is_dir() => File::create(path).map(drop),
            _ if trace.is_file => AtomicFile::create(path).map(drop),
            _ => Ok(()),
        };
        tried.map_err(|cause| trace.error(cause))?;
        Ok(trace)
    }

    fn write(self, profiler: &Profiler) -> Result<(), Error> {
        let written = match self.is_file {
            true => AtomicFile::create(&self.path).and_then(|mut file| {
                write_trace(profiler, &mut file)?;
                file.finish()
            }),
            false => File::create(&self.path).and_then(|file| write_trace(profiler, file)),
        };
        written.map_err(|cause| self.error(cause))
    }

    fn error(&self, cause: io::Error) -> Error {
        Error::Output {
            file: self.path.clone(),
            cause,
        }
    }
}

fn write_trace(profiler: &Profiler, to: impl Write) -> io::Result<()> {
    let mut to = BufWriter::new(to);
    profiler.write_trace(&mut to)?;
    to.flush()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_that_is_never_written_leaves_what_was_there() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("trace.json");
        Trace::prepare(&path).expect("a place for a file");
        assert!(!path.exists());
        std::fs::write(&path, "an older one").expect("written");
        let trace = Trace::prepare(&path).expect("as before");
        let text = std::fs::read_to_string(&path).expect("still there");
        assert_eq!(text, "an older one");

        trace.write(&Profiler::new(true)).expect("written");
        let text = std::fs::read_to_string(&path).expect("a trace");
        assert!(text.contains("traceEvents"), "{text}");
        let files = folder.path().read_dir().expect("a folder").count();
        assert_eq!(files, 1, "nothing temporary is left");

        assert!(Trace::prepare(folder.path()).is_err(), "a folder");
        assert!(Trace::prepare(&path.join("below")).is_err(), "no folder");
    }
}
