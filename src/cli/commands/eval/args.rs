//! What the commands of `eval` are given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::builder::TypedValueParser;

use crate::eval::VqaRules;

use super::predictions::Shard;
use crate::kernels::MAX_KEPT;

use crate::cli::shared::generation::GenerationArgs;
use crate::cli::shared::retrieval::EncodeArgs;
use crate::cli::shared::split::SplitArgs;

/// The flag that says how much of a dataset is run.
pub const LIMIT: &str = "--limit";

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Caption a dataset's images: BLEU, CIDEr, ROUGE-L
    #[command(after_help = CAPTION_HELP)]
    Caption(Box<PredictArgs<TruthArgs>>),
    /// Answer a dataset's questions: accuracy by the rules of the VQA tool, LAVIS or mmpretrain
    #[command(after_help = VQA_HELP)]
    Vqa(Box<PredictArgs<QuestionArgs>>),
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
pub struct DataArgs {
    /// Folder of the images; they are found by the paths in the annotations or by the ids in their
    /// names
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// Folder for the results; made where there is none
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Pictures in the report
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub report_cases: usize,
}

/// The captions to measure by.
#[derive(Debug, clap::Args)]
pub struct TruthArgs {
    /// The truth: COCO's captions, a Karpathy split or dataset file
    #[arg(long, value_name = "FILE")]
    pub annotations: PathBuf,
    #[command(flatten)]
    pub split: SplitArgs,
}

/// The questions and people's answers.
#[derive(Debug, clap::Args)]
pub struct QuestionArgs {
    /// People's answers: VQAv2's annotations, a list of LAVIS's or mmpretrain's, or GQA's questions
    #[arg(long, value_name = "FILE", required_unless_present = "questions")]
    pub annotations: Option<PathBuf>,
    /// VQAv2's questions
    #[arg(long, value_name = "FILE")]
    pub questions: Option<PathBuf>,
    /// Whose rules to score by, vqa if not given (GQA, TextVQA and A-OKVQA have only one set)
    #[arg(long, value_enum)]
    pub rules: Option<VqaRules>,
}

/// Which part of the dataset to run.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct PartArgs {
    /// Only the first N images or questions
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub limit: Option<usize>,
    /// Only part i of n (of the first N, with --limit); `eval merge` joins the parts
    #[arg(long, value_name = "i/n")]
    pub shard: Option<Shard>,
}

/// A run that writes texts.
#[derive(Debug, clap::Args)]
pub struct PredictArgs<T: clap::Args> {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub truth: T,
    #[command(flatten)]
    pub part: PartArgs,
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<u32>,
    #[command(flatten)]
    pub generation: GenerationArgs,
}

#[derive(Debug, clap::Args)]
pub struct RetrievalArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub truth: TruthArgs,
    /// Only the first N images and their texts, which are then also the only candidates
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub limit: Option<usize>,
    /// Only the queries of part i of n; `eval merge` joins the parts
    #[arg(long, value_name = "i/n")]
    pub shard: Option<Shard>,
    #[command(flatten)]
    pub ranking: RankingArgs,
}

/// A number of items.
fn at_least_one() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u32)
        .range(1..)
        .map(|count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// How to rank.
#[derive(Debug, Clone, clap::Args)]
pub struct RankingArgs {
    /// Candidates a query that the matching head ranks
    #[arg(long, value_name = "K", default_value_t = 128, value_parser = clap::value_parser!(u16).range(10..=MAX_KEPT as i64).map(usize::from))]
    pub topk: usize,
    /// Rank by the contrastive scores alone
    #[arg(long)]
    pub itc_only: bool,
    #[command(flatten)]
    pub encode: EncodeArgs,
}

#[derive(Debug, clap::Args)]
pub struct ScenesArgs {
    /// The folder that `python -m scenes write` made
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Split that the folder holds
    #[arg(long, default_value = "test")]
    pub split: String,
    /// Folder for the results; made where there is none
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Only the first N scenes
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub limit: Option<usize>,
    /// Candidates that retrieval re-ranks
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub topk: usize,
    /// Pictures in each report
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub report_cases: usize,
}

#[derive(Debug, clap::Args)]
pub struct MergeArgs {
    /// Folders of the parts
    #[arg(required = true, value_name = "DIR")]
    pub parts: Vec<PathBuf>,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub truth: QuestionArgs,
    #[command(flatten)]
    pub split: SplitArgs,
}

impl PartArgs {
    /// Whether item `index` is to be run.
    pub fn has(&self, index: usize) -> bool {
        self.limit.is_none_or(|limit| index < limit)
            && self.shard.is_none_or(|shard| shard.has(index))
    }

    /// The flags that a run's predictions depend on: the limit and those `given`.
    pub fn with_limit(&self, mut given: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let limit = self
            .limit
            .map(|limit| (LIMIT.to_owned(), limit.to_string()));
        given.extend(limit);
        given
    }

    /// How many of `count` items are to be run.
    pub fn count(&self, count: usize) -> usize {
        (0..count).filter(|&index| self.has(index)).count()
    }

    /// A file's name, with the shard in it: shards may share a folder.
    pub fn file(&self, out: &Path, name: &str, extension: &str) -> PathBuf {
        match self.shard {
            Some(Shard { index, count }) => {
                out.join(format!("{name}-{}of{count}.{extension}", index + 1))
            }
            None => out.join(format!("{name}.{extension}")),
        }
    }
}
