//! From what is asked to token ids, and from generated ids to text.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;
use crate::generate::{Generated, GenerationOptions};
use crate::model::Blip2Config;
use crate::schedule::{Request, StopRule};
use crate::text::{StopStrings, Tokenizer};

use super::caption::CaptionOptions;
use super::question::Echo;
use super::{Ask, Preset, Text};

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

/// What turns questions into ids, and ids into text: the parts of a model that are not on the device.
#[derive(Debug)]
pub(super) struct Prompter {
    pub config: Blip2Config,
    pub tokenizer: Arc<Tokenizer>,
    /// The checkpoint's.
    pub generation: GenerationOptions,
    /// The last caption's, which most often is the next one's too.
    last: Mutex<Option<(Arc<CaptionOptions>, PromptIds)>>,
}

impl Prompter {
    pub(super) fn new(
        config: Blip2Config,
        tokenizer: Tokenizer,
        generation: GenerationOptions,
    ) -> Self {
        Self {
            config,
            tokenizer: Arc::new(tokenizer),
            generation,
            last: Mutex::default(),
        }
    }

    /// The prompt for `ask`.
    pub(super) fn prompt(&self, ask: &Ask) -> Result<PromptIds, Error> {
        let options = match ask {
            Ask::Caption(options) => options,
            Ask::Question { question, options } => return self.question(question, options),
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((asked, prompt)) = &*last
            && Arc::ptr_eq(asked, options)
        {
            return Ok(prompt.clone());
        }
        let prompt = self.caption(options)?;
        *last = Some((Arc::clone(options), prompt.clone()));
        Ok(prompt)
    }

    /// What is asked of the engine for `prompt`.
    pub(super) fn request(&self, prompt: &PromptIds) -> Request {
        let stop = (!prompt.options.stop.is_empty()).then(|| {
            let tokenizer = Arc::clone(&self.tokenizer);
            let stop = StopStrings::new(&prompt.options.stop);
            let ends = move |tokens: &[u32]| {
                let text = tokenizer.decode(tokens, true);
                text.is_ok_and(|text| stop.cut(&text).is_some())
            };
            StopRule(Arc::new(ends))
        });
        Request {
            text: prompt.text.clone(),
            history: prompt.history.clone(),
            options: Arc::clone(&prompt.options),
            stop,
        }
    }

    /// The prompt of a caption.
    pub(super) fn caption(&self, options: &CaptionOptions) -> Result<PromptIds, Error> {
        let generation = options.generation(&self.generation, &self.tokenizer)?;
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

    /// A text that was generated for `prompt`.
    pub(super) fn text(&self, generated: Generated, prompt: &PromptIds) -> Result<Text, Error> {
        let text = self.tokenizer.decode(&generated.tokens, true)?;
        let text = StopStrings::new(&prompt.options.stop)
            .cut(&text)
            .unwrap_or(&text)
            .trim();
        let text = match &prompt.echo {
            Some(echo) => echo.strip(text),
            None => text,
        };
        Ok(Text {
            text: text.to_owned(),
            tokens: generated.tokens,
            score: generated.score,
            finish: generated.finish,
        })
    }
}
