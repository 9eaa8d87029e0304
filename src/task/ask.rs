//! What can be asked of a generative model.

use std::sync::Arc;

use crate::Error;
use crate::generate::{GenerationOptions, GenerationOverrides};

use super::{Blip2, CaptionOptions, ImageSource, Preset, Text, VqaOptions};

/// One thing to say about an image.
#[derive(Debug, Clone)]
pub struct Item {
    /// The image. Items about the same image share its encoding while it is remembered.
    pub image: ImageSource,
    /// What to say about it.
    pub ask: Ask,
}

/// What to say about an image. Items that share their options share the allocation.
#[derive(Debug, Clone)]
pub enum Ask {
    /// What is on it.
    Caption(Arc<CaptionOptions>),
    /// The answer to a question.
    Question {
        /// The question as it is asked; the preset cleans it.
        question: String,
        /// How to ask and answer.
        options: Arc<VqaOptions>,
    },
}

impl Ask {
    /// Whose defaults it follows.
    pub(super) fn preset(&self) -> Preset {
        match self {
            Self::Caption(options) => options.preset,
            Self::Question { options, .. } => options.preset,
        }
    }

    /// The options of generation that it sets itself.
    fn overrides(&self) -> &GenerationOverrides {
        match self {
            Self::Caption(options) => &options.generation,
            Self::Question { options, .. } => &options.generation,
        }
    }
}

impl Blip2 {
    /// Checks what is asked without running anything, so that a program can fail before it reads a thousand
    /// images. Gives the options of generation that it sets though they change nothing, by their names in
    /// `generation_config.json`: those of drawing where nothing is drawn, those of beams where there are none.
    ///
    /// # Errors
    /// Options that do not go together, or a prompt too long for the model.
    pub fn check(&self, ask: &Ask) -> Result<Vec<&'static str>, Error> {
        let (door, prompt) = (&self.handle.door, self.prompter().prompt(ask)?);
        let options: &GenerationOptions = &prompt.options;
        if let Ask::Caption(_) = ask {
            door.limits().check_length(prompt.text.len(), options)?;
        }
        Ok(options.without_effect(ask.overrides()))
    }

    /// Whether the text of what is asked can be shown as it comes: beams choose it at the end.
    ///
    /// # Errors
    /// As [`Blip2::check`].
    pub fn comes_in_pieces(&self, ask: &Ask) -> Result<bool, Error> {
        Ok(self.prompter().prompt(ask)?.options.num_beams == 1)
    }
}

/// What is said of an item.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Texts {
    /// Its texts, best first; at least one of an item that is done.
    pub texts: Vec<Text>,
    /// Tokens that the prompt lost to fit what the model or the preset takes: 0 where it was given whole.
    pub prompt_tokens_cut: usize,
}
