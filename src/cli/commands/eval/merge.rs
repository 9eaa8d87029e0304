//! `blip2-wgpu eval merge`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;
use crate::eval::{CaptionData, EvalError};

use super::args::{MergeArgs, TruthArgs};
use super::evaluation::{Evaluation, Outcome, hash_of, make_folder};
use super::predictions::Predictions;
use super::retrieval::RetrievalDataset;
use super::vqa::VqaDataset;
use crate::cli::shared::output::Output;

/// Joins the predictions of all parts and measures them.
pub fn merge(args: &MergeArgs, output: &Output) -> Result<Outcome, Error> {
    make_folder(&args.data.out)?;
    let whole = args.data.out.join("predictions.jsonl");
    let parts = parts(&args.parts, &whole)?;
    let settings = match parts.first() {
        Some(first) => Predictions::settings(first)?.unwrap_or_default(),
        None => Map::new(),
    };
    if let Some(first) = parts.first() {
        let truths = [
            ("annotations", args.truth.annotations.as_ref()),
            ("questions", args.truth.questions.as_ref()),
        ];
        check_truths(first, &settings, &truths)?;
    }
    let (data, joined) = (&args.data, (whole.as_path(), parts.as_slice()));
    let task = settings.get("task").and_then(Value::as_str);
    warn_of_other_tasks(args, task, output);
    match task {
        Some("caption") => {
            let truth = truth(args, &whole)?;
            truth.split.warn_if_idle(&truth.annotations, output);
            Evaluation::merge::<CaptionData>(data, &truth, settings, joined, output)
        }
        Some("vqa") => Evaluation::merge::<VqaDataset>(data, &args.truth, settings, joined, output),
        Some("retrieval") => {
            let truth = truth(args, &whole)?;
            truth.split.warn_if_idle(&truth.annotations, output);
            Evaluation::merge::<RetrievalDataset>(data, &truth, settings, joined, output)
        }
        _ => {
            let file = parts.first().cloned().unwrap_or(whole);
            let problem =
                "no predictions of eval in it; pass the --out folders of its parts".into();
            Err(EvalError::Empty { file, problem }.into())
        }
    }
}

/// Says which flags are for another task than the parts'.
fn warn_of_other_tasks(args: &MergeArgs, task: Option<&str>, output: &Output) {
    let (flags, remedy) = match task {
        Some("caption" | "retrieval") => (
            vec![
                ("--questions", args.truth.questions.is_some()),
                ("--rules", args.truth.rules.is_some()),
            ],
            "on captions and retrieval; they are for answers",
        ),
        Some("vqa") => (
            vec![("--split", args.split.is_given())],
            "on answers; it is for captions and retrieval",
        ),
        _ => (Vec::new(), ""),
    };
    let given = flags.into_iter().filter(|(_, given)| *given);
    let given: Vec<_> = given.map(|(flag, _)| flag).collect();
    output.idle(&given, remedy);
}

/// The captions that captions and retrieval are measured by.
fn truth(args: &MergeArgs, whole: &Path) -> Result<TruthArgs, EvalError> {
    let Some(annotations) = args.truth.annotations.clone() else {
        let problem = "these parts are measured by captions; pass their --annotations".into();
        let file = whole.into();
        return Err(EvalError::Empty { file, problem });
    };
    let split = args.split.clone();
    Ok(TruthArgs { annotations, split })
}

/// The predictions files of the parts' folders, but for `whole`, what an earlier merge has left
/// beside them.
fn parts(folders: &[PathBuf], whole: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let mut parts = Vec::new();
    for folder in folders {
        let found = predictions_in(folder)?;
        if found.is_empty() {
            let problem = "no predictions*.jsonl in it; pass the --out folders of the parts".into();
            return Err(EvalError::Empty {
                file: folder.clone(),
                problem,
            });
        }
        let alone = found.len() == 1;
        let is_whole = |part: &Path| part.canonicalize().ok() == whole.canonicalize().ok();
        parts.extend(found.into_iter().filter(|part| alone || !is_whole(part)));
    }
    Ok(parts)
}

/// Refuses to measure parts by other files than they were made with.
fn check_truths(
    part: &Path,
    settings: &Map<String, Value>,
    truths: &[(&str, Option<&PathBuf>)],
) -> Result<(), EvalError> {
    for (what, file) in truths {
        let made_with = settings
            .get(&format!("{what}_hash"))
            .and_then(Value::as_str);
        if let (Some(made_with), Some(file)) = (made_with, file)
            && hash_of(file)? != made_with
        {
            let name = settings.get(*what).and_then(Value::as_str);
            return Err(EvalError::item(
                part,
                "it",
                format!(
                    "was made with other {what} ({}) than {} holds; pass the file that the parts were run with",
                    name.unwrap_or_default(),
                    file.display()
                ),
            ));
        }
    }
    Ok(())
}

/// The predictions files in a folder, sorted.
fn predictions_in(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(EvalError::read(folder))? {
        let path = entry.map_err(EvalError::read(folder))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("predictions") && name.ends_with(".jsonl") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
