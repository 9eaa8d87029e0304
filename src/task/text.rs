//! Generated texts: what captions and answers have in common.

use crate::Error;
use crate::generate::{Generated, GenerationOptions};
use crate::schedule::Request;
use crate::text::{TextStream, Tokenizer};

use super::{Blip2, Preset};

/// Requests decoded together unless asked otherwise.
const DEFAULT_BATCH: usize = 8;

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

impl Text {
    /// The first of `texts`, or an empty one.
    pub(super) fn best(texts: &[Self]) -> Self {
        texts.first().cloned().unwrap_or(Self {
            text: String::new(),
            tokens: Vec::new(),
            score: 0.0,
        })
    }
}

impl Blip2 {
    /// Encodes `images` once each (`[3, size, size]`) and generates the texts of every request, the best first.
    /// `on_text` gets the pieces of each request's first text as its tokens are chosen (greedy and sampling).
    pub(super) async fn generate_texts(
        &mut self,
        images: &[Vec<f32>],
        requests: &[Request],
        generation: &GenerationOptions,
        on_text: &mut (dyn FnMut(usize, &str) + Send),
    ) -> Result<Vec<Vec<Text>>, Error> {
        let tokenizer = &self.tokenizer;
        let mut streams: Vec<_> = requests
            .iter()
            .map(|_| TextStream::new(tokenizer))
            .collect();
        let generated = self
            .engine
            .generate(
                images,
                requests,
                generation,
                &mut |request, alternative, token| {
                    if alternative == 0
                        && let Some(piece) = streams[request].push(token)
                    {
                        on_text(request, &piece);
                    }
                },
            )
            .await?;
        for (request, stream) in streams.into_iter().enumerate() {
            if let Some(piece) = stream.finish() {
                on_text(request, &piece);
            }
        }
        generated
            .into_iter()
            .map(|texts| decode(tokenizer, texts))
            .collect()
    }

    /// The ids that transformers has before the first new token: an image token a query, then the text.
    pub(super) fn history(&self, prompt: &[u32], preset: Preset) -> Vec<u32> {
        if !preset.counts_prompt() {
            return Vec::new();
        }
        // Revisions without an image token pass embeddings only; an id no token has stands for their places.
        let image_token = self.config.image_token_index.unwrap_or(u32::MAX);
        let image = std::iter::repeat_n(image_token, self.config.num_query_tokens);
        image.chain(prompt.iter().copied()).collect()
    }

    /// Prompt ids, BOS included, that the decoder's positions leave room for beside the image and the new tokens.
    pub(super) fn prompt_room(&self, generation: &GenerationOptions) -> usize {
        let positions = self
            .config
            .language_model()
            .map_or(usize::MAX, |decoder| decoder.max_position_embeddings);
        positions.saturating_sub(
            self.config
                .num_query_tokens
                .saturating_add(generation.max_new_tokens),
        )
    }

    /// Images at a time where `asked` is what the user wants.
    pub(super) fn batch_size(&self, asked: Option<usize>) -> usize {
        let most = self.engine.max_batch();
        asked.unwrap_or(DEFAULT_BATCH).clamp(1, most)
    }
}

fn decode(tokenizer: &Tokenizer, generated: Vec<Generated>) -> Result<Vec<Text>, Error> {
    let text = |generated: Generated| {
        let text = tokenizer.decode(&generated.tokens, true)?;
        Ok(Text {
            text: text.trim().to_owned(),
            tokens: generated.tokens,
            score: generated.score,
        })
    };
    generated.into_iter().map(text).collect()
}
