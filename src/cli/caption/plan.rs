//! Which images are still to be captioned, and what is to be kept of each.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use crate::cli::inputs::{ImageInput, ImageSource, STDIN_NAME};
use crate::cli::results::{Columns, EarlierResults, Sidecars};

/// An image to caption.
#[derive(Debug)]
pub(super) struct Todo {
    pub input: ImageInput,
    /// Whether the results file lacks its line.
    pub line: bool,
    /// The text beside it, if that is to be written.
    pub sidecar: Option<PathBuf>,
}

/// The images to caption, and what became of the others.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub todo: Vec<Todo>,
    /// Images whose results are all there.
    pub done: usize,
    /// Arguments that stand for an image that is in the list already.
    pub repeated: usize,
    /// Images that cannot be kept.
    pub errors: Vec<String>,
}

impl Plan {
    /// What this run begins with: what is done, and what has failed, `errors` arguments among it.
    pub(super) fn summary(&self, errors: usize) -> Summary {
        Summary {
            captioned: 0,
            seconds: 0.0,
            failed: errors + self.errors.len(),
            done: self.done,
            repeated: self.repeated,
        }
    }

    /// All images, each as often as it was given: for results that are only printed.
    pub(super) fn all(inputs: Vec<ImageInput>) -> Self {
        let todo = inputs.into_iter().map(|input| Todo {
            input,
            line: false,
            sidecar: None,
        });
        Self {
            todo: todo.collect(),
            ..Self::default()
        }
    }

    /// The images that lack a line in `results` or a text beside them, each once. Images are told apart by their
    /// paths as they are written.
    pub(super) fn new(
        inputs: Vec<ImageInput>,
        results: Option<&EarlierResults>,
        sidecars: Option<&Sidecars>,
    ) -> Self {
        let mut plan = Self::default();
        let paths = match sidecars {
            Some(sidecars) => sidecars
                .paths(&inputs)
                .into_iter()
                .map(|path| path.map(|path| Some(path).filter(|path| !sidecars.has(path))))
                .collect(),
            None => inputs.iter().map(|_| Ok(None)).collect::<Vec<_>>(),
        };
        let mut seen: HashMap<String, ImageSource> = HashMap::new();
        for (input, sidecar) in inputs.into_iter().zip(paths) {
            let has_line = results.map(|results| results.has(&Columns::key([input.name.as_str()])));
            match (seen.get(&input.name), sidecar) {
                (Some(source), _) if *source == input.source => plan.repeated += 1,
                (Some(_), _) => plan.errors.push(format!(
                    "{}: another file is called that too where its bytes are not UTF-8, and results could not tell them apart; rename one",
                    input.name
                )),
                (None, Err(error)) => plan.errors.push(error.to_string()),
                (None, Ok(_)) if input.name == STDIN_NAME && has_line == Some(true) => {
                    plan.errors.push(
                        "-: the results file has a line for standard input, perhaps for another image; give a file, or another --out"
                            .into(),
                    );
                }
                (None, Ok(sidecar)) => {
                    seen.insert(input.name.clone(), input.source.clone());
                    let line = has_line == Some(false);
                    if line || sidecar.is_some() {
                        plan.todo.push(Todo {
                            input,
                            line,
                            sidecar,
                        });
                    } else {
                        plan.done += 1;
                    }
                }
            }
        }
        plan
    }
}

/// What a run did; its text is a line.
#[derive(Debug)]
pub(super) struct Summary {
    pub captioned: usize,
    pub seconds: f64,
    pub failed: usize,
    pub done: usize,
    pub repeated: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = if self.captioned == 1 {
            "image"
        } else {
            "images"
        };
        write!(f, "{} {images} captioned", self.captioned)?;
        if self.captioned > 0 {
            let rate = self.captioned as f64 / self.seconds.max(1e-9);
            write!(f, " in {:.1} s ({rate:.1} images/s)", self.seconds)?;
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
