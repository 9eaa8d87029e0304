//! Finished items to where they belong: stdout, the results file, a text beside the image.

use std::collections::HashSet;
use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;

use crate::Error;

use super::in_order::InOrder;
use super::output::{ItemsBar, Output};
use super::results::{ResultsError, ResultsFile, Sidecars};

/// A finished item as it is shown and kept.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The object of --json and of results files.
    pub record: Value,
    /// What stands before each text on stdout.
    pub intro: String,
    /// Its texts, the best first.
    pub texts: Vec<String>,
}

/// What became of an item: its texts, or why there are none (naming the item).
pub type Outcome = Result<Finished, String>;

/// Where an item's result is to be kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destination {
    /// Whether the results file lacks its line.
    pub line: bool,
    /// The text beside it, if that is to be written.
    pub sidecar: Option<PathBuf>,
}

/// Takes items in whatever order they are finished and delivers them in the order they were given
/// in.
pub struct Delivery<'a> {
    output: &'a Output,
    /// For each item.
    destinations: Vec<Destination>,
    results: Option<ResultsFile>,
    /// Whether texts go to stdout.
    print: bool,
    bar: ItemsBar,
    outcomes: InOrder<Outcome>,
    /// Whether text of the item that is awaited is on stdout already.
    streamed: bool,
    /// Failures that were shown: an image that cannot be read fails once for each of its questions.
    shown: HashSet<String>,
    summary: Summary,
    started: Instant,
}

impl<'a> Delivery<'a> {
    /// For as many items as there are `destinations`; `summary` is what was known before any was
    /// done.
    pub fn new(
        output: &'a Output,
        destinations: Vec<Destination>,
        results: Option<ResultsFile>,
        print: bool,
        summary: Summary,
    ) -> Self {
        Self {
            output,
            bar: output.items(destinations.len(), summary.kind.items, print),
            destinations,
            results,
            print,
            outcomes: InOrder::default(),
            streamed: false,
            shown: HashSet::new(),
            summary,
            started: Instant::now(),
        }
    }

    /// Shows a piece of the first text of item `index`, before it is finished. Only the item that
    /// is next is shown so.
    pub fn piece(&mut self, index: usize, intro: &str, piece: &str) {
        if self.output.json || index != self.outcomes.awaited() {
            return;
        }
        if !self.streamed {
            self.output.text(intro);
            self.streamed = true;
        }
        self.output.text(piece);
    }

    /// Takes what became of item `index`. Breaks where a result cannot be kept, which is reported.
    pub fn finished(&mut self, index: usize, outcome: Outcome) -> ControlFlow<()> {
        self.outcomes.put(index, outcome);
        while let Some((index, outcome)) = self.outcomes.next() {
            let written = outcome.and_then(|item| {
                self.write_sidecar(index, &item)
                    .map_err(|error| error.to_string())?;
                Ok(item)
            });
            match written {
                Ok(item) => {
                    if let Err(error) = self.write_line(index, &item) {
                        self.output.error(&error);
                        return ControlFlow::Break(());
                    }
                    self.print(&item);
                    self.summary.finished += 1;
                }
                Err(message) => {
                    self.summary.failed += 1;
                    if !self.shown.contains(&message) {
                        self.output.error(&message);
                        self.shown.insert(message);
                    }
                }
            }
            self.streamed = false;
            self.bar.inc(1);
        }
        ControlFlow::Continue(())
    }

    /// The text goes before the line: an item that has its line is done with.
    fn write_sidecar(&self, index: usize, item: &Finished) -> Result<(), ResultsError> {
        match &self.destinations[index].sidecar {
            Some(file) => Sidecars::write(file, &item.texts),
            None => Ok(()),
        }
    }

    fn write_line(&mut self, index: usize, item: &Finished) -> Result<(), ResultsError> {
        match &mut self.results {
            Some(results) if self.destinations[index].line => results.append(&item.record),
            _ => Ok(()),
        }
    }

    fn print(&self, item: &Finished) {
        if !self.print {
            return;
        }
        if self.output.json {
            return self.output.line(&item.record.to_string());
        }
        let mut texts = item.texts.iter();
        if self.streamed {
            texts.next();
            self.output.line("");
        }
        for text in texts {
            self.output.line(&format!("{}{text}", item.intro));
        }
    }

    /// Puts all lines on the disk, whatever ended the run, and says what was done; the command's
    /// outcome.
    ///
    /// # Errors
    /// What ended the run.
    pub fn end(mut self, run: Result<ControlFlow<()>, Error>) -> Result<bool, Error> {
        let synced = self.results.as_mut().map_or(Ok(()), ResultsFile::sync);
        drop(self.bar);
        let flow = run?;
        if let Err(error) = synced {
            return Ok(self.output.fail(&error));
        }
        self.summary.seconds = self.started.elapsed().as_secs_f64();
        if self
            .destinations
            .iter()
            .any(|keep| *keep != Destination::default())
        {
            self.output.note(&self.summary.to_string());
        }
        Ok(self.summary.failed == 0 && flow.is_continue())
    }
}

/// What a command writes about its items.
#[derive(Debug)]
pub struct ItemKind {
    /// The subcommand.
    pub command: &'static str,
    /// An item, several, and what is done with them, for people.
    pub item: &'static str,
    pub items: &'static str,
    pub finished: &'static str,
    /// The fields that tell a record from the others.
    pub keys: &'static [&'static str],
    /// The field of the best text, and that of all where several are asked for.
    pub text: &'static str,
    pub texts: &'static str,
}

/// A text an image.
pub const CAPTIONS: ItemKind = ItemKind {
    command: "caption",
    item: "image",
    items: "images",
    finished: "captioned",
    keys: &["image"],
    text: "pred_caption",
    texts: "captions",
};

/// A text a question.
pub const ANSWERS: ItemKind = ItemKind {
    command: "vqa",
    item: "question",
    items: "questions",
    finished: "answered",
    keys: &["image", "question"],
    text: "pred_answer",
    texts: "answers",
};

/// What a run did; its text is a line.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    pub kind: &'static ItemKind,
    pub finished: usize,
    pub seconds: f64,
    /// Items whose results are all there from an earlier run.
    pub done: usize,
    /// Items given again.
    pub repeated: usize,
    pub failed: usize,
}

impl Summary {
    /// Before anything is done.
    pub fn new(kind: &'static ItemKind) -> Self {
        Self {
            kind,
            finished: 0,
            seconds: 0.0,
            done: 0,
            repeated: 0,
            failed: 0,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ItemKind {
            item,
            items,
            finished,
            ..
        } = self.kind;
        let noun = if self.finished == 1 { item } else { items };
        write!(f, "{} {noun} {finished}", self.finished)?;
        if self.finished > 0 {
            let rate = self.finished as f64 / self.seconds.max(1e-9);
            write!(f, " in {:.1} s ({rate:.1} {items}/s)", self.seconds)?;
        }
        for (count, what) in [
            (self.done, "done already"),
            (self.repeated, "given twice"),
            (self.failed, "failed"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_a_line() {
        let mut summary = Summary::new(&CAPTIONS);
        assert_eq!(summary.to_string(), "0 images captioned");
        summary.finished = 1;
        summary.seconds = 0.25;
        summary.failed = 2;
        assert_eq!(
            summary.to_string(),
            "1 image captioned in 0.2 s (4.0 images/s), 2 failed"
        );
    }
}
