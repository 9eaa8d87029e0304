//! `blip2-wgpu vqa IMAGE QUESTION…`

mod asked;

use std::collections::HashSet;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;
use crate::task::{Answer, Ask, Blip2, Item, ItemEvent, RunOptions, VqaOptions, check_vqa_options};

use crate::cli::shared::Shared;
use crate::cli::shared::delivery::{Delivery, Keep, Kind};
use crate::cli::shared::explain::{ExplainFile, Explainer, parse_file};
use crate::cli::shared::generation::GenerationArgs;
use crate::cli::shared::inputs::ImageInput;
use crate::cli::shared::output::Output;
use crate::cli::shared::results::{Columns, EarlierResults, OutArgs, ResultsError, RunRecord};
use asked::Asked;

/// Answers questions about images.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "blip2-wgpu vqa [OPTIONS] <IMAGE> <QUESTION>...\n       \
                      blip2-wgpu vqa [OPTIONS] <IMAGE>... --question <TEXT>\n       \
                      blip2-wgpu vqa [OPTIONS] --pairs <FILE.jsonl>",
    after_help = "Examples:\n  \
                  blip2-wgpu vqa photo.jpg \"what animal is this?\" \"is it asleep?\"\n  \
                  blip2-wgpu vqa holiday/ --question \"is anybody in the picture?\" --json\n  \
                  blip2-wgpu vqa --pairs questions.jsonl --preset lavis --json\n  \
                  blip2-wgpu vqa --pairs questions.jsonl --out answers.jsonl    the same command again resumes it\n\n\
                  A results file has a line for each image and question, in the order they were given; see caption --help."
)]
pub struct Args {
    /// An image and the questions about it. With --question: images only (files, folders with all below them, globs,
    /// or - for stdin)
    #[arg(
        required_unless_present = "pairs",
        conflicts_with = "pairs",
        value_name = "IMAGE QUESTION"
    )]
    items: Vec<OsString>,
    /// A question to ask about every image; may be given several times
    #[arg(long = "question", value_name = "TEXT", conflicts_with = "pairs")]
    questions: Vec<String>,
    /// A file (or - for stdin) with {"image": PATH, "question": TEXT} a line; paths are looked for beside the file,
    /// then from the working directory
    #[arg(long, value_name = "FILE.jsonl")]
    pairs: Option<PathBuf>,
    /// Side of the images in pixels, if not the checkpoint's
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,
    /// Also show where the model looks, for each image and each word of its first text: a page
    /// (.html, any number of images) or a picture (.png, one image)
    #[arg(long, value_name = "FILE", value_parser = parse_file)]
    explain: Option<ExplainFile>,
    #[command(flatten)]
    out: OutArgs,
    #[command(flatten)]
    generation: GenerationArgs,
}

const KIND: Kind = Kind {
    item: "question",
    items: "questions",
    finished: "answered",
};

/// Answers every question; `false` if any failed.
pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    // Wrong usage comes before anything a file could fail with.
    let checkpoint = shared.checkpoint()?;
    shared.gpu_options()?;
    let preset = args.generation.preset;
    let image_size = args.image_size.or(preset.vqa_image_size());
    let options = VqaOptions {
        prompt: args.generation.prompt.clone(),
        preset,
        generation: args.generation.overrides(),
        batch_size: args.generation.batch_size.0,
    };
    options.check_prompt()?;
    let mut asked = match &args.pairs {
        Some(file) => asked::from_pairs(file, &options, output),
        None => asked::from_arguments(args, &options, output),
    };
    if asked.asked.is_empty() {
        return Ok(false);
    }
    if let Some(path) = checkpoint {
        check_vqa_options(path, &options)?;
    }
    let earlier = match args.earlier_results(shared, checkpoint) {
        Ok(earlier) => earlier,
        Err(error) => return Ok(output.fail(&error)),
    };
    let summary = asked.leave_missing(earlier.as_ref(), output);
    let left = asked.asked.len();
    EarlierResults::announce(earlier.as_ref(), &summary, left, output);
    if left == 0 {
        return Ok(summary.failed == 0);
    }

    let explainer = args.explain.as_ref();
    let explainer = explainer.map(|file| Explainer::create(file, asked.images.len()));
    let mut explainer = explainer.transpose()?;

    let mut model = shared
        .open(image_size, args.generation.work(), output)
        .await?;
    model.check_vqa_options(&options)?;
    let results = match earlier.map(EarlierResults::begin).transpose() {
        Ok(results) => results,
        Err(error) => return Ok(output.fail(&error)),
    };
    let keep = Keep {
        line: results.is_some(),
        sidecar: None,
    };
    let stream = args.generation.stream;
    let print = results.is_none() || output.json || stream;
    let mut delivery = Delivery::new(output, vec![keep; left], results, print, summary);
    let options = Arc::new(options);
    let asking = Asking {
        options: &options,
        stream: stream && !output.json,
        output,
    };
    let explain = explainer.as_mut();
    let flow = answer_all(&mut model, &asked, &asking, &mut delivery, explain).await;
    // Whatever stopped it, what was written stays.
    let all_done = delivery.end(flow)?;
    let mut explained = true;
    if let Some(explainer) = explainer {
        let images: Vec<_> = asked.images.iter().collect();
        explained = explainer
            .explain_all(&model, &images, preset.decode_policy(), output)
            .await?;
    }
    model.gpu().save_pipelines();
    Ok(all_done && explained)
}

impl Args {
    /// The results file as earlier runs left it, if one was asked for.
    fn earlier_results(
        &self,
        shared: &Shared,
        checkpoint: Option<&Path>,
    ) -> Result<Option<EarlierResults>, ResultsError> {
        let mut fields = vec!["pred_answer", "score", "num_tokens", "tokens"];
        if self.generation.several_texts() {
            fields.push("answers");
        }
        let columns = Columns::new(&["image", "question"], &fields);
        let record = || {
            let mut options = self.generation.given();
            options.extend(shared.given());
            if let Some(size) = self.image_size {
                options.insert("--image-size".into(), size.to_string());
            }
            RunRecord::new("vqa", checkpoint, options)
        };
        EarlierResults::open(&self.out, columns, record)
    }
}

/// How questions are asked.
struct Asking<'a> {
    options: &'a Arc<VqaOptions>,
    stream: bool,
    output: &'a Output,
}

/// Answers everything and hands over each outcome as it is known. Breaks where the delivery does.
async fn answer_all(
    model: &mut Blip2,
    asked: &Asked,
    asking: &Asking<'_>,
    delivery: &mut Delivery<'_>,
    mut explainer: Option<&mut Explainer>,
) -> Result<ControlFlow<()>, Error> {
    let Asking {
        options,
        stream,
        output,
    } = *asking;
    let started = std::time::Instant::now();
    let run = RunOptions {
        batch_size: if stream { Some(1) } else { options.batch_size },
        pieces: stream,
    };
    let sources: Vec<_> = asked.images.iter().map(ImageInput::to_source).collect();
    let ask = |question: usize| Ask::Question {
        question: asked.questions[question].clone(),
        options: Arc::clone(options),
    };
    let items = asked.asked.iter().map(|&(image, question)| Item {
        image: sources[image].clone(),
        ask: ask(question),
    });
    // Questions that the user knows to be cut.
    let mut warned = HashSet::new();
    let mut events = model.run(items, run);
    while let Some(event) = events.next().await {
        let (item, outcome) = match event? {
            ItemEvent::Piece { item, text } => {
                delivery.piece(item, &asked.intro(asked.asked[item]), &text);
                continue;
            }
            ItemEvent::Done { item, texts } => {
                let (image, question) = asked.asked[item];
                if let Some(explainer) = &mut explainer {
                    explainer.push((item, image), ask(question), &texts);
                }
                let answer = Answer::from_texts(texts);
                if answer.prompt_tokens_cut > 0 && warned.insert(question) {
                    let question = &asked.questions[question];
                    output.warning(&cut_warning(question, answer.prompt_tokens_cut));
                }
                (item, Ok(asked.finished(asked.asked[item], &answer)))
            }
            ItemEvent::Failed { item, error } if error.names_its_image() => {
                (item, Err(error.to_string()))
            }
            ItemEvent::Failed { item, error } => {
                let name = &asked.images[asked.asked[item].0].name;
                (item, Err(format!("{name}: {error}")))
            }
        };
        if delivery.finished(item, outcome).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    drop(events);
    output.detail(&format!(
        "{} questions in {:.2} s; {}",
        asked.asked.len(),
        started.elapsed().as_secs_f64(),
        model.timings()
    ));
    Ok(ControlFlow::Continue(()))
}

/// Letters of a question that a warning shows.
const EXCERPT: usize = 40;

fn cut_warning(question: &str, tokens: usize) -> String {
    let excerpt: String = question.chars().take(EXCERPT).collect();
    let dots = if excerpt.len() < question.len() {
        "…"
    } else {
        ""
    };
    format!(
        "question {excerpt:?}{dots} is too long: {tokens} tokens at the end are cut; shorten it to have it asked whole"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_show_the_start_of_a_question() {
        let warning = cut_warning(&"é\0".repeat(5000), 9_900);
        assert!(warning.contains("9900 tokens"), "{warning}");
        assert!(warning.len() < 400, "{warning}");
        assert!(!warning.contains('\0'));
    }
}
