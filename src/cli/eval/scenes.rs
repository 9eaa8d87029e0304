//! `blip2-wgpu eval scenes`: captions, answers and retrieval on the demo world's test split, in one table.

use clap::Parser;
use serde_json::Value;

use crate::Error;
use crate::cli::Shared;
use crate::cli::generation::GenerationArgs;
use crate::cli::output::Output;

use super::{
    CaptionArgs, DataArgs, PartArgs, QuestionArgs, RankingArgs, RetrievalArgs, ScenesArgs,
    TruthArgs, VqaArgs, caption, retrieval, vqa,
};

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
pub(super) async fn run(
    shared: &Shared,
    args: &ScenesArgs,
    output: &Output,
) -> Result<bool, Error> {
    let file = |name: &str| args.folder.join(name.replace('*', &args.split));
    let data = |name: &str| DataArgs {
        images: args.folder.join("images"),
        out: args.out.join(name),
        report_cases: args.report_cases,
    };
    let truth = |name: &str| TruthArgs {
        annotations: file(name),
        split: args.split.clone(),
    };
    let part = |limit| PartArgs { limit, shard: None };

    let captions = CaptionArgs {
        data: data("caption"),
        truth: truth("captions_*.json"),
        part: part(args.limit),
        image_size: None,
        generation: defaults::<GenerationArgs>()?,
    };
    let captions = caption::run(shared, &captions, output).await?;
    let questions = VqaArgs {
        data: data("vqa"),
        truth: QuestionArgs {
            annotations: Some(file("vqa_*_annotations.json")),
            questions: Some(file("vqa_*_questions.json")),
            rules: Default::default(),
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
        ranking: defaults::<RankingArgs>()?,
    };
    let found = retrieval::run(shared, &pairs, output).await?;

    let table = [
        ("caption", &captions),
        ("retrieval", &found),
        ("vqa", &answers),
    ];
    if output.json {
        let all = table.iter().map(|(name, outcome)| {
            let metrics = Value::Object(outcome.metrics.clone());
            ((*name).to_owned(), metrics)
        });
        output.line(&Value::Object(all.collect()).to_string());
    } else {
        for (name, outcome) in &table {
            output.line(name);
            outcome.print(output);
        }
    }
    Ok(table.iter().all(|(_, outcome)| outcome.all_well))
}
