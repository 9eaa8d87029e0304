//! From what is asked to token ids, and from generated ids to text.

use std::sync::Arc;

use crate::Error;
use crate::generate::{Generated, GenerationOptions};
use crate::model::Blip2Config;
use crate::text::Tokenizer;

use super::Preset;
use super::caption::{CaptionOptions, Text};
use super::run::PromptIds;

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
        let (default, most) = options.preset.caption_prompt(self.config.vision.image_size);
        let prompt = options.prompt.as_deref().unwrap_or(default);
        let mut text = self.tokenizer.encode(prompt)?;
        text.truncate(most);
        Ok(PromptIds {
            history: self.history(&text, options.preset),
            text,
            options: Arc::new(generation),
        })
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
