//! The three reference systems' own ways of asking BLIP-2 for a caption (each from its own source).

use crate::generate::GenerationOptions;
use crate::image::DecodePolicy;

/// A reference system whose defaults to follow. Explicit options win over a preset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Preset {
    /// transformers: the checkpoint's generation config, empty prompt
    #[default]
    Hf,
    /// LAVIS: 5 beams, 30 tokens, "a photo of" for the fine-tuned models
    Lavis,
    /// mmpretrain: 5 beams, 30 tokens, "a photo of", 364 pixels
    Mmpretrain,
}

/// LAVIS's COCO-tuned checkpoints, the ones it prompts, are those of this image size.
const FINE_TUNED_IMAGE_SIZE: usize = 364;

impl Preset {
    /// How the system opens image files.
    #[must_use]
    pub fn decode_policy(self) -> DecodePolicy {
        match self {
            Self::Hf => DecodePolicy::hf(),
            Self::Lavis => DecodePolicy::lavis(),
            Self::Mmpretrain => DecodePolicy::mmpretrain(),
        }
    }

    /// The image size the system captions at, where it is not the checkpoint's.
    #[must_use]
    pub fn caption_image_size(self) -> Option<u32> {
        (self == Self::Mmpretrain).then_some(364)
    }

    /// The system's caption prompt, and how many of its tokens are kept.
    pub(super) fn caption_prompt(self, stored_image_size: usize) -> (&'static str, usize) {
        match self {
            Self::Hf => ("", usize::MAX),
            Self::Lavis if stored_image_size == FINE_TUNED_IMAGE_SIZE => ("a photo of", 32),
            Self::Lavis => ("", 32),
            Self::Mmpretrain => ("a photo of", 30),
        }
    }

    /// The checkpoint's options as the system changes them; `newline` is the token that ends its texts.
    pub(super) fn caption_options(
        self,
        checkpoint: GenerationOptions,
        newline: Option<u32>,
    ) -> GenerationOptions {
        if self == Self::Hf {
            return checkpoint;
        }
        let eos_token_ids = newline.map_or_else(|| checkpoint.eos_token_ids.clone(), |id| vec![id]);
        // Both systems pass every option themselves: of the checkpoint only its special tokens count.
        GenerationOptions {
            max_new_tokens: 30,
            min_new_tokens: 1,
            num_beams: 5,
            eos_token_ids,
            pad_token_id: checkpoint.pad_token_id,
            bos_token_id: checkpoint.bos_token_id,
            ..GenerationOptions::default()
        }
    }

    /// Whether score processors count the prompt as said: only transformers hands it over as ids.
    pub(super) fn counts_prompt(self) -> bool {
        self == Self::Hf
    }
}
