//! Answers to questions about images.

use std::path::Path;

use crate::Error;
use crate::generate::{GenerationOptions, GenerationOverrides};
use crate::image::Rgb8Image;
use crate::schedule::Request;
use crate::text::Tokenizer;

use super::question::{AnswerPieces, Echo, Template, first_words};
use super::source::Source;
use super::{Blip2, Preset, Text};

/// Questions decoded together, unless there are more images: an image with more is encoded once for each so many.
pub(crate) const MAX_QUESTIONS: usize = 32;

/// Characters of a question that an error shows.
const EXCERPT: usize = 40;

/// How to answer.
#[derive(Debug, Clone, Default)]
pub struct VqaOptions {
    /// Prompt with `{}` where the question goes; `None` is the preset's.
    pub prompt: Option<String>,
    /// Whose defaults to follow.
    pub preset: Preset,
    /// Options that win over preset and checkpoint.
    pub generation: GenerationOverrides,
    /// Images at a time; `None` chooses.
    pub batch_size: Option<usize>,
}

/// A question about one of several images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Index of the image it is about.
    pub image: usize,
    /// The question as it is asked; the preset cleans it.
    pub text: String,
}

/// What the model answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The best text, as in [`Text::text`], without the prompt or question where the model repeats it at the start.
    pub text: String,
    /// Its tokens, what it repeats included.
    pub tokens: Vec<u32>,
    /// Its score.
    pub score: f32,
    /// All texts asked for, the best first.
    pub alternatives: Vec<Text>,
    /// Tokens that the prompt lost to fit what the model or the preset takes: 0 where the question was asked whole.
    pub prompt_tokens_cut: usize,
}

/// A question as the model gets it.
#[derive(Debug)]
struct Prompt {
    /// Token ids, BOS included.
    ids: Vec<u32>,
    /// Tokens that are missing in it.
    cut: usize,
    echo: Echo,
}

impl VqaOptions {
    /// The prompt around the question.
    ///
    /// # Errors
    /// [`Error::Template`]
    pub fn check_prompt(&self) -> Result<(), Error> {
        self.template().map(|_| ())
    }

    /// Whether there is a question in `question` once the preset has cleaned it.
    ///
    /// # Errors
    /// [`Error::Question`]
    pub fn check_question(&self, question: &str) -> Result<(), Error> {
        self.clean(question).map(|_| ())
    }

    fn clean(&self, question: &str) -> Result<String, Error> {
        let cleaned = self.preset.clean_question(question);
        if !cleaned.trim().is_empty() {
            return Ok(cleaned);
        }
        let problem = if question.trim().is_empty() {
            "it is empty"
        } else {
            "the preset removes punctuation, and nothing is left"
        };
        Err(Error::Question {
            question: question.chars().take(EXCERPT).collect(),
            problem,
        })
    }

    fn template(&self) -> Result<Template<'_>, Error> {
        Template::parse(
            self.prompt
                .as_deref()
                .unwrap_or_else(|| self.preset.vqa_prompt()),
        )
    }

    /// Preset and checkpoint under the options given.
    fn generation(
        &self,
        checkpoint: &GenerationOptions,
        tokenizer: &Tokenizer,
    ) -> Result<GenerationOptions, Error> {
        let generation = self
            .preset
            .vqa_options(checkpoint.clone(), tokenizer.newline())
            .overlay(&self.generation);
        generation.validate()?;
        Ok(generation)
    }
}

impl Answer {
    fn of(mut alternatives: Vec<Text>, prompt: &Prompt) -> Self {
        for text in &mut alternatives {
            text.text = prompt.echo.strip(&text.text).to_owned();
        }
        let best = Text::best(&alternatives);
        Self {
            text: best.text,
            tokens: best.tokens,
            score: best.score,
            alternatives,
            prompt_tokens_cut: prompt.cut,
        }
    }
}

/// Checks `options` against the checkpoint folder `path` without loading it, which may take a while.
///
/// # Errors
/// Options that do not go together or with the checkpoint; a file of it that is missing or damaged.
pub fn check_vqa_options(path: impl AsRef<Path>, options: &VqaOptions) -> Result<(), Error> {
    options.template()?;
    let source = Source::open(path.as_ref(), None)?;
    options.generation(&source.generation, &source.tokenizer)?;
    Ok(())
}

impl Blip2 {
    /// Answers `questions` about `images`, in the order of the questions. However many questions an image has, it is
    /// encoded once (once for every 32 of them).
    ///
    /// ```no_run
    /// # async fn example(mut model: blip2_wgpu::Blip2, photo: blip2_wgpu::image::Rgb8Image)
    /// # -> Result<(), blip2_wgpu::Error> {
    /// use blip2_wgpu::{Question, VqaOptions};
    ///
    /// let ask = |text: &str| Question { image: 0, text: text.into() };
    /// let questions = [ask("what animal is this?"), ask("is it asleep?")];
    /// for answer in model.answer(&[photo], &questions, &VqaOptions::default()).await? {
    ///     println!("{}", answer.text);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Options that do not go together, an empty question, one about an image that is not there, a prompt too long for
    /// the model, or a failing device. A question too long is cut ([`Answer::prompt_tokens_cut`]).
    pub async fn answer(
        &mut self,
        images: &[Rgb8Image],
        questions: &[Question],
        options: &VqaOptions,
    ) -> Result<Vec<Answer>, Error> {
        self.answer_streaming(images, questions, options, &mut |_, _| {})
            .await
    }

    /// [`Blip2::answer`] that hands over the pieces of each question's first text as its tokens are chosen (greedy and
    /// sampling; a beam search knows its text only at the end and hands over nothing).
    ///
    /// # Errors
    /// As [`Blip2::answer`].
    pub async fn answer_streaming(
        &mut self,
        images: &[Rgb8Image],
        questions: &[Question],
        options: &VqaOptions,
        on_text: &mut (dyn FnMut(usize, &str) + Send),
    ) -> Result<Vec<Answer>, Error> {
        let generation = self.vqa_generation(options)?;
        let prompts = questions
            .iter()
            .map(|question| self.question_prompt(&question.text, options, &generation))
            .collect::<Result<Vec<_>, _>>()?;
        let mut answers: Vec<Option<Answer>> = vec![None; questions.len()];
        for batch in batches(questions, self.vqa_batch_size(options)) {
            let pixels = batch
                .images
                .iter()
                .map(|&image| Ok(self.preprocessor.apply(picture(images, image)?)?))
                .collect::<Result<Vec<_>, Error>>()?;
            let requests: Vec<Request> = batch
                .questions
                .iter()
                .map(|&(question, image)| Request {
                    image,
                    text: prompts[question].ids.clone(),
                    history: self.history(&prompts[question].ids, options.preset),
                })
                .collect();
            let mut pieces: Vec<_> = batch
                .questions
                .iter()
                .map(|&(question, _)| AnswerPieces::new(&prompts[question].echo))
                .collect();
            let texts = self
                .generate_texts(&pixels, &requests, &generation, &mut |request, piece| {
                    if let Some(piece) = pieces[request].push(piece) {
                        on_text(batch.questions[request].0, &piece);
                    }
                })
                .await?;
            for ((&(question, _), mut pieces), texts) in
                batch.questions.iter().zip(pieces).zip(texts)
            {
                if let Some(piece) = pieces.finish() {
                    on_text(question, &piece);
                }
                answers[question] = Some(Answer::of(texts, &prompts[question]));
            }
        }
        // Every question is in a batch.
        Ok(answers.into_iter().flatten().collect())
    }

    /// Checks `options` without running anything, so that a program can fail before it reads a thousand images.
    ///
    /// # Errors
    /// Options that do not go together, or a prompt too long for the model.
    pub fn check_vqa_options(&self, options: &VqaOptions) -> Result<(), Error> {
        let generation = self.vqa_generation(options)?;
        self.question_prompt("a", options, &generation)?;
        Ok(())
    }

    /// Images whose questions are answered at a time under `options`.
    #[must_use]
    pub fn vqa_batch_size(&self, options: &VqaOptions) -> usize {
        self.batch_size(options.batch_size)
    }

    fn vqa_generation(&self, options: &VqaOptions) -> Result<GenerationOptions, Error> {
        options.template()?;
        options.generation(&self.generation, &self.tokenizer)
    }

    /// The prompt for a question. Where it is too long for the preset its end goes, as in LAVIS; where it is too long
    /// for the model the end of the question goes, and what the template says after it stays.
    fn question_prompt(
        &self,
        question: &str,
        options: &VqaOptions,
        generation: &GenerationOptions,
    ) -> Result<Prompt, Error> {
        let template = options.template()?;
        let cleaned = options.clean(question)?;
        let question = first_words(&cleaned, options.preset.question_words());
        let text = template.fill(question);
        let mut ids = self.tokenizer.encode(&text)?;
        let mut cut = 0;
        if question.len() < cleaned.len() {
            let uncut = self.tokenizer.encode(&template.fill(&cleaned))?;
            cut = uncut.len().saturating_sub(ids.len()).max(1);
        }
        let whole = ids.len();
        ids.truncate(options.preset.vqa_prompt_tokens());
        let most = self.prompt_room(generation);
        if ids.len() > most {
            let after = self.tokenizer.encode_without_bos(template.after)?;
            // Of the question one token must be left for there to be any.
            let least = self.tokenizer.encode(template.before)?.len() + 1 + after.len();
            self.engine.check_length(least, generation)?;
            ids.truncate(most - after.len());
            ids.extend(after);
        }
        cut += whole - ids.len();
        Ok(Prompt {
            ids,
            cut,
            echo: Echo::new(&text, question),
        })
    }
}

/// The image `index`.
fn picture(images: &[Rgb8Image], index: usize) -> Result<&Rgb8Image, Error> {
    images.get(index).ok_or_else(|| Error::Request {
        problem: format!("a question about image {index} of {}", images.len()),
    })
}

/// Images that are encoded together, and their questions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Batch {
    /// Indices of images.
    images: Vec<usize>,
    /// Index of a question, and place of its image in `images`.
    questions: Vec<(usize, usize)>,
}

/// Groups questions by image, images in the order that they are first asked about: at most `most_images` a batch.
fn batches(questions: &[Question], most_images: usize) -> Vec<Batch> {
    let most_questions = MAX_QUESTIONS.max(most_images);
    let mut order: Vec<usize> = (0..questions.len()).collect();
    let mut first_asked = std::collections::HashMap::new();
    for (index, question) in questions.iter().enumerate() {
        first_asked.entry(question.image).or_insert(index);
    }
    order.sort_by_key(|&index| first_asked[&questions[index].image]);

    let mut batches: Vec<Batch> = Vec::new();
    for of_image in order.chunk_by(|&a, &b| questions[a].image == questions[b].image) {
        for asked in of_image.chunks(most_questions) {
            let fits = batches.last().is_some_and(|batch| {
                batch.images.len() < most_images
                    && batch.questions.len() + asked.len() <= most_questions
            });
            if !fits {
                batches.push(Batch::default());
            }
            if let Some(batch) = batches.last_mut() {
                let place = batch.images.len();
                batch.images.push(questions[asked[0]].image);
                batch
                    .questions
                    .extend(asked.iter().map(|&question| (question, place)));
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(images: &[usize]) -> Vec<Question> {
        let ask = |&image| Question {
            image,
            text: "?".into(),
        };
        images.iter().map(ask).collect()
    }

    #[test]
    fn an_image_is_in_one_batch_with_all_its_questions() {
        let batch = |images: &[usize], questions: &[(usize, usize)]| Batch {
            images: images.into(),
            questions: questions.into(),
        };
        assert_eq!(
            batches(&about(&[3, 1, 3, 0, 1]), 2),
            [
                batch(&[3, 1], &[(0, 0), (2, 0), (1, 1), (4, 1)]),
                batch(&[0], &[(3, 0)])
            ]
        );
        assert_eq!(batches(&about(&[]), 2), []);
        let many: Vec<_> = batches(&about(&[0; 70]), 8);
        let sizes: Vec<_> = many.iter().map(|batch| batch.questions.len()).collect();
        assert_eq!(sizes, [32, 32, 6]);
    }

    #[test]
    fn empty_questions_are_named() {
        let check = |preset, question| {
            VqaOptions {
                preset,
                ..VqaOptions::default()
            }
            .check_question(question)
        };
        for preset in [Preset::Hf, Preset::Lavis, Preset::Mmpretrain] {
            assert!(check(preset, "why?").is_ok());
            for question in ["", " \t\n", "\u{3000}"] {
                let message = check(preset, question).unwrap_err().to_string();
                assert!(message.contains("empty"), "{message}");
            }
        }
        assert!(check(Preset::Hf, "?!").is_ok());
        assert!(check(Preset::Lavis, "?!").is_ok());
        let message = check(Preset::Mmpretrain, "?!").unwrap_err().to_string();
        assert!(message.contains("\"?!\""), "{message}");
    }
}
