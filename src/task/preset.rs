//! The three reference systems' own ways of asking BLIP-2 for captions and answers (each from its own source).

use crate::generate::GenerationOptions;
use crate::image::DecodePolicy;
use crate::text::PromptMark;

/// A reference system whose defaults to follow. Explicit options win over a preset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Preset {
    /// transformers: the checkpoint's generation config; captions without prompt, "Question: {} Answer:"
    #[default]
    Hf,
    /// LAVIS: 5 beams, 30 tokens, "a photo of" for the fine-tuned models; "Question: {} Short answer:", 10 tokens
    Lavis,
    /// mmpretrain: 5 beams, 30 tokens, "a photo of", 364 pixels; "Question: {} Answer:", 10 tokens, 224 pixels
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

    /// The system's caption prompt.
    pub(super) fn caption_prompt(self, stored_image_size: usize) -> &'static str {
        match self {
            Self::Hf => "",
            Self::Lavis if stored_image_size != FINE_TUNED_IMAGE_SIZE => "",
            Self::Lavis | Self::Mmpretrain => "a photo of",
        }
    }

    /// Tokens of a caption's prompt that the system keeps. LAVIS cuts no prompt for T5 (and mmpretrain has no T5).
    pub(super) fn caption_prompt_tokens(self, mark: PromptMark) -> usize {
        match (self, mark) {
            (Self::Lavis, PromptMark::First(_)) => 32,
            (Self::Mmpretrain, PromptMark::First(_)) => 30,
            _ => usize::MAX,
        }
    }

    /// The checkpoint's options as the system changes them; `newline` is the token that ends the texts of OPT, T5 has
    /// none.
    pub(super) fn caption_options(
        self,
        checkpoint: GenerationOptions,
        newline: Option<u32>,
    ) -> GenerationOptions {
        self.beam_search(checkpoint, newline, 30, 1.0)
    }

    /// The image size the system answers at, where it is not the checkpoint's.
    ///
    /// mmpretrain builds the model for 364 pixels and feeds it 224, so that its positions are interpolated up and down
    /// again; here the checkpoint's own positions for 224 pixels are taken.
    #[must_use]
    pub fn vqa_image_size(self) -> Option<u32> {
        (self == Self::Mmpretrain).then_some(224)
    }

    /// The system's prompt for a question, which takes the place of `{}`.
    #[must_use]
    pub fn vqa_prompt(self) -> &'static str {
        match self {
            Self::Hf | Self::Mmpretrain => "Question: {} Answer:",
            Self::Lavis => "Question: {} Short answer:",
        }
    }

    /// Tokens of a question's prompt, the first token included, that the system keeps: LAVIS cuts the end off for OPT.
    pub(super) fn vqa_prompt_tokens(self, mark: PromptMark) -> usize {
        match (self, mark) {
            (Self::Lavis, PromptMark::First(_)) => 32,
            _ => usize::MAX,
        }
    }

    /// Words of a question that the system keeps.
    pub(super) fn question_words(self) -> usize {
        match self {
            Self::Lavis => 50,
            Self::Hf | Self::Mmpretrain => usize::MAX,
        }
    }

    /// A question as the system writes it into its prompt, not yet cut to its number of words.
    pub(super) fn clean_question(self, question: &str) -> String {
        match self {
            Self::Hf => question.to_owned(),
            Self::Lavis => clean_as_lavis(question),
            Self::Mmpretrain => clean_as_mmpretrain(question),
        }
    }

    /// As [`Preset::caption_options`], for answers.
    pub(super) fn vqa_options(
        self,
        checkpoint: GenerationOptions,
        newline: Option<u32>,
    ) -> GenerationOptions {
        // LAVIS asks OPT for sums, T5 for what mmpretrain asks for too.
        let sums = self == Self::Lavis && newline.is_some();
        let length_penalty = if sums { 0.0 } else { -1.0 };
        self.beam_search(checkpoint, newline, 10, length_penalty)
    }

    /// What LAVIS and mmpretrain hand to `generate`; transformers leaves the checkpoint's options as they are.
    fn beam_search(
        self,
        checkpoint: GenerationOptions,
        newline: Option<u32>,
        max_new_tokens: usize,
        length_penalty: f64,
    ) -> GenerationOptions {
        if self == Self::Hf {
            return checkpoint;
        }
        // min_length 1 forbids to end at once, but for T5, whose start token counts.
        let min_new_tokens = usize::from(newline.is_some());
        let eos_token_ids = newline.map_or_else(|| checkpoint.eos_token_ids.clone(), |id| vec![id]);
        // Both systems pass every option themselves: of the checkpoint only its special tokens count.
        GenerationOptions {
            max_new_tokens,
            min_new_tokens,
            num_beams: 5,
            length_penalty,
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

/// LAVIS's `BlipQuestionProcessor`: lower case, some punctuation deleted (the question mark stays), no spaces at the end.
fn clean_as_lavis(question: &str) -> String {
    let lower = question.to_lowercase();
    let kept: String = lower
        .chars()
        .filter(|c| !".!\"()*#:;~".contains(*c))
        .collect();
    kept.trim_end_matches(' ').to_owned()
}

/// mmpretrain's `CleanCaption`: all ASCII punctuation deleted, runs of white space collapsed, lower case. White space
/// is trimmed before the punctuation goes: "what ?" keeps its space.
fn clean_as_mmpretrain(question: &str) -> String {
    let mut cleaned = String::with_capacity(question.len());
    let mut characters = question
        .trim()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .peekable();
    while let Some(character) = characters.next() {
        if !character.is_whitespace() {
            cleaned.push(character);
        } else if characters.next_if(|c| c.is_whitespace()).is_some() {
            while characters.next_if(|c| c.is_whitespace()).is_some() {}
            cleaned.push(' ');
        } else {
            // A single tab or line break stays what it is.
            cleaned.push(character);
        }
    }
    cleaned.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lavis_questions() {
        for (question, cleaned) in [
            ("What is this?", "what is this?"),
            ("  What's  it?  ", "  what's  it?"),
            ("A.B!C\"D(E)F*G#H:I;J~K", "abcdefghijk"),
            (
                "is it red, or blue-green? [yes/no]",
                "is it red, or blue-green? [yes/no]",
            ),
            ("Stop .", "stop"),
            ("tab at the end\t", "tab at the end\t"),
            ("ÄRGER 🐱", "ärger 🐱"),
            ("...", ""),
        ] {
            assert_eq!(
                Preset::Lavis.clean_question(question),
                cleaned,
                "{question:?}"
            );
        }
    }

    #[test]
    fn mmpretrain_questions() {
        for (question, cleaned) in [
            ("What is this?", "what is this"),
            ("  What's  it?  ", "whats it"),
            ("what ?", "what "),
            ("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", ""),
            ("a - b", "a b"),
            (
                "one\ttab, two\t\ttabs\n\nbreaks",
                "one\ttab two tabs breaks",
            ),
            ("Straße – «ja»?", "straße – «ja»"),
        ] {
            assert_eq!(
                Preset::Mmpretrain.clean_question(question),
                cleaned,
                "{question:?}"
            );
        }
    }

    #[test]
    fn transformers_takes_questions_as_they_are() {
        let question = "  What's this?! \n";
        assert_eq!(Preset::Hf.clean_question(question), question);
    }

    #[test]
    fn answers_are_searched_as_the_systems_do() {
        let checkpoint = GenerationOptions {
            max_new_tokens: 40,
            num_beams: 3,
            eos_token_ids: vec![2],
            pad_token_id: Some(1),
            ..GenerationOptions::default()
        };
        let hf = Preset::Hf.vqa_options(checkpoint.clone(), Some(50118));
        assert_eq!(hf, checkpoint);
        for (preset, length_penalty) in [(Preset::Lavis, 0.0), (Preset::Mmpretrain, -1.0)] {
            let expected = GenerationOptions {
                max_new_tokens: 10,
                min_new_tokens: 1,
                num_beams: 5,
                length_penalty,
                eos_token_ids: vec![50118],
                pad_token_id: Some(1),
                ..GenerationOptions::default()
            };
            let options = preset.vqa_options(checkpoint.clone(), Some(50118));
            assert_eq!(options, expected, "{preset:?}");
        }
        let t5 = Preset::Lavis.vqa_options(checkpoint.clone(), None);
        assert_eq!((t5.min_new_tokens, t5.length_penalty), (0, -1.0));
        assert_eq!(t5.eos_token_ids, [2]);
        let captions = Preset::Lavis.caption_options(checkpoint, Some(50118));
        assert_eq!(
            (captions.max_new_tokens, captions.length_penalty),
            (30, 1.0)
        );
    }
}
