//! `blip2-wgpu eval caption|vqa|retrieval|merge`: runs a dataset, keeps what is done, measures it.

mod caption;
mod finish;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::Error;
use crate::eval::{EvalError, Shard};

use super::Shared;
use super::generation::GenerationArgs;
use super::output::Output;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Caption a dataset's images: BLEU, CIDEr, ROUGE-L
    #[command(after_help = CAPTION_HELP)]
    Caption(Box<CaptionArgs>),
    /// Join the shards of a run and measure the whole
    #[command(after_help = MERGE_HELP)]
    Merge(Box<MergeArgs>),
}

const CAPTION_HELP: &str = "Example: blip2-wgpu eval caption --images coco/images --annotations coco_karpathy_test.json \
     --model blip2-opt-2.7b --preset mmpretrain --out run\n\n\
     Started again, a run goes on where it stopped. The folder gets predictions.jsonl (what is done), results.json (the \
     official format), metrics.json and report.html.";

const MERGE_HELP: &str = "Example: on two machines eval caption … --shard 1/2 --out run1 and … --shard 2/2 --out run2, then\n\
     blip2-wgpu eval merge run1 run2 --images coco/images --annotations coco_karpathy_test.json --out whole";

/// Where the dataset is and where the run goes.
#[derive(Debug, clap::Args)]
struct DataArgs {
    /// Folder of the images; they are found by the paths in the annotations or by the ids in their names
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The truth: COCO's captions, a Karpathy split or dataset file
    #[arg(long, value_name = "FILE")]
    annotations: PathBuf,
    /// Split to read from Karpathy's dataset files
    #[arg(long, default_value = "test")]
    split: String,
    /// Folder for the results; made where there is none
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Pictures in the report
    #[arg(long, value_name = "N", default_value_t = 100)]
    report_cases: usize,
}

/// Which part of the dataset to run.
#[derive(Debug, clap::Args)]
struct PartArgs {
    /// Only the first N images
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only part i of n (of the first N, with --limit); `eval merge` joins the parts
    #[arg(long, value_name = "i/n")]
    shard: Option<Shard>,
}

#[derive(Debug, clap::Args)]
pub(super) struct CaptionArgs {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    part: PartArgs,
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,
    #[command(flatten)]
    generation: GenerationArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct MergeArgs {
    /// Folders of the parts
    #[arg(required = true, value_name = "DIR")]
    parts: Vec<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
}

/// Runs or joins; `false` if any item failed.
pub(super) async fn run(
    shared: &Shared,
    command: &Command,
    output: &Output,
) -> Result<bool, Error> {
    match command {
        Command::Caption(args) => caption::run(shared, args, output).await,
        Command::Merge(args) => merge(args, output),
    }
}

impl PartArgs {
    /// Whether item `index` is to be run.
    fn has(&self, index: usize) -> bool {
        self.limit.is_none_or(|limit| index < limit)
            && self.shard.is_none_or(|shard| shard.has(index))
    }

    /// A file's name, with the shard in it: shards may share a folder.
    fn file(&self, out: &Path, name: &str, extension: &str) -> PathBuf {
        match self.shard {
            Some(Shard { index, count }) => {
                out.join(format!("{name}-{}of{count}.{extension}", index + 1))
            }
            None => out.join(format!("{name}.{extension}")),
        }
    }
}

/// What a run's predictions depend on; a run is gone on with only if all of it is the same.
fn settings(
    task: &str,
    shared: &Shared,
    data: &DataArgs,
    generation: &GenerationArgs,
    image_size: Option<u32>,
) -> Map<String, Value> {
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned()
    };
    let given: Map<String, Value> = given_options(&format!("{:?}", generation.overrides()));
    Map::from_iter([
        ("task".to_owned(), json!(task)),
        (
            "model".to_owned(),
            json!(
                shared
                    .model
                    .as_deref()
                    .map_or_else(|| "demo".to_owned(), name)
            ),
        ),
        ("annotations".to_owned(), json!(name(&data.annotations))),
        (
            "preset".to_owned(),
            json!(format!("{:?}", generation.preset).to_lowercase()),
        ),
        ("prompt".to_owned(), json!(generation.prompt)),
        ("image_size".to_owned(), json!(image_size)),
        ("generation".to_owned(), Value::Object(given)),
    ])
}

/// The options that were given, from their debug form `Name { a: None, b: Some(1), … }`.
fn given_options(debug: &str) -> Map<String, Value> {
    let inside = debug
        .split_once('{')
        .map_or("", |(_, rest)| rest.trim_end_matches(['}', ' ']));
    let fields = inside
        .split(", ")
        .filter_map(|field| field.trim().split_once(": "));
    let given = fields.filter_map(|(name, value)| {
        let value = value.strip_prefix("Some(")?.strip_suffix(')')?;
        Some((name.to_owned(), json!(value)))
    });
    given.collect()
}

fn make_folder(folder: &Path) -> Result<(), EvalError> {
    std::fs::create_dir_all(folder).map_err(|cause| EvalError::Write {
        file: folder.into(),
        cause,
    })
}

/// Joins the predictions of all parts and measures them.
fn merge(args: &MergeArgs, output: &Output) -> Result<bool, Error> {
    let mut parts = Vec::new();
    for folder in &args.parts {
        let mut found = predictions_in(folder)?;
        if found.is_empty() {
            return Err(EvalError::Empty {
                file: folder.clone(),
                problem: "no predictions*.jsonl in it; pass the --out folders of the parts".into(),
            }
            .into());
        }
        parts.append(&mut found);
    }
    let fields = crate::eval::ResultFields::CAPTION;
    make_folder(&args.data.out)?;
    let whole = args.data.out.join("predictions.jsonl");
    parts.retain(|part| *part != whole);
    let predictions = crate::eval::Predictions::merge(&whole, fields, &parts)?;
    let settings = crate::eval::Predictions::settings(&whole, fields)?.unwrap_or_default();
    caption::finish_merged(&args.data, &settings, &predictions, output)
}

/// The predictions files in a folder, sorted.
fn predictions_in(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let read = |cause| EvalError::Read {
        file: folder.into(),
        cause,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::GenerationOverrides;

    #[test]
    fn given_options_are_those_that_are_set() {
        let overrides = GenerationOverrides {
            num_beams: Some(5),
            length_penalty: Some(-1.5),
            ..GenerationOverrides::default()
        };
        let given = given_options(&format!("{overrides:?}"));
        assert_eq!(
            Value::Object(given),
            json!({"num_beams": "5", "length_penalty": "-1.5"})
        );
    }
}
