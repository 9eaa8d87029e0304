//! What is asked of the engine, and what it answers.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

use twox_hash::XxHash3_128;

use crate::Error;
use crate::generate::{Generated, GenerationOptions};

use super::timings::RequestTimings;

/// An image, preprocessed: `[3, size, size]`.
pub type Pixels = Arc<Vec<f32>>;

/// What an encoded image is known by: as long as it is kept, it is encoded once, whoever asks about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageKey {
    /// Hash of the image.
    content: u128,
    /// Hash of the ids that the Q-Former reads beside the image; 0 where it reads none.
    instruction: u128,
}

impl ImageKey {
    /// The key of an image that `parts` together tell from any other: its pixels, or a file's bytes and how they are
    /// read.
    ///
    /// The hash (XXH3, 128 bits) is started anew in each process from a random number: nobody can prepare two images
    /// that are taken for each other.
    #[must_use]
    pub fn of_content(parts: &[&[u8]]) -> Self {
        Self {
            content: hash(parts),
            instruction: 0,
        }
    }

    /// The key of the same image where the Q-Former reads the ids `instruction` beside it.
    #[must_use]
    pub fn with_instruction(self, instruction: &[u32]) -> Self {
        Self {
            instruction: hash(&[bytemuck::cast_slice(instruction)]),
            ..self
        }
    }
}

fn hash(parts: &[&[u8]]) -> u128 {
    static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().build_hasher().finish());
    let mut hasher = XxHash3_128::with_seed(*SEED);
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    hasher.finish_128()
}

/// An image that is prepared.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it is known by.
    pub key: ImageKey,
    /// Its values.
    pub pixels: Pixels,
}

impl From<Pixels> for Image {
    /// Known by its values.
    fn from(pixels: Pixels) -> Self {
        let key = ImageKey::of_content(&[bytemuck::cast_slice(&pixels)]);
        Self { key, pixels }
    }
}

/// A text to generate about an image.
#[derive(Debug, Clone)]
pub struct Request {
    /// Prompt ids, with the special token that they begin (OPT) or end (T5) with.
    pub text: Vec<u32>,
    /// Ids that the score processors count as already said.
    pub history: Vec<u32>,
    /// How to choose tokens.
    pub options: Arc<GenerationOptions>,
    /// What ends a text beside its end tokens and its length.
    pub stop: Option<StopRule>,
}

/// Says of the tokens of a text, after each of them, whether it has come to its end.
#[derive(Clone)]
pub struct StopRule(pub Arc<EndsText>);

type EndsText = dyn Fn(&[u32]) -> bool + Send + Sync;

impl fmt::Debug for StopRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopRule").finish_non_exhaustive()
    }
}

/// Number of a request, in the order in which they came.
pub(super) type RequestId = u64;

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Event {
    /// A token was chosen, by greedy search or a draw (a beam search knows its texts only at the end).
    Token {
        /// Number of the text, where several are drawn.
        text: usize,
        /// The token.
        token: u32,
    },
    /// It is finished.
    Done {
        /// Its texts, best first.
        texts: Vec<Generated>,
        /// How long it took.
        timings: RequestTimings,
    },
    /// It cannot be finished; others may.
    Failed {
        /// Why: the same allocation for all requests that the same thing has befallen.
        error: Arc<Error>,
    },
}

/// What turns of the queue bring.
pub(super) type Events = Vec<(RequestId, Event)>;

/// What of a model decides whether a request can be served at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestLimits {
    /// Most positions of a sequence.
    pub positions: usize,
    /// Positions that are taken beside the text: the image's, and the token that a decoder begins with.
    pub taken: usize,
    pub vocabulary: usize,
    /// Values of an image.
    pub pixels: usize,
    /// Bytes of a cache row in one layer's keys.
    pub cache_row_bytes: u64,
    /// Largest buffer that a kernel can read.
    pub max_binding_bytes: u64,
}

/// Sequences that a request decodes side by side.
pub(super) fn sequences_of(options: &GenerationOptions) -> usize {
    if options.num_beams > 1 {
        options.num_beams
    } else {
        options.num_return_sequences
    }
}

/// Physical cache rows of a request: its prompt once, then a row a step for each of its sequences.
pub(super) fn cache_rows_of(prompt: usize, options: &GenerationOptions) -> usize {
    prompt.saturating_add(options.max_new_tokens.saturating_mul(sequences_of(options)))
}

impl RequestLimits {
    /// Positions of a prompt whose text has so many ids.
    pub(super) fn prompt_length(&self, text: usize) -> usize {
        self.taken.saturating_add(text)
    }

    /// Whether image, prompt and new tokens fit the language model's positions.
    ///
    /// # Errors
    /// [`Error::TooLong`]
    pub(crate) fn check_length(
        &self,
        text: usize,
        options: &GenerationOptions,
    ) -> Result<(), Error> {
        let prompt = self.prompt_length(text);
        let needed = prompt.saturating_add(options.max_new_tokens);
        if needed > self.positions {
            return Err(Error::TooLong {
                needed,
                prompt,
                new: options.max_new_tokens,
                most: self.positions,
            });
        }
        Ok(())
    }

    /// Whether `request` is one that the device can be trusted with, and can be served if nothing else is.
    pub(super) fn check(&self, request: &Request) -> Result<(), Error> {
        let Request {
            text,
            history,
            options,
            ..
        } = request;
        options.validate()?;
        self.check_length(text.len(), options)?;
        let prompt = self.prompt_length(text.len());
        let unknown = text.iter().find(|&&id| id as usize >= self.vocabulary);
        if let Some(id) = unknown {
            let problem = format!("token {id} of a vocabulary of {}", self.vocabulary);
            return Err(Error::Request { problem });
        }
        if text.is_empty() || history.len() > prompt {
            let (history, text) = (history.len(), text.len());
            let problem = format!("{history} history ids for {text} prompt ids");
            return Err(Error::Request { problem });
        }
        self.check_size(prompt, options)
    }

    /// Whether the largest buffers of the request alone fit the device.
    fn check_size(&self, prompt: usize, options: &GenerationOptions) -> Result<(), Error> {
        let logits = sequences_of(options) as u64 * self.vocabulary as u64 * 4;
        let rows = cache_rows_of(prompt, options).next_multiple_of(CACHE_STEP);
        let cache = (rows as u64).saturating_mul(self.cache_row_bytes);
        let limit = self.max_binding_bytes;
        let (what, bytes, remedy) = if logits > limit {
            ("scores", logits, "`num_beams` or `num_return_sequences`")
        } else if cache > limit {
            let remedy = "`max_new_tokens`, `num_beams` or `num_return_sequences`";
            ("keys and values", cache, remedy)
        } else {
            return Ok(());
        };
        Err(Error::TooLarge {
            what,
            bytes,
            limit,
            remedy,
        })
    }

    /// Whether `image` is as large as the model takes it.
    pub(super) fn check_image(&self, image: &Image) -> Result<(), Error> {
        let (given, pixels) = (image.pixels.len(), self.pixels);
        if given == pixels {
            return Ok(());
        }
        let problem = format!("an image has {given} values, the model takes {pixels}");
        Err(Error::Request { problem })
    }
}

/// Rows of the cache are made in multiples of this.
pub(super) const CACHE_STEP: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_that_of_content_and_instruction() {
        let key = |parts: &[&[u8]]| ImageKey::of_content(parts);
        assert_eq!(key(&[b"ab", b"c"]), key(&[b"ab", b"c"]));
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_ne!(key(&[b"ab"]), key(&[b"ac"]));
        assert_ne!(key(&[]), key(&[b""]));
        let plain = key(&[b"ab"]);
        assert_eq!(
            plain.with_instruction(&[1, 2]),
            plain.with_instruction(&[1, 2])
        );
        assert_ne!(
            plain.with_instruction(&[1, 2]),
            plain.with_instruction(&[2, 1])
        );
        assert_ne!(plain.with_instruction(&[]), plain);
        // Every bit counts, wherever it is.
        let bytes: Vec<u8> = (0..=255).collect();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x80;
            assert_ne!(key(&[&changed]), key(&[&bytes]), "byte {at}");
        }
    }
}
