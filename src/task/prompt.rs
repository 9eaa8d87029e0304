//! From what is asked to token ids, and from generated ids to text.

use std::sync::Arc;

use crate::Error;
use crate::generate::{Generated, GenerationOptions};
use crate::model::Blip2Config;
use crate::text::Tokenizer;

use super::caption::CaptionOptions;
use super::question::Echo;
use super::{Preset, Text};

/// What of a request does not depend on its image.
#[derive(Debug, Clone)]
pub(super) struct PromptIds {
    /// Ids, with the special token that they begin (OPT) or end (T5) with.
    pub text: Vec<u32>,
    /// Ids that the score processors count as already said.
    pub history: Vec<u32>,
    pub options: Arc<GenerationOptions>,
    /// Tokens that the prompt lost to fit what the model or the preset takes.
    pub tokens_cut: usize,
    /// What the model may repeat before it answers.
    pub echo: Option<Arc<Echo>>,
}

/// What turns questions into ids: the parts of a model that are not on the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prompter<'a> {
    pub config: &'a Blip2Config,
    pub tokenizer: &'a Tokenizer,
    /// The checkpoint's.
    pub generation: &'a GenerationOptions,
}

impl Prompter<'_> {
    /// The prompt of a caption.
    pub(super) fn caption(&self, options: &CaptionOptions) -> Result<PromptIds, Error> {
        let generation = options.generation(self.generation, self.tokenizer)?;
        let preset = options.preset;
        let default = preset.caption_prompt(self.config.vision.image_size);
        let prompt = options.prompt.as_deref().unwrap_or(default);
        let mut text = self.tokenizer.encode(prompt)?;
        text.truncate(preset.caption_prompt_tokens(self.tokenizer.mark()));
        Ok(PromptIds {
            history: self.history(&text, options.preset),
            text,
            options: Arc::new(generation),
            tokens_cut: 0,
            echo: None,
        })
    }

    /// The ids that the systems have before the first new token: transformers an image token a query, then the text.
    /// Behind an encoder it is the decoder's first token in all of them.
    pub(super) fn history(&self, prompt: &[u32], preset: Preset) -> Vec<u32> {
        if let Some(start) = self.decoder_start() {
            return vec![start];
        }
        if !preset.counts_prompt() {
            return Vec::new();
        }
        // Revisions without an image token pass embeddings only; an id no token has stands for their places.
        let image_token = self.config.image_token_index.unwrap_or(u32::MAX);
        let image = std::iter::repeat_n(image_token, self.config.num_query_tokens);
        image.chain(prompt.iter().copied()).collect()
    }

    /// Prompt ids that the language model's positions leave room for beside the image and the new tokens.
    pub(super) fn prompt_room(&self, generation: &GenerationOptions) -> usize {
        let taken = self.taken();
        self.positions()
            .saturating_sub(taken.saturating_add(generation.max_new_tokens))
    }

    /// Whether a prompt of `text` ids fits the language model's positions.
    pub(super) fn check_length(
        &self,
        text: usize,
        generation: &GenerationOptions,
    ) -> Result<(), Error> {
        let prompt = self.taken() + text;
        let (new, most) = (generation.max_new_tokens, self.positions());
        let needed = prompt.saturating_add(new);
        if needed > most {
            return Err(Error::TooLong {
                needed,
                prompt,
                new,
                most,
            });
        }
        Ok(())
    }

    /// Most positions of a sequence.
    fn positions(&self) -> usize {
        let language = self.config.language_model();
        language.map_or(usize::MAX, |language| language.max_positions())
    }

    /// Positions that the image takes, and the decoder's first token where it has one.
    fn taken(&self) -> usize {
        self.config.num_query_tokens + usize::from(self.decoder_start().is_some())
    }

    fn decoder_start(&self) -> Option<u32> {
        self.config.language_model()?.decoder_start_token_id()
    }

    /// A generated text.
    pub(super) fn text(&self, generated: Generated) -> Result<Text, Error> {
        let text = self.tokenizer.decode(&generated.tokens, true)?;
        Ok(Text {
            text: text.trim().to_owned(),
            tokens: generated.tokens,
            score: generated.score,
        })
    }
}
