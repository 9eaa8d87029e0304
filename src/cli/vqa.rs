//! `blip2-wgpu vqa IMAGE QUESTION…`

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::Error;
use crate::task::{Answer, Ask, Item, ItemEvent, RunOptions, VqaOptions, check_vqa_options};

use super::explain::{ExplainFile, Explainer, parse_file};
use super::generation::GenerationArgs;
use super::in_order::InOrder;
use super::inputs::{ImageInput, ImageSource, expand, has_image_extension};
use super::output::{ItemsBar, Output, digits};
use super::{Cli, Shared, pairs};

/// Answers questions about images.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "blip2-wgpu vqa [OPTIONS] <IMAGE> <QUESTION>...\n       \
                      blip2-wgpu vqa [OPTIONS] <IMAGE>... --question <TEXT>\n       \
                      blip2-wgpu vqa [OPTIONS] --pairs <FILE.jsonl>",
    after_help = "Examples:\n  \
                  blip2-wgpu vqa photo.jpg \"what animal is this?\" \"is it asleep?\"\n  \
                  blip2-wgpu vqa holiday/ --question \"is anybody in the picture?\" --json\n  \
                  blip2-wgpu vqa --pairs questions.jsonl --preset lavis --json"
)]
pub(super) struct Args {
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
    generation: GenerationArgs,
}

/// What is asked about what: `asked` in the order of the answers.
#[derive(Debug, Default)]
struct Asked {
    images: Vec<ImageInput>,
    questions: Vec<String>,
    /// Indices of an image and a question.
    asked: Vec<(usize, usize)>,
    /// Whether everything that was given can be asked.
    complete: bool,
}

/// Answers every question; `false` if any failed.
pub(super) async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
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
    let asked = match &args.pairs {
        Some(file) => from_pairs(file, &options, output),
        None => from_arguments(args, &options, output),
    };
    if asked.asked.is_empty() {
        return Ok(false);
    }
    let explainer = args.explain.as_ref();
    let explainer = explainer.map(|file| Explainer::create(file, asked.images.len()));
    let mut explainer = explainer.transpose()?;
    if let Some(path) = checkpoint {
        check_vqa_options(path, &options)?;
    }
    let mut model = shared.open(image_size, output).await?;
    model.check_vqa_options(&options)?;

    let started = std::time::Instant::now();
    let stream = args.generation.stream && !output.json;
    let run = RunOptions {
        batch_size: if stream { Some(1) } else { options.batch_size },
        pieces: stream,
    };
    let options = Arc::new(options);
    let sources: Vec<_> = asked.images.iter().map(ImageInput::to_source).collect();
    let ask = |question: usize| Ask::Question {
        question: asked.questions[question].clone(),
        options: Arc::clone(&options),
    };
    let items = asked.asked.iter().map(|&(image, question)| Item {
        image: sources[image].clone(),
        ask: ask(question),
    });
    let mut answers = Answers::new(&asked, output);
    let mut events = model.run(items, run);
    while let Some(event) = events.next().await {
        let event = event?;
        if let (Some(explainer), ItemEvent::Done { item, texts }) = (&mut explainer, &event) {
            let (image, question) = asked.asked[*item];
            explainer.push((*item, image), ask(question), texts);
        }
        answers.hear(event);
    }
    drop(events);
    output.detail(&format!(
        "{} questions in {:.2} s; {}",
        asked.asked.len(),
        started.elapsed().as_secs_f64(),
        model.timings()
    ));
    let mut explained = true;
    if let Some(explainer) = explainer {
        let images: Vec<_> = asked.images.iter().collect();
        let policy = preset.decode_policy();
        explained = explainer
            .explain_all(&model, &images, policy, output)
            .await?;
    }
    model.gpu().save_pipelines();
    Ok(asked.complete && answers.failed == 0 && explained)
}

/// Every question about every image, image by image; those that cannot be asked are reported.
fn from_arguments(args: &Args, options: &VqaOptions, output: &Output) -> Asked {
    let (images, questions) = if args.questions.is_empty() {
        let (image, questions) = args.items.split_at(args.items.len().min(1));
        (image, questions_of(questions))
    } else {
        (&args.items[..], args.questions.clone())
    };
    let (images, errors) = expand(images);
    let mut complete = errors.is_empty();
    for error in &errors {
        output.error(error);
    }
    let mut usable = Vec::new();
    for question in questions {
        match options.check_question(&question) {
            Ok(()) => usable.push(question),
            Err(error) => {
                output.error(&error);
                complete = false;
            }
        }
    }
    let asked = (0..images.len())
        .flat_map(|image| (0..usable.len()).map(move |question| (image, question)))
        .collect();
    Asked {
        images,
        questions: usable,
        asked,
        complete,
    }
}

/// The questions among the arguments, after the image; ends the program where there are none or they are files.
fn questions_of(arguments: &[OsString]) -> Vec<String> {
    if arguments.is_empty() {
        wrong_usage(
            "no question: write it after the image, or give --question TEXT or --pairs FILE.jsonl",
        );
    }
    let question = |argument: &OsString| {
        let Some(text) = argument.to_str() else {
            wrong_usage(&format!(
                "question {argument:?} is not UTF-8; check the terminal's encoding"
            ));
        };
        if is_path(text) {
            wrong_usage(&format!(
                "{text:?} stands where a question is expected, but is a path; to ask about several images give \
                 --question TEXT"
            ));
        }
        text.to_owned()
    };
    arguments.iter().map(question).collect()
}

/// Whether an argument is meant as an image rather than as a question.
fn is_path(text: &str) -> bool {
    let path = Path::new(text);
    path.exists() || has_image_extension(path) && !text.contains(char::is_whitespace)
}

/// Ends the program as clap does on wrong usage.
fn wrong_usage(problem: &str) -> ! {
    Cli::command()
        .error(ErrorKind::MissingRequiredArgument, problem)
        .exit()
}

/// The pairs of a file; lines that cannot be asked are reported.
fn from_pairs(file: &Path, options: &VqaOptions, output: &Output) -> Asked {
    let (pairs, errors) = pairs::read(file);
    let mut asked = Asked {
        complete: errors.is_empty(),
        ..Asked::default()
    };
    for error in &errors {
        output.error(error);
    }
    let mut known = HashMap::new();
    for pair in pairs {
        if let Err(error) = options.check_question(&pair.question) {
            output.error(&format!("{}, line {}: {error}", file.display(), pair.line));
            asked.complete = false;
            continue;
        }
        let image = *known.entry(pair.image).or_insert_with_key(|name| {
            asked.images.push(ImageInput {
                name: name.clone(),
                source: ImageSource::Path(pairs::locate(file, name)),
            });
            asked.images.len() - 1
        });
        asked.asked.push((image, asked.questions.len()));
        asked.questions.push(pair.question);
    }
    asked
}

/// Prints answers in the order of the questions.
struct Answers<'a> {
    asked: &'a Asked,
    outcomes: InOrder<Result<Answer, Arc<Error>>>,
    /// The question whose answer is being shown as it comes.
    shown: Option<usize>,
    /// Questions that the user knows to be cut.
    warned: HashSet<usize>,
    /// Images that the user knows to be unreadable.
    unreadable: HashSet<usize>,
    failed: usize,
    bar: ItemsBar,
    output: &'a Output,
}

impl<'a> Answers<'a> {
    fn new(asked: &'a Asked, output: &'a Output) -> Self {
        Self {
            asked,
            outcomes: InOrder::default(),
            shown: None,
            warned: HashSet::new(),
            unreadable: HashSet::new(),
            failed: 0,
            bar: output.items(asked.asked.len(), "questions", true),
            output,
        }
    }

    fn hear(&mut self, event: ItemEvent) {
        match event {
            ItemEvent::Piece { item, text } => {
                if self.shown.replace(item) != Some(item) {
                    self.output.text(&self.asked.intro(self.asked.asked[item]));
                }
                self.output.text(&text);
            }
            ItemEvent::Done { item, texts } => {
                self.outcomes.put(item, Ok(Answer::from_texts(texts)));
            }
            ItemEvent::Failed { item, error } => self.outcomes.put(item, Err(error)),
        }
        while let Some((item, outcome)) = self.outcomes.next() {
            let asked = self.asked.asked[item];
            match outcome {
                Ok(answer) => self.print(asked, &answer, self.shown == Some(item)),
                Err(error) => self.fail(asked, &error),
            }
            self.bar.inc(1);
        }
    }

    /// Reports a question that has no answer; an image that cannot be read once for all questions about it.
    fn fail(&mut self, (image, _): (usize, usize), error: &Error) {
        self.failed += 1;
        if error.names_its_image() {
            if self.unreadable.insert(image) {
                self.output.error(error);
            }
        } else {
            let name = &self.asked.images[image].name;
            self.output.error(&format!("{name}: {error}"));
        }
    }

    /// Prints an answer, the first text of which may have been `shown` already, and says if its question was cut.
    fn print(&mut self, (image, question): (usize, usize), answer: &Answer, shown: bool) {
        let output = self.output;
        if answer.prompt_tokens_cut > 0 && self.warned.insert(question) {
            output.warning(&cut_warning(
                &self.asked.questions[question],
                answer.prompt_tokens_cut,
            ));
        }
        if output.json {
            output.line(&self.asked.json((image, question), answer).to_string());
            return;
        }
        let mut texts = answer.alternatives.iter();
        if shown {
            texts.next();
            output.line("");
        }
        for text in texts {
            let intro = self.asked.intro((image, question));
            output.line(&format!("{intro}{}", text.text));
        }
    }
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

impl Asked {
    /// What stands before an answer on its line.
    fn intro(&self, (image, question): (usize, usize)) -> String {
        let question = self.questions[question].replace(char::is_control, " ");
        format!("{}: {} ", self.images[image].name, question.trim())
    }

    fn json(&self, (image, question): (usize, usize), answer: &Answer) -> serde_json::Value {
        let mut line = serde_json::json!({
            "image": self.images[image].name,
            "question": self.questions[question],
            "pred_answer": answer.text,
            "tokens": answer.tokens,
            "score": digits(answer.score),
            "num_tokens": answer.tokens.len(),
        });
        if answer.alternatives.len() > 1 {
            line["answers"] = answer
                .alternatives
                .iter()
                .map(|text| serde_json::json!({"text": text.text, "score": digits(text.score)}))
                .collect();
        }
        line
    }
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
