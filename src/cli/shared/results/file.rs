//! A results file that can be gone on with after a kill at any moment.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::format::{Columns, Existing};
use super::record::LockedRecord;
use super::{Format, OutArgs, OutFile, ResultsError, RunRecord, failed};
use crate::files::atomic;
use crate::files::log::Log;

/// The longest that a line waits before it is on the disk and not only with the system, as long as
/// lines come.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// A results file that was checked and locked, but in which nothing has changed yet.
#[derive(Debug)]
pub struct EarlierResults {
    path: PathBuf,
    format: Format,
    columns: Columns,
    record: RunRecord,
    locked: LockedRecord,
    /// Whether `record` is what lies beside the lines.
    recorded: bool,
    existing: Existing,
    /// Whether what is there goes.
    anew: bool,
}

impl EarlierResults {
    /// The file of `--out`, if that was given.
    ///
    /// # Errors
    /// A file that is not one of this command's results, that was begun with other options, that
    /// another run is writing to, or that cannot be read or written.
    pub fn open(
        args: &OutArgs,
        columns: Columns,
        record: impl FnOnce() -> RunRecord,
    ) -> Result<Option<Self>, ResultsError> {
        let Some(OutFile { path, format }) = &args.out else {
            return Ok(None);
        };
        let record = record();
        let earlier = RunRecord::read(path);
        let existing = format.read(path, &columns);
        if let Some(earlier) = earlier.as_ref().filter(|_| !args.overwrite) {
            let differences = record.differences(earlier);
            let no_lines = matches!(&existing, Ok(existing) if existing.keys.is_empty());
            if !differences.is_empty() && !no_lines {
                return Err(ResultsError::OtherOptions {
                    file: path.clone(),
                    differences,
                });
            }
        }
        let existing = match existing {
            // A record beside it says that it was ours, whatever has become of it.
            Err(ResultsError::Foreign { .. }) if args.overwrite && earlier.is_some() => {
                Existing::default()
            }
            existing => existing?,
        };
        let extent = existing.extent;
        if extent.whole == 0 && extent.torn > 0 && earlier.is_none() {
            return Err(ResultsError::Foreign {
                file: path.clone(),
                problem: "it has no whole line".into(),
            });
        }
        let locked = LockedRecord::lock(path)?;
        // Another run may have written between the look and the lock.
        let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        if !args.overwrite && length != extent.whole + extent.torn {
            return Err(ResultsError::InUse { file: path.clone() });
        }
        Ok(Some(Self {
            path: path.clone(),
            format: *format,
            columns,
            record,
            locked,
            recorded: earlier.is_some(),
            anew: args.overwrite || existing.keys.is_empty(),
            existing,
        }))
    }

    /// Whether the item with this key has its line.
    pub fn has(&self, key: &str) -> bool {
        !self.anew && self.existing.keys.contains(key)
    }

    /// What a user should know of lines that stay.
    pub fn warnings(&self) -> Vec<String> {
        let (file, torn) = (self.path.display(), self.existing.extent.torn);
        let torn = (torn > 0).then(|| {
            format!(
                "{file}: the last line is torn ({torn} bytes); it goes, and its item is done again"
            )
        });
        let unrecorded = (!self.recorded).then(|| {
            format!(
                "{file}: there is no {file}.run.json, so nothing shows with which model and options its lines were made"
            )
        });
        let warnings = torn.into_iter().chain(unrecorded);
        warnings.filter(|_| !self.anew).collect()
    }

    /// Makes the file ready for new lines: drops what a kill has torn, or all where it is to start
    /// anew.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn begin(mut self) -> Result<ResultsFile, ResultsError> {
        if self.anew {
            // First the lines go, then the record changes: at no moment does a record stand by
            // lines of another run.
            let header = self.format.header(&self.columns);
            atomic::write(&self.path, &header).map_err(failed(&self.path, "written"))?;
            self.existing.extent.whole = header.len() as u64;
        }
        let log = Log::resume(&self.path, self.existing.extent.whole)
            .map_err(failed(&self.path, "written"))?;
        if self.anew || !self.recorded {
            self.locked.write(&self.record)?;
        }
        Ok(ResultsFile {
            path: self.path,
            format: self.format,
            columns: self.columns,
            log,
            _locked: self.locked,
        })
    }
}

/// A results file that takes lines.
#[derive(Debug)]
pub struct ResultsFile {
    path: PathBuf,
    format: Format,
    columns: Columns,
    log: Log,
    _locked: LockedRecord,
}

impl ResultsFile {
    /// Adds an item's record, which no line has yet.
    ///
    /// # Errors
    /// What the system refuses; the file can be gone on with all the same.
    pub fn append(&mut self, record: &Value) -> Result<(), ResultsError> {
        let line = self.format.line(&self.columns, record);
        let written = self.log.append(&line);
        written
            .and_then(|()| self.log.sync_every(SYNC_INTERVAL))
            .map_err(failed(&self.path, "written"))
    }

    /// Sees to it that all lines are on the disk.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn sync(&mut self) -> Result<(), ResultsError> {
        self.log.sync().map_err(failed(&self.path, "written"))
    }
}
