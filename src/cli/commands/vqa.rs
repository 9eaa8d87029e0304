//! `blip2-wgpu vqa IMAGE QUESTION…`

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::Error;
use crate::cli::Cli;
use crate::cli::shared::delivery::ANSWERS;
use crate::cli::shared::inputs::{ImageInput, ImageSource, has_image_extension, images_of};
use crate::cli::shared::output::Output;
use crate::cli::shared::run::{Run, RunArgs};
use crate::cli::shared::{Shared, pairs};
use crate::task::{Ask, VqaOptions, check_vqa_options};

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
    /// An image and the questions about it. With --question: images only (files, folders with all
    /// below them, globs, or - for stdin)
    #[arg(
        required_unless_present = "pairs",
        conflicts_with = "pairs",
        value_name = "IMAGE QUESTION"
    )]
    items: Vec<OsString>,
    /// A question to ask about every image; may be given several times
    #[arg(long = "question", value_name = "TEXT", conflicts_with = "pairs")]
    questions: Vec<String>,
    /// A file (or - for stdin) with {"image": PATH, "question": TEXT} a line; paths are looked for
    /// beside the file, then from the working directory
    #[arg(long, value_name = "FILE.jsonl")]
    pairs: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    /// Whether answers go nowhere but to stdout.
    pub fn keeps_nothing(&self) -> bool {
        self.run.out.out.is_none()
    }
}

/// Answers every question; `false` if any failed.
pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    let checkpoint = shared.check()?;
    let generation = &args.run.generation;
    let options = Arc::new(generation.vqa_options());
    options.check_prompt()?;
    let asked = match &args.pairs {
        Some(file) => Questions::from_pairs(file, &options, output),
        None => Questions::from_arguments(args, &options, output),
    };
    if asked.items.is_empty() {
        return Ok(false);
    }
    if let Some(path) = checkpoint {
        check_vqa_options(&shared.parts.open(path)?, &options)?;
    }
    let run = Run {
        shared,
        output,
        args: &args.run,
        kind: &ANSWERS,
        image_size: args.run.image_size.or(generation.preset.vqa_image_size()),
        images: asked.images,
        items: asked.items,
        failed: asked.failed,
        sidecars: None,
    };
    run.run(checkpoint).await
}

/// What is asked about what.
#[derive(Debug, Default)]
struct Questions {
    images: Vec<ImageInput>,
    /// The number of an image, and a question about it.
    items: Vec<(usize, Ask)>,
    /// Arguments and lines that cannot be asked.
    failed: usize,
}

impl Questions {
    /// Every question about every image, image by image; those that cannot be asked are reported.
    fn from_arguments(args: &Args, options: &Arc<VqaOptions>, output: &Output) -> Self {
        let (images, questions) = if args.questions.is_empty() {
            let (image, questions) = args.items.split_at(args.items.len().min(1));
            (image, questions_of(questions))
        } else {
            (&args.items[..], args.questions.clone())
        };
        let (images, mut failed) = images_of(images, output);
        let mut usable = Vec::new();
        for question in questions {
            match options.check_question(&question) {
                Ok(()) => usable.push(ask(question, options)),
                Err(error) => {
                    output.error(&error);
                    failed += 1;
                }
            }
        }
        let about = |image| usable.iter().map(move |ask| (image, ask.clone()));
        let items = (0..images.len()).flat_map(about).collect();
        Self {
            images,
            items,
            failed,
        }
    }

    /// The pairs of a file; lines that cannot be asked are reported.
    fn from_pairs(file: &Path, options: &Arc<VqaOptions>, output: &Output) -> Self {
        let (pairs, errors) = pairs::read(file);
        let mut asked = Self {
            failed: errors.len(),
            ..Self::default()
        };
        for error in &errors {
            output.error(error);
        }
        let mut known = HashMap::new();
        for pair in pairs {
            if let Err(error) = options.check_question(&pair.question) {
                output.error(&format!("{}, line {}: {error}", file.display(), pair.line));
                asked.failed += 1;
                continue;
            }
            let image = *known.entry(pair.image).or_insert_with_key(|name| {
                asked.images.push(ImageInput {
                    name: name.clone(),
                    source: ImageSource::Path(pairs::locate(file, name)),
                });
                asked.images.len() - 1
            });
            asked.items.push((image, ask(pair.question, options)));
        }
        asked
    }
}

fn ask(question: String, options: &Arc<VqaOptions>) -> Ask {
    Ask::Question {
        question,
        options: Arc::clone(options),
    }
}

/// The questions among the arguments, after the image; ends the program where there are none or
/// they are files.
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
