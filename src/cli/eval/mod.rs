//! `blip2-wgpu eval caption|vqa|retrieval|merge`: runs a dataset, keeps what is done, measures it.

mod caption;
mod finish;
mod predict;
mod retrieval;
mod scenes;
mod vqa;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use clap::builder::TypedValueParser;

use crate::Error;
use crate::eval::{EvalError, Predictions, ResultFields, Shard, VqaRules};
use crate::kernels::MAX_KEPT;
use crate::task::Preset;

use super::generation::{BatchSize, GenerationArgs, parse_batch_size};
use super::output::Output;
use super::results::model_fingerprint;
use super::{DEMO, Shared};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Caption a dataset's images: BLEU, CIDEr, ROUGE-L
    #[command(after_help = CAPTION_HELP)]
    Caption(Box<CaptionArgs>),
    /// Answer a dataset's questions: accuracy by the rules of the VQA tool, LAVIS or mmpretrain
    #[command(after_help = VQA_HELP)]
    Vqa(Box<VqaArgs>),
    /// Find texts for a dataset's images and images for its texts: Recall at 1, 5 and 10
    #[command(after_help = RETRIEVAL_HELP)]
    Retrieval(Box<RetrievalArgs>),
    /// All three on a folder that `python -m scenes write` made: the demo model's table
    #[command(after_help = "Example: blip2-wgpu eval scenes /tmp/scenes --out run")]
    Scenes(Box<ScenesArgs>),
    /// Join the shards of a run and measure the whole
    #[command(after_help = MERGE_HELP)]
    Merge(Box<MergeArgs>),
}

const CAPTION_HELP: &str = "Example: blip2-wgpu eval caption --images coco/images --annotations coco_karpathy_test.json \
     --model blip2-opt-2.7b --preset mmpretrain --out run\n\n\
     Started again, a run goes on where it stopped. The folder gets predictions.jsonl (what is done), results.json (the \
     official format), metrics.json and report.html.";

const VQA_HELP: &str = "Example: blip2-wgpu eval vqa --images coco/val2014 --annotations v2_mscoco_val2014_annotations.json \
     --questions v2_OpenEnded_mscoco_val2014_questions.json --model blip2-opt-2.7b --preset mmpretrain --out run\n\n\
     --annotations takes LAVIS's and mmpretrain's lists and GQA's files too, which have the questions in them. Without answers \
     (a test split) give only --questions: results.json is then what the challenge's server takes.";

const RETRIEVAL_HELP: &str = "Example: blip2-wgpu eval retrieval --images coco/images --annotations coco_karpathy_test.json \
     --model blip2-itm-vit-g-coco --preset lavis --out run\n\n\
     As LAVIS does it: the contrastive scores choose --topk candidates a query, the matching head ranks them. The images' \
     features are kept in OUT/images.index, so that a run that goes on does not encode them again.";

const MERGE_HELP: &str = "Example: on two machines eval caption … --shard 1/2 --out run1 and … --shard 2/2 --out run2, then\n\
     blip2-wgpu eval merge run1 run2 --images coco/images --annotations coco_karpathy_test.json --out whole";

/// Where the dataset is and where the run goes.
#[derive(Debug, clap::Args)]
struct DataArgs {
    /// Folder of the images; they are found by the paths in the annotations or by the ids in their names
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Folder for the results; made where there is none
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Pictures in the report
    #[arg(long, value_name = "N", default_value_t = 100)]
    report_cases: usize,
}

/// The captions to measure by.
#[derive(Debug, clap::Args)]
struct TruthArgs {
    /// The truth: COCO's captions, a Karpathy split or dataset file
    #[arg(long, value_name = "FILE")]
    annotations: PathBuf,
    /// Split to read from Karpathy's dataset files
    #[arg(long, default_value = "test")]
    split: String,
}

/// The questions and people's answers.
#[derive(Debug, clap::Args)]
struct QuestionArgs {
    /// People's answers: VQAv2's annotations, a list of LAVIS's or mmpretrain's, or GQA's questions
    #[arg(long, value_name = "FILE", required_unless_present = "questions")]
    annotations: Option<PathBuf>,
    /// VQAv2's questions
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Whose rules to score by (GQA has only one set)
    #[arg(long, value_enum, default_value_t)]
    rules: VqaRules,
}

/// Which part of the dataset to run.
#[derive(Debug, clap::Args)]
struct PartArgs {
    /// Only the first N images or questions
    #[arg(long, value_name = "N", value_parser = at_least_one())]
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
    truth: TruthArgs,
    #[command(flatten)]
    part: PartArgs,
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,
    #[command(flatten)]
    generation: GenerationArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct VqaArgs {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    truth: QuestionArgs,
    #[command(flatten)]
    part: PartArgs,
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,
    #[command(flatten)]
    generation: GenerationArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RetrievalArgs {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    truth: TruthArgs,
    /// Only the first N images and their texts, which are then also the only candidates
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    limit: Option<usize>,
    /// Only the queries of part i of n; `eval merge` joins the parts
    #[arg(long, value_name = "i/n")]
    shard: Option<Shard>,
    #[command(flatten)]
    ranking: RankingArgs,
}

/// A number of items.
fn at_least_one() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u32)
        .range(1..)
        .map(|count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// How to rank.
#[derive(Debug, Clone, clap::Args)]
struct RankingArgs {
    /// Candidates a query that the matching head ranks
    #[arg(long, value_name = "K", default_value_t = 128, value_parser = clap::value_parser!(u16).range(10..=MAX_KEPT as i64).map(usize::from))]
    topk: usize,
    /// Rank by the contrastive scores alone
    #[arg(long)]
    itc_only: bool,
    /// Whose defaults to follow: image size, how images are opened, how texts are cleaned and cut
    #[arg(long, value_enum, default_value_t)]
    preset: Preset,
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,
    /// Images at a time
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = parse_batch_size)]
    batch_size: BatchSize,
}

#[derive(Debug, clap::Args)]
pub(super) struct ScenesArgs {
    /// The folder that `python -m scenes write` made
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Split that the folder holds
    #[arg(long, default_value = "test")]
    split: String,
    /// Folder for the results; made where there is none
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only the first N scenes
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    limit: Option<usize>,
    /// Candidates that retrieval re-ranks
    #[arg(long, value_name = "N", default_value_t = 16)]
    topk: usize,
    /// Pictures in each report
    #[arg(long, value_name = "N", default_value_t = 100)]
    report_cases: usize,
}

#[derive(Debug, clap::Args)]
pub(super) struct MergeArgs {
    /// Folders of the parts
    #[arg(required = true, value_name = "DIR")]
    parts: Vec<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    truth: QuestionArgs,
    /// Split to read from Karpathy's dataset files
    #[arg(long, default_value = "test")]
    split: String,
}

/// Runs or joins; `false` if any item failed.
pub(super) async fn run(
    shared: &Shared,
    command: &Command,
    output: &Output,
) -> Result<bool, Error> {
    match command {
        Command::Caption(args) => Ok(caption::run(shared, args, output).await?.print(output)),
        Command::Vqa(args) => Ok(vqa::run(shared, args, output).await?.print(output)),
        Command::Retrieval(args) => Ok(retrieval::run(shared, args, output).await?.print(output)),
        Command::Scenes(args) => scenes::run(shared, args, output).await,
        Command::Merge(args) => Ok(merge(args, output)?.print(output)),
    }
}

impl PartArgs {
    /// Whether item `index` is to be run.
    fn has(&self, index: usize) -> bool {
        self.limit.is_none_or(|limit| index < limit)
            && self.shard.is_none_or(|shard| shard.has(index))
    }

    /// All that a run of these settings does in its shards.
    fn whole(settings: &Map<String, Value>) -> Self {
        let limit = settings.get(LIMIT).and_then(Value::as_str);
        Self {
            limit: limit.and_then(|limit| limit.parse().ok()),
            shard: None,
        }
    }

    /// How many of `count` items are to be run.
    fn count(&self, count: usize) -> usize {
        (0..count).filter(|&index| self.has(index)).count()
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

/// What a run's predictions depend on; a run is gone on with only if all of it is the same. `truths` are the files that
/// say what is asked, each with what it is; names are noted for readers, contents are compared.
fn settings(
    task: &str,
    shared: &Shared,
    images: &Path,
    truths: &[(&str, &Path)],
    image_size: Option<u32>,
    given: BTreeMap<String, String>,
) -> Result<Map<String, Value>, Error> {
    let checkpoint = shared.checkpoint()?;
    let images = images
        .canonicalize()
        .or_else(|_| std::path::absolute(images))
        .unwrap_or_else(|_| images.into());
    let mut settings = Map::from_iter([
        ("task".to_owned(), json!(task)),
        (
            "model".to_owned(),
            json!(checkpoint.map_or_else(|| DEMO.to_owned(), name_of)),
        ),
        (
            "model_fingerprint".to_owned(),
            json!(model_fingerprint(checkpoint)),
        ),
        ("images".to_owned(), json!(images.to_string_lossy())),
        ("image_size".to_owned(), json!(image_size)),
    ]);
    for (what, file) in truths {
        settings.insert((*what).to_owned(), json!(name_of(file)));
        settings.insert(format!("{what}_hash"), json!(hash_of(file)?));
    }
    settings.extend(shared.given().map(|(flag, value)| (flag, json!(value))));
    settings.extend(given.into_iter().map(|(flag, value)| (flag, json!(value))));
    Ok(settings)
}

/// The flag that says how much of a dataset is run.
const LIMIT: &str = "--limit";

/// `given` and the limit.
fn with_limit(
    mut given: BTreeMap<String, String>,
    limit: Option<usize>,
) -> BTreeMap<String, String> {
    given.extend(limit.map(|limit| (LIMIT.to_owned(), limit.to_string())));
    given
}

/// The last part of a path.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// The beginning of the SHA-256 of a file's bytes.
fn hash_of(file: &Path) -> Result<String, EvalError> {
    let read = |cause| EvalError::Read {
        file: file.into(),
        cause,
    };
    let bytes = std::fs::read(file).map_err(read)?;
    let digest = Sha256::digest(&bytes);
    Ok(digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
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
            return Err(EvalError::Item {
                file: part.into(),
                item: "it".into(),
                problem: format!(
                    "was made with other {what} ({}) than {} holds; pass the file that the parts were run with",
                    name.unwrap_or_default(),
                    file.display()
                ),
            });
        }
    }
    Ok(())
}

fn make_folder(folder: &Path) -> Result<(), EvalError> {
    std::fs::create_dir_all(folder).map_err(|cause| EvalError::Write {
        file: folder.into(),
        cause,
    })
}

/// Joins the predictions of all parts and measures them.
fn merge(args: &MergeArgs, output: &Output) -> Result<finish::Outcome, Error> {
    make_folder(&args.data.out)?;
    let whole = args.data.out.join("predictions.jsonl");
    let mut parts = Vec::new();
    for folder in &args.parts {
        let found = predictions_in(folder)?;
        if found.is_empty() {
            let problem = "no predictions*.jsonl in it; pass the --out folders of the parts".into();
            return Err(EvalError::Empty {
                file: folder.clone(),
                problem,
            }
            .into());
        }
        // Beside parts it is what an earlier merge has left.
        let alone = found.len() == 1;
        let is_whole = |part: &Path| part.canonicalize().ok() == whole.canonicalize().ok();
        parts.extend(found.into_iter().filter(|part| alone || !is_whole(part)));
    }
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
    match settings.get("task").and_then(Value::as_str) {
        Some("caption") => {
            let Some(annotations) = &args.truth.annotations else {
                let problem =
                    "these are captions; pass the --annotations to measure them by".into();
                return Err(EvalError::Empty {
                    file: whole,
                    problem,
                }
                .into());
            };
            let truth = TruthArgs {
                annotations: annotations.clone(),
                split: args.split.clone(),
            };
            let merged = Predictions::merge(&whole, ResultFields::CAPTION, &parts)?;
            caption::finish_merged(&args.data, &truth, &settings, &merged, output)
        }
        Some("vqa") => {
            let merged = Predictions::merge(&whole, ResultFields::ANSWER, &parts)?;
            vqa::finish_merged(&args.data, &args.truth, &settings, &merged, output)
        }
        Some("retrieval") => {
            let Some(annotations) = &args.truth.annotations else {
                let problem = "this is retrieval; pass the --annotations to measure it by".into();
                return Err(EvalError::Empty {
                    file: whole,
                    problem,
                }
                .into());
            };
            let truth = TruthArgs {
                annotations: annotations.clone(),
                split: args.split.clone(),
            };
            let merged = Predictions::merge(&whole, ResultFields::RANKED, &parts)?;
            retrieval::finish_merged(&args.data, &truth, &settings, &merged, output)
        }
        _ => {
            let file = parts.first().cloned().unwrap_or(whole);
            let problem =
                "no predictions of eval in it; pass the --out folders of its parts".into();
            Err(EvalError::Empty { file, problem }.into())
        }
    }
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
