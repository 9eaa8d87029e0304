//! `blip2-wgpu vqa IMAGE QUESTION…`

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::Error;
use crate::gpu::GpuError;
use crate::image::Rgb8Image;
use crate::task::{Answer, Blip2, MAX_QUESTIONS, Question, VqaOptions, check_vqa_options};

use super::generation::GenerationArgs;
use super::inputs::{ImageInput, ImageSource, expand, has_image_extension};
use super::output::{Output, digits};
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
    if let Some(path) = checkpoint {
        check_vqa_options(path, &options)?;
    }
    let mut model = shared.open(image_size, output).await?;
    model.check_vqa_options(&options)?;

    let mut all_done = asked.complete;
    let bar = output.items(asked.asked.len());
    let stream = args.generation.stream && !output.json;
    let batch_size = if stream {
        1
    } else {
        model.vqa_batch_size(&options)
    };
    let mut answerer = Answerer {
        model: &mut model,
        options: &options,
        asked: &asked,
        stream,
        warned: HashSet::new(),
        output,
    };
    for batch in batches(&asked.asked, batch_size) {
        all_done &= answerer.read_and_answer(batch).await?;
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    model.gpu().save_pipelines();
    Ok(all_done)
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

/// Runs of questions about at most `most_images` images, no longer than what is decoded together.
fn batches(
    asked: &[(usize, usize)],
    most_images: usize,
) -> impl Iterator<Item = &[(usize, usize)]> {
    let most = MAX_QUESTIONS.max(most_images);
    let mut rest = asked;
    std::iter::from_fn(move || {
        let mut images = HashSet::new();
        let end = rest
            .iter()
            .take(most)
            .take_while(|(image, _)| {
                images.insert(*image);
                images.len() <= most_images
            })
            .count();
        let (batch, after) = rest.split_at(end);
        rest = after;
        (!batch.is_empty()).then_some(batch)
    })
}

/// The images of a batch that can be read.
#[derive(Debug, Default)]
struct Pictures {
    images: Vec<Rgb8Image>,
    /// Where in `images` each is, by its index in [`Asked::images`].
    places: HashMap<usize, usize>,
}

/// Answers batches and prints them.
struct Answerer<'a> {
    model: &'a mut Blip2,
    options: &'a VqaOptions,
    asked: &'a Asked,
    stream: bool,
    /// Questions that the user knows to be cut.
    warned: HashSet<usize>,
    output: &'a Output,
}

impl Answerer<'_> {
    /// Reads the images of a batch, each once, and answers what is asked about those that can be read.
    async fn read_and_answer(&mut self, batch: &[(usize, usize)]) -> Result<bool, Error> {
        let policy = self.options.preset.decode_policy();
        let mut pictures = Pictures::default();
        let mut tried = HashSet::new();
        for &(image, _) in batch {
            if !tried.insert(image) {
                continue;
            }
            match self.asked.images[image].decode(policy) {
                Ok(picture) => {
                    pictures.places.insert(image, pictures.images.len());
                    pictures.images.push(picture);
                }
                Err(error) => self.output.error(&error),
            }
        }
        let readable: Vec<_> = batch
            .iter()
            .filter(|(image, _)| pictures.places.contains_key(image))
            .copied()
            .collect();
        Ok(self.batch(&readable, &pictures).await? && readable.len() == batch.len())
    }

    /// Answers a batch; where it fails, each question by itself, so that one question's failure is its own.
    async fn batch(
        &mut self,
        batch: &[(usize, usize)],
        pictures: &Pictures,
    ) -> Result<bool, Error> {
        match self.answer(batch, pictures).await {
            Ok(()) => Ok(true),
            // Without a device there is nothing left to try.
            Err(error @ Error::Gpu(GpuError::Lost { .. })) => Err(error),
            Err(error) if batch.len() == 1 => {
                let (image, _) = batch[0];
                let name = &self.asked.images[image].name;
                self.output.error(&format!("{name}: {error}"));
                Ok(false)
            }
            Err(_) => {
                let mut all_done = true;
                for question in batch {
                    let one = std::slice::from_ref(question);
                    all_done &= Box::pin(self.batch(one, pictures)).await?;
                }
                Ok(all_done)
            }
        }
    }

    async fn answer(&mut self, batch: &[(usize, usize)], pictures: &Pictures) -> Result<(), Error> {
        let started = std::time::Instant::now();
        let questions: Vec<_> = batch
            .iter()
            .map(|(image, question)| Question {
                image: pictures.places[image],
                text: self.asked.questions[*question].clone(),
            })
            .collect();
        // Questions of one image are answered side by side: the first is shown as it comes, the others after it.
        let mut streamed = false;
        let (asked, output, stream) = (self.asked, self.output, self.stream);
        let answers = self
            .model
            .answer_streaming(
                &pictures.images,
                &questions,
                self.options,
                &mut |question, piece| {
                    if stream && question == 0 {
                        if !streamed {
                            output.text(&asked.intro(batch[0]));
                            streamed = true;
                        }
                        output.text(piece);
                    }
                },
            )
            .await?;
        for (index, (&pair, answer)) in batch.iter().zip(&answers).enumerate() {
            self.print(pair, answer, streamed && index == 0);
        }
        output.detail(&format!(
            "{} questions in {:.2} s; {}",
            questions.len(),
            started.elapsed().as_secs_f64(),
            self.model.timings()
        ));
        Ok(())
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
    fn batches_have_few_images_and_few_questions() {
        let about =
            |images: &[usize]| -> Vec<(usize, usize)> { images.iter().copied().zip(0..).collect() };
        let sizes = |images: &[usize], most| -> Vec<usize> {
            batches(&about(images), most).map(<[_]>::len).collect()
        };
        assert_eq!(sizes(&[0, 0, 1, 0, 2, 2, 3], 2), [4, 3]);
        assert_eq!(sizes(&[0, 0, 1, 0], 1), [2, 1, 1]);
        assert_eq!(sizes(&[0; 70], 8), [32, 32, 6]);
        assert_eq!(sizes(&[], 8), [0; 0]);
    }

    #[test]
    fn warnings_show_the_start_of_a_question() {
        let warning = cut_warning(&"é\0".repeat(5000), 9_900);
        assert!(warning.contains("9900 tokens"), "{warning}");
        assert!(warning.len() < 400, "{warning}");
        assert!(!warning.contains('\0'));
    }
}
