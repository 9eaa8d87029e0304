//! Texts as a system prepares them before it compares them with images.

use crate::Error;
use crate::task::Preset;
use crate::text::BertTokenizer;

/// What a text is prepared for: LAVIS keeps fewer tokens of a text that is matched than of one that is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextUse {
    /// Pairs of an image and a text.
    Match,
    /// A search.
    Retrieve,
}

impl Preset {
    /// The text as the system cleans it: LAVIS's `BlipCaptionProcessor`, mmpretrain's `CleanCaption`; transformers
    /// leaves it as it is.
    #[must_use]
    pub fn clean_caption(self, text: &str) -> String {
        match self {
            Self::Hf => text.to_owned(),
            Self::Lavis => clean_as_lavis(text),
            Self::Mmpretrain => clean_as_mmpretrain(text),
        }
    }

    /// Tokens that the system keeps of a text, `[CLS]` and `[SEP]` among them.
    fn text_tokens(self, text_use: TextUse) -> usize {
        match (self, text_use) {
            (Self::Hf, _) => usize::MAX,
            (Self::Lavis, TextUse::Match) => 32,
            (Self::Lavis, TextUse::Retrieve) | (Self::Mmpretrain, _) => 35,
        }
    }
}

/// Lower case, punctuation to spaces, runs of white space to one space, the first 50 words.
fn clean_as_lavis(text: &str) -> String {
    let spaced = text
        .to_lowercase()
        .replace(|c| ".!\"()*#:;~".contains(c), " ");
    let words: Vec<&str> = spaced.split_whitespace().take(50).collect();
    words.join(" ")
}

/// ASCII punctuation deleted, runs of white space to one space, lower case.
fn clean_as_mmpretrain(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let words: Vec<&str> = kept.split_whitespace().collect();
    words.join(" ").to_lowercase()
}

/// A text as token ids, `[CLS]` first, and how many it would have without a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prepared {
    pub ids: Vec<u32>,
    pub whole: usize,
}

/// Cleans, tokenises and cuts `text` to what preset and model take (`max_positions`).
pub(super) fn prepare(
    tokenizer: &BertTokenizer,
    text: &str,
    preset: Preset,
    text_use: TextUse,
    max_positions: usize,
) -> Result<Prepared, Error> {
    let mut ids = tokenizer.encode(&preset.clean_caption(text), None)?;
    let whole = ids.len();
    let most = preset.text_tokens(text_use).min(max_positions).max(2);
    if whole > most
        && let Some(&end) = ids.last()
    {
        ids.truncate(most - 1);
        ids.push(end);
    }
    Ok(Prepared { ids, whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_cleaned_as_each_system_does() {
        let text = "  A Dog's  photo: (red)\tball!?\n";
        assert_eq!(Preset::Hf.clean_caption(text), text);
        assert_eq!(
            Preset::Lavis.clean_caption(text),
            "a dog's photo red ball ?"
        );
        assert_eq!(
            Preset::Mmpretrain.clean_caption(text),
            "a dogs photo red ball"
        );
        let long = "word ".repeat(60);
        assert_eq!(Preset::Lavis.clean_caption(&long).split(' ').count(), 50);
        assert_eq!(
            Preset::Mmpretrain.clean_caption(&long).split(' ').count(),
            60
        );
    }
}
