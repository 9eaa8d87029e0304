//! Finished captions to where they belong: stdout, the results file, a text beside the image.

use std::ops::ControlFlow;
use std::time::Instant;

use crate::cli::in_order::InOrder;
use crate::cli::output::{ItemsBar, Output, digits};
use crate::cli::results::{ResultsError, ResultsFile, Sidecars};
use crate::task::Caption;

use super::plan::{Summary, Todo};

/// What became of an image: its caption, or why there is none (naming the image).
pub(super) type Outcome = Result<Caption, String>;

/// Takes captions in whatever order they are finished and delivers them in the order of the images.
pub(super) struct Delivery<'a> {
    pub(super) output: &'a Output,
    todo: &'a [Todo],
    results: Option<ResultsFile>,
    /// Whether captions go to stdout.
    print: bool,
    bar: ItemsBar,
    outcomes: InOrder<Outcome>,
    /// Whether text of image `next` is on stdout already.
    streamed: bool,
    summary: Summary,
    started: Instant,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(
        output: &'a Output,
        todo: &'a [Todo],
        results: Option<ResultsFile>,
        print: bool,
        summary: Summary,
    ) -> Self {
        Self {
            output,
            todo,
            results,
            print,
            bar: output.items(todo.len(), "images", print),
            outcomes: InOrder::default(),
            streamed: false,
            summary,
            started: Instant::now(),
        }
    }

    /// Shows a piece of the first text of image `index`. Pieces come of the image that is next, and of no other.
    pub(super) fn piece(&mut self, index: usize, piece: &str) {
        if self.output.json || index != self.outcomes.awaited() {
            return;
        }
        if !self.streamed {
            self.output
                .text(&format!("{}: ", self.todo[index].input.name));
            self.streamed = true;
        }
        self.output.text(piece);
    }

    /// Takes what became of image `index`. Breaks where a result cannot be kept, which is reported.
    pub(super) fn finished(&mut self, index: usize, outcome: Outcome) -> ControlFlow<()> {
        self.outcomes.put(index, outcome);
        while let Some((index, outcome)) = self.outcomes.next() {
            let todo = &self.todo[index];
            let written = outcome.and_then(|caption| {
                let error = |error: ResultsError| error.to_string();
                Self::write_sidecar(todo, &caption).map_err(error)?;
                Ok(caption)
            });
            match written {
                Ok(caption) => {
                    if let Err(error) = self.write_line(todo, &caption) {
                        self.output.error(&error);
                        return ControlFlow::Break(());
                    }
                    self.print(todo, &caption);
                    self.summary.captioned += 1;
                }
                Err(message) => {
                    self.output.error(&message);
                    self.summary.failed += 1;
                }
            }
            self.streamed = false;
            self.bar.inc(1);
        }
        ControlFlow::Continue(())
    }

    /// The text goes before the line: an image that has its line is done with.
    fn write_sidecar(todo: &Todo, caption: &Caption) -> Result<(), ResultsError> {
        let Some(file) = &todo.sidecar else {
            return Ok(());
        };
        let texts = caption.alternatives.iter().map(|text| text.text.as_str());
        Sidecars::write(file, texts)
    }

    fn write_line(&mut self, todo: &Todo, caption: &Caption) -> Result<(), ResultsError> {
        match self.results.as_mut().filter(|_| todo.line) {
            Some(results) => results.append(&json(&todo.input.name, caption)),
            None => Ok(()),
        }
    }

    fn print(&self, todo: &Todo, caption: &Caption) {
        let name = &todo.input.name;
        if !self.print {
            return;
        }
        if self.output.json {
            return self.output.line(&json(name, caption).to_string());
        }
        let mut texts = caption.alternatives.iter();
        if self.streamed {
            texts.next();
            self.output.line("");
        }
        for text in texts {
            self.output.line(&format!("{name}: {}", text.text));
        }
    }

    /// Puts all lines on the disk and says what was done.
    pub(super) fn end(mut self) -> Result<Summary, ResultsError> {
        if let Some(results) = &mut self.results {
            results.sync()?;
        }
        self.summary.seconds = self.started.elapsed().as_secs_f64();
        Ok(self.summary)
    }
}

/// The fields of [`json`]: the key, then the others.
pub(super) const KEY: [&str; 1] = ["image"];
pub(super) const FIELDS: [&str; 4] = ["pred_caption", "score", "num_tokens", "tokens"];
/// The further field where several captions an image are asked for.
pub(super) const SEVERAL: &str = "captions";

fn json(name: &str, caption: &Caption) -> serde_json::Value {
    let mut line = serde_json::json!({
        "image": name,
        "pred_caption": caption.text,
        "tokens": caption.tokens,
        "score": digits(caption.score),
        "num_tokens": caption.tokens.len(),
    });
    if caption.alternatives.len() > 1 {
        line[SEVERAL] = caption
            .alternatives
            .iter()
            .map(|text| serde_json::json!({"text": text.text, "score": digits(text.score)}))
            .collect();
    }
    line
}
