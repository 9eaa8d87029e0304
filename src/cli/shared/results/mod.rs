//! Results kept in files: `--out results.jsonl` or `results.csv` for any command that makes a
//! record an item, and a text beside each image. A run that was killed goes on where it stopped.
//!
//! A results file is only ever appended to, a whole line at a time, so that whatever ends the run
//! leaves whole lines and at most one torn one behind them, which the next run drops. Beside it
//! lies `<file>.run.json`: what the lines were made with ([`RunRecord`]), held locked while a run
//! writes.

mod file;
mod filter;
mod format;
mod record;
mod sidecar;

use std::path::{Path, PathBuf};

pub use file::{EarlierResults, ResultsFile};
pub use filter::{ItemFilter, ItemState};
pub use format::Columns;
#[cfg(feature = "fuzzing")]
pub use format::fuzz;
pub use record::{RunRecord, model_fingerprint};
pub use sidecar::{Sidecars, parse_extension};

/// Where a command's records go.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Results")]
pub struct OutArgs {
    /// Results file, .jsonl (the objects of --json) or .csv; run again to resume it after a stop
    #[arg(long, value_name = "FILE", value_parser = parse_out)]
    pub out: Option<OutFile>,
    /// Start anew where there are results already
    #[arg(long)]
    pub overwrite: bool,
}

/// `--out`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutFile {
    pub path: PathBuf,
    format: Format,
}

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// A JSON object a line.
    JsonLines,
    /// Comma-separated values with a header (RFC 4180's quoting; lines end in a plain newline).
    Csv,
}

fn parse_out(text: &str) -> Result<OutFile, String> {
    let path = PathBuf::from(text);
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let format = match extension.to_str() {
        Some("jsonl" | "ndjson") => Format::JsonLines,
        Some("csv") => Format::Csv,
        _ => {
            return Err(
                "the name must end in .jsonl or .csv; for a text file beside each image use --sidecar"
                    .into(),
            );
        }
    };
    Ok(OutFile { path, format })
}

/// Why results cannot be kept in a file.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The system refuses.
    #[error("{}: cannot be {action} ({cause}); check the path, its permissions and the space there", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What was tried: read, written.
        action: &'static str,
        /// What the system answered.
        cause: std::io::Error,
    },
    /// There is something else in the file.
    #[error("{}: not a results file of this command ({problem}); it stays as it is: give another --out, or move it away", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
        /// How that is known.
        problem: String,
    },
    /// Its lines were made in another way.
    #[error("{}: begun with other options ({differences}); give those, another --out, or --overwrite to start anew", file.display())]
    OtherOptions {
        /// The file.
        file: PathBuf,
        /// Each option that differs: then, now.
        differences: String,
    },
    /// Another process appends to it.
    #[error("{}: another run is writing to it; wait for its end, or give another --out", file.display())]
    InUse {
        /// The file.
        file: PathBuf,
    },
}

/// Names the file and the action of a failure of the system.
fn failed(file: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> ResultsError {
    let file = file.to_path_buf();
    move |cause| ResultsError::Io {
        file,
        action,
        cause,
    }
}

/// `path` with `suffix` behind its whole name.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
