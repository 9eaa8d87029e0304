//! Where the model looks: attention mapped back onto the image.

use crate::Error;
use crate::image::Rgb8Image;
use crate::schedule::AttentionReader;
use crate::text::Tokenizer;

use super::{Ask, Blip2};

/// Token ids of a text that the model wrote.
#[derive(Debug, Clone, Copy)]
pub struct WrittenText<'a> {
    /// The prompt's ids, BOS included.
    pub prompt: &'a [u32],
    /// The generated ids, the end token included or not.
    pub generated: &'a [u32],
}

/// Attention over one image, and from the words of texts about it.
///
/// Attention shows what a layer reads from, averaged here over layers and heads; it does not prove that what it reads
/// made the answer what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// Patches across, and as many down. The preprocessor squashes an image to a square: patch `(x, y)` is that part
    /// of the width and that part of the height of the image, whatever its shape.
    pub grid: usize,
    /// For each query, the share of its attention that each patch gets, rows from the top: `[queries][grid²]`. The mean
    /// over the Q-Former's cross-attention layers and their heads. What is missing to 1 goes to the class token, which
    /// has no place in the image.
    pub queries: Vec<Vec<f32>>,
    /// The words of each text; none of a retrieval model, whose queries read a text beside the image.
    pub texts: Vec<Vec<ExplainedWord>>,
}

/// A word of a generated text with what the decoder looked at when it chose it.
#[derive(Debug, Clone, PartialEq)]
pub struct ExplainedWord {
    /// The word, punctuation included.
    pub text: String,
    /// Which of the generated tokens count for it: its own, those that are mere punctuation left out where there are
    /// others.
    pub tokens: Vec<usize>,
    /// The share of the decoder's attention that each query's position gets, `[queries]`, in the rows that predicted
    /// those tokens: the mean over layers, heads and tokens. What is missing to 1 goes to the text before it.
    pub queries: Vec<f32>,
    /// The same followed through the queries to the patches, `[grid²]`: `Σ queries[q] · Explanation::queries[q]`.
    pub patches: Vec<f32>,
}

impl Explanation {
    /// From the cross-attention of a Q-Former's queries to the image tokens, `[queries, 1 + grid²]` with the class
    /// token first, and the attention of each word to the queries.
    pub(super) fn new(cross_attention: &[f32], image_tokens: usize) -> Self {
        Self {
            grid: (image_tokens - 1).isqrt(),
            queries: cross_attention
                .chunks(image_tokens)
                .map(|tokens| tokens[1..].to_vec())
                .collect(),
            texts: Vec::new(),
        }
    }

    /// Where the queries look together: their mean, `[grid²]`.
    #[must_use]
    pub fn mean(&self) -> Vec<f32> {
        let even = vec![1.0 / self.queries.len() as f32; self.queries.len()];
        self.through_queries(&even)
    }

    /// `Σ weights[q] · queries[q]`, `[grid²]`
    fn through_queries(&self, weights: &[f32]) -> Vec<f32> {
        let mut patches = vec![0.0; self.grid * self.grid];
        for (weight, query) in weights.iter().zip(&self.queries) {
            for (patch, share) in patches.iter_mut().zip(query) {
                *patch += weight * share;
            }
        }
        patches
    }

    /// Adds a text's words, `attention` being that of each generated token's predicting row to the queries,
    /// `[tokens, queries]`.
    fn add_text(
        &mut self,
        tokenizer: &Tokenizer,
        generated: &[u32],
        attention: &[f32],
    ) -> Result<(), Error> {
        let count = self.queries.len();
        let rows: Vec<&[f32]> = attention.chunks(count).collect();
        let words = words(tokenizer, generated)?
            .into_iter()
            .map(|word| {
                let mut queries = vec![0.0; count];
                for &token in &word.tokens {
                    for (query, share) in queries.iter_mut().zip(rows[token]) {
                        *query += share / word.tokens.len() as f32;
                    }
                }
                ExplainedWord {
                    text: word.text,
                    tokens: word.tokens,
                    patches: self.through_queries(&queries),
                    queries,
                }
            })
            .collect();
        self.texts.push(words);
        Ok(())
    }
}

impl Blip2 {
    /// Where the queries look in `image`, and the words of `texts` that this model wrote about it (greedy, sampled or
    /// the best of a beam search). The image is encoded once more and each text run through the decoder in one pass;
    /// the programs that generate are left as they are.
    ///
    /// # Errors
    /// A text that is too long or has ids beyond the vocabulary, an image that cannot be prepared, or a failing device.
    pub async fn explain(
        &self,
        image: &Rgb8Image,
        texts: &[WrittenText<'_>],
    ) -> Result<Explanation, Error> {
        for text in texts {
            self.check_text(text)?;
        }
        let model = self.service.engine().model();
        let pixels = self.handle.preparation.preprocessor().apply(image)?;
        let reader = AttentionReader::record(self.gpu(), model)?;
        let cross_attention = reader.read_image(&pixels).await?;
        let mut explanation = Explanation::new(&cross_attention, model.vit.tokens());
        let queries = explanation.queries.len();
        for text in texts {
            let Some((_, read)) = text.generated.split_last() else {
                explanation.texts.push(Vec::new());
                continue;
            };
            // The last token is not read: its row would predict what was not written.
            let Some(attention) = reader.read_text(&[text.prompt, read].concat()).await? else {
                explanation.texts.push(Vec::new());
                continue;
            };
            // The row before a token predicted it.
            let first_row = queries + text.prompt.len() - 1;
            let attention = &attention[first_row * queries..];
            explanation.add_text(&self.prompter().tokenizer, text.generated, attention)?;
        }
        Ok(explanation)
    }

    /// Token ids of the prompt that a text for `ask` continues, BOS included: the [`WrittenText::prompt`] of what
    /// [`Blip2::caption`], [`Blip2::answer`] and [`Blip2::run`] give.
    ///
    /// # Errors
    /// Options that do not go together, an empty question, or a prompt too long for the model.
    pub fn prompt_tokens(&self, ask: &Ask) -> Result<Vec<u32>, Error> {
        Ok(self.prompter().prompt(ask)?.text)
    }

    /// Whether the decoder can be trusted with `text`.
    fn check_text(&self, text: &WrittenText<'_>) -> Result<(), Error> {
        let model = self.service.engine().model();
        let prompt = model.qformer.queries() + text.prompt.len();
        let (new, most) = (text.generated.len(), model.language_model.max_positions());
        let needed = prompt + new.saturating_sub(1);
        if needed > most {
            return Err(Error::TooLong {
                needed,
                prompt,
                new,
                most,
            });
        }
        let vocabulary = self.service.engine().vocabulary();
        let mut ids = text.prompt.iter().chain(text.generated);
        match ids.find(|&&id| id as usize >= vocabulary) {
            None => Ok(()),
            Some(id) => Err(Error::Request {
                problem: format!("token {id} of a vocabulary of {vocabulary}"),
            }),
        }
    }
}

/// A word and the indices of the tokens that count for it.
#[derive(Debug, PartialEq)]
struct Word {
    text: String,
    tokens: Vec<usize>,
}

/// The words of `ids`, parted by white space. A token belongs to the word that the text ends in once the token has
/// been added; those that add nothing (end tokens, white space) belong to none.
fn words(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<Word>, Error> {
    let texts = (1..=ids.len()).map(|count| tokenizer.decode(&ids[..count], true));
    Ok(words_of(&texts.collect::<Result<Vec<_>, _>>()?))
}

/// [`words`] from the text as it is after each token.
fn words_of(texts: &[String]) -> Vec<Word> {
    let Some(whole) = texts.last() else {
        return Vec::new();
    };
    let mut words: Vec<Word> = whole
        .split_whitespace()
        .map(|word| Word {
            text: word.into(),
            tokens: Vec::new(),
        })
        .collect();
    let mut said = vec![Vec::new(); words.len()]; // for each word, which of its tokens say more than punctuation
    let mut before = "";
    for (token, text) in texts.iter().enumerate() {
        let text = text.trim_end();
        // What is new; an unfinished character before it was a replacement character and is all new.
        let shared = before.bytes().zip(text.bytes()).take_while(|(a, b)| a == b);
        let new = &text.as_bytes()[shared.count()..];
        let word = text.split_whitespace().count().wrapping_sub(1);
        if !new.is_empty()
            && let Some(entry) = words.get_mut(word)
        {
            entry.tokens.push(token);
            said[word].push(
                new.iter()
                    .any(|&byte| byte.is_ascii_alphanumeric() || byte >= 0x80),
            );
        }
        before = text;
    }
    for (word, said) in words.iter_mut().zip(said) {
        if said.contains(&true) {
            let mut said = said.into_iter();
            word.tokens.retain(|_| said.next() == Some(true));
        }
    }
    words.retain(|word| !word.tokens.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words and their tokens of a text that comes in `pieces`.
    fn split(pieces: &[&[u8]]) -> Vec<(String, Vec<usize>)> {
        let texts: Vec<String> = (1..=pieces.len())
            .map(|count| String::from_utf8_lossy(&pieces[..count].concat()).into_owned())
            .collect();
        let words = words_of(&texts).into_iter();
        words.map(|word| (word.text, word.tokens)).collect()
    }

    fn word(text: &str, tokens: &[usize]) -> (String, Vec<usize>) {
        (text.into(), tokens.into())
    }

    #[test]
    fn tokens_belong_to_the_word_they_end_in() {
        assert_eq!(
            split(&[b"a", b" wh", b"ite", b" star", b"", b"\n"]),
            [word("a", &[0]), word("white", &[1, 2]), word("star", &[3])]
        );
        assert_eq!(
            split(&[b" ", b"a", b" ", b"b", b" "]),
            [word("a", &[1]), word("b", &[3])]
        );
        assert_eq!(split(&[]), []);
        assert_eq!(split(&[b"", b"\n"]), []);
    }

    #[test]
    fn punctuation_counts_only_where_it_is_all() {
        assert_eq!(
            split(&[b"star", b",", b" a", b" -", b"-", b" b."]),
            [
                word("star,", &[0]),
                word("a", &[2]),
                word("--", &[3, 4]),
                word("b.", &[5])
            ]
        );
    }

    #[test]
    fn characters_may_come_in_parts() {
        let cat = "🐱".as_bytes();
        assert_eq!(
            split(&[b"a ", &cat[..2], &cat[2..], "é".as_bytes(), b" b"]),
            [word("a", &[0]), word("🐱é", &[1, 2, 3]), word("b", &[4])]
        );
    }

    #[test]
    fn maps_are_weighted_sums_without_the_class_token() {
        let mut explanation = Explanation::new(
            &[0.5, 0.125, 0.125, 0.125, 0.125, 0.25, 0.75, 0.0, 0.0, 0.0],
            5,
        );
        assert_eq!(explanation.grid, 2);
        assert_eq!(explanation.queries[1], [0.75, 0.0, 0.0, 0.0]);
        assert_eq!(explanation.mean(), [0.4375, 0.0625, 0.0625, 0.0625]);
        assert_eq!(
            explanation.through_queries(&[0.0, 0.5]),
            [0.375, 0.0, 0.0, 0.0]
        );
        explanation.queries.clear();
        assert_eq!(explanation.mean(), [0.0; 4]);
    }
}
