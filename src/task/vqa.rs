//! Answers to questions about images.

use std::collections::HashMap;
use std::sync::Arc;

use crate::Error;
use crate::generate::{GenerationOptions, GenerationOverrides};
use crate::image::Rgb8Image;
use crate::text::Tokenizer;

use super::prompt::{PromptIds, Prompter};
use super::question::{Echo, Template, first_words};
use super::{Ask, Blip2, CheckpointFiles, ImageSource, Item, Preset, RunOptions, Text, Texts};

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
    /// Questions at a time; `None` chooses, and takes fewer where the device has no room.
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
    /// The texts of a question, the best first.
    #[must_use]
    pub fn from_texts(texts: Texts) -> Self {
        let Texts {
            texts: alternatives,
            prompt_tokens_cut,
        } = texts;
        let best = Text::best(&alternatives);
        Self {
            text: best.text,
            tokens: best.tokens,
            score: best.score,
            alternatives,
            prompt_tokens_cut,
        }
    }
}

/// Checks `options` against the checkpoint folder `path` without loading it, which may take a while.
///
/// # Errors
/// Options that do not go together or with the checkpoint; a file of it that is missing or damaged.
pub fn check_vqa_options(files: &CheckpointFiles, options: &VqaOptions) -> Result<(), Error> {
    options.template()?;
    let (generation, tokenizer) = files.text_side()?;
    options.generation(&generation, &tokenizer)?;
    Ok(())
}

impl Blip2 {
    /// Answers `questions` about `images`, in the order of the questions. However many questions an image has, it is
    /// encoded once.
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
        let pictures: Vec<_> = images.iter().cloned().map(Arc::new).collect();
        let asked = Arc::new(options.clone());
        let mut items = Vec::with_capacity(questions.len());
        for question in questions {
            let image = picture(&pictures, question.image)?;
            items.push(Item {
                image: ImageSource::Decoded(Arc::clone(image)),
                ask: Ask::Question {
                    question: question.text.clone(),
                    options: Arc::clone(&asked),
                },
            });
        }
        // Questions about one image together: it is encoded once.
        let mut order: Vec<usize> = (0..questions.len()).collect();
        let mut first_asked = HashMap::new();
        for (index, question) in questions.iter().enumerate() {
            first_asked.entry(question.image).or_insert(index);
        }
        order.sort_by_key(|&index| first_asked[&questions[index].image]);
        let run = RunOptions {
            batch_size: options.batch_size,
            pieces: true,
        };
        let in_order = order.iter().map(|&index| items[index].clone());
        let texts = self
            .run(in_order, run)
            .collect(items.len(), &mut |item, piece| {
                on_text(order[item], piece);
            })
            .await?;
        let mut answers: Vec<_> = order.iter().zip(texts).collect();
        answers.sort_by_key(|(index, _)| **index);
        let answer = |(_, texts)| Answer::from_texts(texts);
        Ok(answers.into_iter().map(answer).collect())
    }

    /// Checks `options` without running anything, so that a program can fail before it reads a thousand images.
    ///
    /// # Errors
    /// Options that do not go together, or a prompt too long for the model.
    pub fn check_vqa_options(&self, options: &VqaOptions) -> Result<(), Error> {
        self.prompter().question("a", options)?;
        Ok(())
    }
}

impl Prompter {
    /// The prompt for a question. Where it is too long for the preset its end goes, as in LAVIS; where it is too long
    /// for the model the end of the question goes, and what the template says after it stays.
    pub(super) fn question(
        &self,
        question: &str,
        options: &VqaOptions,
    ) -> Result<PromptIds, Error> {
        let generation = options.generation(&self.generation, &self.tokenizer)?;
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
        ids.truncate(options.preset.vqa_prompt_tokens(self.tokenizer.mark()));
        let most = self.prompt_room(&generation);
        if ids.len() > most {
            let after = self.tokenizer.encode_end(template.after)?;
            // Of the question one token must be left for there to be any.
            let least = self.tokenizer.encode(template.before)?.len() + 1 + after.len();
            self.check_length(least, &generation)?;
            ids.truncate(most - after.len());
            ids.extend(after);
        }
        cut += whole - ids.len();
        Ok(PromptIds {
            history: self.history(&ids, options.preset),
            text: ids,
            options: Arc::new(generation),
            tokens_cut: cut,
            echo: Some(Arc::new(Echo::new(&text, question))),
        })
    }
}

/// The image `index`.
fn picture<T>(images: &[T], index: usize) -> Result<&T, Error> {
    images.get(index).ok_or_else(|| Error::Request {
        problem: format!("a question about image {index} of {}", images.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
