//! Captions.

use std::path::Path;

use crate::Error;
use crate::generate::{Generated, GenerationOptions, GenerationOverrides};
use crate::image::Rgb8Image;
use crate::schedule::Request;
use crate::text::{TextStream, Tokenizer};

use super::source::Source;
use super::{Blip2, Preset};

/// Images encoded and decoded together unless asked otherwise.
const DEFAULT_BATCH: usize = 8;

/// How to caption.
#[derive(Debug, Clone, Default)]
pub struct CaptionOptions {
    /// Text that the caption continues; `None` is the preset's.
    pub prompt: Option<String>,
    /// Whose defaults to follow.
    pub preset: Preset,
    /// Options that win over preset and checkpoint.
    pub generation: GenerationOverrides,
    /// Images at a time; `None` chooses.
    pub batch_size: Option<usize>,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// The text, special tokens and surrounding space removed, the prompt not included.
    pub text: String,
    /// Generated token ids, the end token included.
    pub tokens: Vec<u32>,
    /// Sum of log-probabilities; for beams divided by `length ^ length_penalty`. Where tokens are banned or penalised
    /// it is by the scores after that (transformers' `compute_transition_scores` and `sequences_scores`).
    pub score: f32,
}

/// An image's caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Caption {
    /// The best text, as in [`Text::text`].
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Its score.
    pub score: f32,
    /// All texts asked for, the best first.
    pub alternatives: Vec<Text>,
}

impl CaptionOptions {
    /// Preset and checkpoint under the options given.
    fn generation(
        &self,
        checkpoint: &GenerationOptions,
        tokenizer: &Tokenizer,
    ) -> Result<GenerationOptions, Error> {
        let generation = self
            .preset
            .caption_options(checkpoint.clone(), tokenizer.newline())
            .overlay(&self.generation);
        generation.validate()?;
        Ok(generation)
    }
}

/// Checks `options` against the checkpoint folder `path` without loading it, which may take a while.
///
/// # Errors
/// Options that do not go together or with the checkpoint; a file of it that is missing or damaged.
pub fn check_caption_options(
    path: impl AsRef<Path>,
    options: &CaptionOptions,
) -> Result<(), Error> {
    let source = Source::open(path.as_ref(), None)?;
    options.generation(&source.generation, &source.tokenizer)?;
    Ok(())
}

impl Blip2 {
    /// Captions `images`, in order.
    ///
    /// # Errors
    /// Options that do not go together, a prompt too long for the model, or a failing device.
    pub async fn caption(
        &mut self,
        images: &[Rgb8Image],
        options: &CaptionOptions,
    ) -> Result<Vec<Caption>, Error> {
        self.caption_streaming(images, options, &mut |_, _| {})
            .await
    }

    /// [`Blip2::caption`] that hands over the pieces of each image's first text as its tokens are chosen (greedy and
    /// sampling; a beam search knows its text only at the end and hands over nothing).
    ///
    /// # Errors
    /// As [`Blip2::caption`].
    pub async fn caption_streaming(
        &mut self,
        images: &[Rgb8Image],
        options: &CaptionOptions,
        on_text: &mut (dyn FnMut(usize, &str) + Send),
    ) -> Result<Vec<Caption>, Error> {
        let generation = self.caption_generation(options)?;
        let prompt = self.caption_prompt(options)?;
        let batch_size = self.caption_batch_size(options);
        let mut captions = Vec::with_capacity(images.len());
        for (batch, images) in images.chunks(batch_size).enumerate() {
            let pixels = images
                .iter()
                .map(|image| self.preprocessor.apply(image))
                .collect::<Result<Vec<_>, _>>()?;
            let requests: Vec<Request> = (0..images.len())
                .map(|image| Request {
                    image,
                    text: prompt.clone(),
                    history: self.history(&prompt, options.preset),
                })
                .collect();
            let tokenizer = &self.tokenizer;
            let mut streams: Vec<_> = images.iter().map(|_| TextStream::new(tokenizer)).collect();
            let generated = self
                .engine
                .generate(
                    &pixels,
                    &requests,
                    &generation,
                    &mut |job, alternative, token| {
                        if alternative == 0
                            && let Some(piece) = streams[job].push(token)
                        {
                            on_text(batch * batch_size + job, &piece);
                        }
                    },
                )
                .await?;
            for (image, stream) in streams.into_iter().enumerate() {
                if let Some(piece) = stream.finish() {
                    on_text(batch * batch_size + image, &piece);
                }
            }
            for texts in generated {
                captions.push(self.finish_caption(texts)?);
            }
        }
        Ok(captions)
    }

    /// Checks `options` without running anything, so that a program can fail before it reads a thousand images.
    ///
    /// # Errors
    /// Options that do not go together, or a prompt too long for the model.
    pub fn check_caption_options(&self, options: &CaptionOptions) -> Result<(), Error> {
        let generation = self.caption_generation(options)?;
        let prompt = self.caption_prompt(options)?;
        self.engine.check_length(prompt.len(), &generation)
    }

    /// Images captioned at a time under `options`.
    #[must_use]
    pub fn caption_batch_size(&self, options: &CaptionOptions) -> usize {
        let most = self.engine.max_batch();
        options.batch_size.unwrap_or(DEFAULT_BATCH).clamp(1, most)
    }

    fn caption_generation(&self, options: &CaptionOptions) -> Result<GenerationOptions, Error> {
        options.generation(&self.generation, &self.tokenizer)
    }

    /// Token ids of the prompt that captions continue under `options`, BOS included.
    ///
    /// # Errors
    /// A prompt that the tokenizer cannot read.
    pub fn caption_prompt(&self, options: &CaptionOptions) -> Result<Vec<u32>, Error> {
        let (default, most) = options.preset.caption_prompt(self.stored_image_size());
        let mut ids = self
            .tokenizer
            .encode(options.prompt.as_deref().unwrap_or(default))?;
        ids.truncate(most);
        Ok(ids)
    }

    /// The ids that transformers has before the first new token: an image token a query, then the text.
    fn history(&self, prompt: &[u32], preset: Preset) -> Vec<u32> {
        if !preset.counts_prompt() {
            return Vec::new();
        }
        // Revisions without an image token pass embeddings only; an id no token has stands for their places.
        let image_token = self.config.image_token_index.unwrap_or(u32::MAX);
        let image = std::iter::repeat_n(image_token, self.config.num_query_tokens);
        image.chain(prompt.iter().copied()).collect()
    }

    fn finish_caption(&self, generated: Vec<Generated>) -> Result<Caption, Error> {
        let alternatives = generated
            .into_iter()
            .map(|generated| {
                Ok(Text {
                    text: self
                        .tokenizer
                        .decode(&generated.tokens, true)?
                        .trim()
                        .to_owned(),
                    tokens: generated.tokens,
                    score: generated.score,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let best = alternatives.first().cloned().unwrap_or(Text {
            text: String::new(),
            tokens: Vec::new(),
            score: 0.0,
        });
        Ok(Caption {
            text: best.text,
            tokens: best.tokens,
            score: best.score,
            alternatives,
        })
    }
}
