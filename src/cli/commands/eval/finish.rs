//! What every evaluation ends with: results in the official format, metrics, and the report.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;
use crate::eval::{Case, Figure, Id, Predictions, Report, thumbnail, write_whole};
use crate::image::{DecodePolicy, decode_file};

use super::args::PartArgs;
use crate::cli::shared::output::Output;
use crate::cli::shared::scores;

/// A measured run.
pub struct Measured {
    pub title: String,
    /// The file of the truth.
    pub dataset: PathBuf,
    /// Items that have a prediction.
    pub items: usize,
    /// Items that should have one.
    pub wanted: usize,
    pub figures: Vec<Figure>,
    pub published_for: &'static str,
    pub cases: Vec<Case>,
    /// The official results file.
    pub official: Value,
    /// Decimals of the printed metrics.
    pub decimals: usize,
    pub metrics: Map<String, Value>,
}

/// What is said of a run at its end.
pub struct Outcome {
    /// Whether every item has a prediction.
    pub all_well: bool,
    /// What was measured; empty where there was nothing to measure by.
    pub metrics: Map<String, Value>,
    pub decimals: usize,
}

/// Writes results, metrics and report, each whole or not at all.
pub fn finish(
    out: &Path,
    part: &PartArgs,
    settings: &Map<String, Value>,
    measured: Measured,
    output: &Output,
) -> Result<Outcome, Error> {
    if measured.wanted == 0 {
        output.note(&format!(
            "{}: no item falls to this part, so there is nothing to do",
            out.display()
        ));
        return Ok(Outcome {
            all_well: true,
            metrics: Map::new(),
            decimals: measured.decimals,
        });
    }
    if measured.items == 0 {
        output.error(&format!(
            "{}: no item was done, so there is nothing to measure",
            out.display()
        ));
        return Ok(Outcome {
            all_well: false,
            metrics: Map::new(),
            decimals: measured.decimals,
        });
    }
    write_whole(
        &part.file(out, "results", "json"),
        &format!("{}\n", measured.official),
    )?;
    let metrics = part.file(out, "metrics", "json");
    if measured.metrics.is_empty() {
        output.note(&format!(
            "{}: nothing in it to measure by, so there are no metrics; {} is there to be handed in",
            measured.dataset.display(),
            part.file(out, "results", "json").display()
        ));
        // What an earlier run with the truth left would be taken for this one's.
        let _ = std::fs::remove_file(&metrics);
    } else {
        let scores = Value::Object(measured.metrics.clone());
        write_whole(&metrics, &format!("{scores}\n"))?;
    }
    let report = Report {
        title: measured.title,
        settings: settings
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), shown(value)))
            .collect(),
        figures: measured.figures,
        published_for: measured.published_for.into(),
        items: measured.items,
        cases: measured.cases,
    };
    write_whole(&part.file(out, "report", "html"), &report.html())?;
    let published = report.figures.iter().filter_map(|figure| {
        let published = figure.published.as_ref()?;
        Some(format!("{} {published}", figure.name))
    });
    let published: Vec<_> = published.collect();
    if !published.is_empty() {
        output.detail(&format!(
            "published: {} ({})",
            published.join(", "),
            report.published_for
        ));
    }
    Ok(Outcome {
        all_well: true,
        metrics: measured.metrics,
        decimals: measured.decimals,
    })
}

impl Outcome {
    /// The same, not well if `also` is not.
    pub fn and(mut self, also: bool) -> Self {
        self.all_well &= also;
        self
    }

    /// Prints the metrics; gives whether all is well.
    pub fn print(&self, output: &Output) -> bool {
        if !self.metrics.is_empty() {
            scores::print(&self.metrics, self.decimals, output);
        }
        self.all_well
    }
}

/// Says which items have no prediction; `true` if none.
pub fn report_missing<'a>(
    mut missing: impl Iterator<Item = &'a Id>,
    dataset: &Path,
    output: &Output,
) -> bool {
    let Some(first) = missing.next() else {
        return true;
    };
    let others = missing.count();
    output.error(&format!(
        "{}: item {first} has no prediction in any part, nor have {others} others; they are left out",
        dataset.display()
    ));
    false
}

/// Says which predictions are for items that are not in the dataset; `true` if none.
pub fn report_unknown<'a>(
    predictions: &Predictions,
    ids: impl Iterator<Item = &'a Id>,
    dataset: &Path,
    output: &Output,
) -> bool {
    let unknown = predictions.unknown(ids, dataset);
    scores::name_each(&unknown, &|line| output.error(&line));
    unknown.is_empty()
}

/// Says which of the predictions `(id, text)` are empty. They are scored like any other, so as wrong.
pub fn report_empty<'a>(
    predictions: &Predictions,
    said: impl Iterator<Item = (&'a Id, &'a str)>,
    output: &Output,
) {
    scores::name_each(&predictions.empty(said), &|line| output.warning(line));
}

/// A setting as the report shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) if fields.is_empty() => "as the preset has it".into(),
        other => other.to_string().replace('"', ""),
    }
}

/// A picture for the report.
pub fn thumbnail_of(file: &Path) -> Option<Vec<u8>> {
    thumbnail(&decode_file(file, DecodePolicy::hf()).ok()?)
}
