//! What is asked about what: from arguments or from a file of pairs.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::cli::Cli;
use crate::cli::shared::delivery::{Finished, Summary};
use crate::cli::shared::inputs::{ImageInput, ImageSource, expand, has_image_extension};
use crate::cli::shared::output::{Output, digits};
use crate::cli::shared::pairs;
use crate::cli::shared::results::{Columns, EarlierResults, Sieve, Standing};
use crate::task::{Answer, VqaOptions};

use super::{Args, KIND};

/// What is asked about what: `asked` in the order of the answers.
#[derive(Debug, Default)]
pub struct Asked {
    pub images: Vec<ImageInput>,
    pub questions: Vec<String>,
    /// Indices of an image and a question.
    pub asked: Vec<(usize, usize)>,
    /// Arguments and lines that cannot be asked.
    pub failed: usize,
}

/// Every question about every image, image by image; those that cannot be asked are reported.
pub fn from_arguments(args: &Args, options: &VqaOptions, output: &Output) -> Asked {
    let (images, questions) = if args.questions.is_empty() {
        let (image, questions) = args.items.split_at(args.items.len().min(1));
        (image, questions_of(questions))
    } else {
        (&args.items[..], args.questions.clone())
    };
    let (images, errors) = expand(images);
    let mut failed = errors.len();
    for error in &errors {
        output.error(error);
    }
    let mut usable = Vec::new();
    for question in questions {
        match options.check_question(&question) {
            Ok(()) => usable.push(question),
            Err(error) => {
                output.error(&error);
                failed += 1;
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
        failed,
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
pub fn from_pairs(file: &Path, options: &VqaOptions, output: &Output) -> Asked {
    let (pairs, errors) = pairs::read(file);
    let mut asked = Asked {
        failed: errors.len(),
        ..Asked::default()
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
        asked.asked.push((image, asked.questions.len()));
        asked.questions.push(pair.question);
    }
    asked
}

impl Asked {
    /// Leaves what has no line in `results` yet, each question about an image once; says why something cannot be kept.
    /// Without results everything stays.
    pub fn leave_missing(&mut self, results: Option<&EarlierResults>, output: &Output) -> Summary {
        let mut summary = Summary::new(KIND);
        summary.failed = self.failed;
        if results.is_none() {
            return summary;
        }
        let mut sieve = Sieve::new(results);
        let (images, questions) = (&self.images, &self.questions);
        self.asked.retain(|&(image, question)| {
            let key = Columns::key([images[image].name.as_str(), questions[question].as_str()]);
            match sieve.standing(&images[image], &key) {
                Standing::Missing => return true,
                Standing::Done => summary.done += 1,
                Standing::Repeated => summary.repeated += 1,
                Standing::Unclear(error) => {
                    output.error(&error);
                    summary.failed += 1;
                }
            }
            false
        });
        summary
    }

    /// What stands before an answer on its line.
    pub fn intro(&self, (image, question): (usize, usize)) -> String {
        let question = self.questions[question].replace(char::is_control, " ");
        format!("{}: {} ", self.images[image].name, question.trim())
    }

    /// An answer as it is shown and kept.
    pub fn finished(&self, pair: (usize, usize), answer: &Answer) -> Finished {
        let mut record = serde_json::json!({
            "image": self.images[pair.0].name,
            "question": self.questions[pair.1],
            "pred_answer": answer.text,
            "tokens": answer.tokens,
            "score": digits(answer.score),
            "num_tokens": answer.tokens.len(),
        });
        if answer.alternatives.len() > 1 {
            record["answers"] = answer
                .alternatives
                .iter()
                .map(|text| serde_json::json!({"text": text.text, "score": digits(text.score)}))
                .collect();
        }
        let texts = answer.alternatives.iter();
        Finished {
            record,
            intro: self.intro(pair),
            texts: texts.map(|text| text.text.clone()).collect(),
        }
    }
}
