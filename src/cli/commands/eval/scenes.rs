//! `blip2-wgpu eval scenes`: captions, answers and retrieval on the demo world's test split, in one table.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use clap::Parser;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::cli::shared::Shared;
use crate::cli::shared::generation::GenerationArgs;
use crate::cli::shared::output::Output;
use crate::cli::shared::scores;
use crate::cli::shared::split::SplitArgs;
use crate::eval::{Id, Results};

use super::args::{
    DataArgs, PartArgs, PredictArgs, QuestionArgs, RankingArgs, RetrievalArgs, ScenesArgs,
    TruthArgs,
};
use super::scene::{Scene, read_scenes};
use super::{caption, retrieval, vqa};

/// The flags' defaults, by clap's own hand.
#[derive(Debug, Parser)]
struct Defaults<T: clap::Args> {
    #[command(flatten)]
    flags: T,
}

fn defaults<T: clap::Args>() -> Result<T, Error> {
    match Defaults::<T>::try_parse_from(["defaults"]) {
        Ok(defaults) => Ok(defaults.flags),
        Err(error) => Err(Error::Request {
            problem: error.to_string(),
        }),
    }
}

/// Runs all three; `false` if any item failed.
pub async fn run(shared: &Shared, args: &ScenesArgs, output: &Output) -> Result<bool, Error> {
    let file = |name: &str| args.folder.join(name.replace('*', &args.split));
    let data = |name: &str| DataArgs {
        images: args.folder.join("images"),
        out: args.out.join(name),
        report_cases: args.report_cases,
    };
    let truth = |name: &str| TruthArgs {
        annotations: file(name),
        split: SplitArgs::implied(&args.split),
    };
    let part = |limit| PartArgs { limit, shard: None };

    let captions = PredictArgs {
        data: data("caption"),
        truth: truth("captions_*.json"),
        part: part(args.limit),
        image_size: None,
        generation: defaults::<GenerationArgs>()?,
    };
    let results = captions.data.out.join("results.json");
    let captions = caption::run(shared, &captions, output).await?;
    let truth_of_captions = exactly_true(&read_scenes(&file("facts_*.json"))?, &results)?;
    let questions = PredictArgs {
        data: data("vqa"),
        truth: QuestionArgs {
            annotations: Some(file("vqa_*_annotations.json")),
            questions: Some(file("vqa_*_questions.json")),
            rules: None,
        },
        // Some six questions a scene: the first scenes' are the first questions.
        part: part(args.limit.map(|scenes| 6 * scenes)),
        image_size: None,
        generation: defaults::<GenerationArgs>()?,
    };
    let answers = vqa::run(shared, &questions, output).await?;
    let pairs = RetrievalArgs {
        data: data("retrieval"),
        truth: truth("karpathy_*.json"),
        limit: args.limit,
        shard: None,
        ranking: RankingArgs {
            topk: args.topk,
            ..defaults()?
        },
    };
    let found = retrieval::run(shared, &pairs, output).await?;

    let table = [
        ("exactly true", &truth_of_captions, 2),
        ("caption", &captions.metrics, captions.decimals),
        ("retrieval", &found.metrics, found.decimals),
        ("vqa", &answers.metrics, answers.decimals),
    ];
    if output.json {
        let all = table.map(|(name, metrics, _)| {
            let metrics = Value::Object(metrics.clone());
            (name.replace(' ', "_"), metrics)
        });
        output.line(&Value::Object(all.into_iter().collect()).to_string());
    } else {
        for (name, metrics, decimals) in table {
            output.line(name);
            scores::print(metrics, decimals, output);
        }
    }
    Ok([captions, found, answers]
        .iter()
        .all(|outcome| outcome.all_well))
}

/// Percent of the captions in `results` that are exactly true: of all, of the scenes with a
/// combination that training never shows, and by number of objects.
fn exactly_true(scenes: &[Scene], results: &Path) -> Result<Map<String, Value>, Error> {
    let results = Results::read_captions(results)?;
    let captions: HashMap<&Id, &str> = results
        .texts
        .iter()
        .map(|(id, caption)| (id, caption.as_str()))
        .collect();
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for scene in scenes {
        let Some(caption) = captions.get(&scene.id()) else {
            continue;
        };
        let is_true = scene.is_true(caption);
        let objects = format!("{} objects", scene.objects.len());
        let groups = [
            Some("all"),
            scene.held_out.then_some("never shown"),
            Some(&objects),
        ];
        for group in groups.into_iter().flatten() {
            let (right, all) = counts.entry(group.to_owned()).or_default();
            *right += usize::from(is_true);
            *all += 1;
        }
    }
    let percent = |(right, all): (usize, usize)| json!(100.0 * right as f64 / all as f64);
    Ok(counts
        .into_iter()
        .map(|(group, count)| (group, percent(count)))
        .collect())
}
