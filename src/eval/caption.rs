//! BLEU, CIDEr and ROUGE-L of captions, to the letter of pycocoevalcap 1.2 (SPEC of the COCO
//! caption challenge).
//!
//! BLEU: Papineni et al. 2002, corpus level, closest reference length. CIDEr: Vedantam et al. 2015,
//! its -D variant. ROUGE-L: Lin 2004, with the best precision and the best recall over the
//! references.

use std::collections::HashMap;

use super::ptb::tokenize;

/// Longest n-gram.
const N: usize = 4;
/// Width of CIDEr-D's length penalty, in bigrams.
const SIGMA: f64 = 6.0;
/// How much more recall counts than precision in ROUGE-L.
const BETA: f64 = 1.2;
/// pycocoevalcap's guards against 0/0.
const TINY: f64 = 1e-15;
const SMALL: f64 = 1e-9;

/// An image's caption and the captions it is held against.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionPair<T> {
    /// The caption to judge.
    pub candidate: T,
    /// The true ones, at least one.
    pub references: Vec<T>,
}

/// One image's scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageScores {
    /// BLEU-1 to BLEU-4 of the sentence.
    pub bleu: [f64; N],
    /// CIDEr, 0 to 10.
    pub cider: f64,
    /// ROUGE-L, 0 to 1.
    pub rouge_l: f64,
}

/// Scores of a set of captions, as fractions.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionScores {
    /// BLEU-1 to BLEU-4 of the corpus.
    pub bleu: [f64; N],
    /// Mean CIDEr.
    pub cider: f64,
    /// Mean ROUGE-L.
    pub rouge_l: f64,
    /// Each image's own, in the order given.
    pub images: Vec<ImageScores>,
}

/// Scores captions after splitting them into words.
#[must_use]
pub fn score_captions(pairs: &[CaptionPair<&str>]) -> CaptionScores {
    let tokens: Vec<_> = pairs
        .iter()
        .map(|pair| CaptionPair {
            candidate: tokenize(pair.candidate),
            references: pair.references.iter().map(|text| tokenize(text)).collect(),
        })
        .collect();
    score_tokens(&tokens)
}

/// Scores captions given as words. An image without references scores 0.
#[must_use]
pub fn score_tokens(pairs: &[CaptionPair<Vec<String>>]) -> CaptionScores {
    let mut words = Words::default();
    let sentences: Vec<_> = pairs
        .iter()
        .map(|pair| CaptionPair {
            candidate: Sentence::new(&pair.candidate, &mut words),
            references: pair
                .references
                .iter()
                .map(|tokens| Sentence::new(tokens, &mut words))
                .collect(),
        })
        .collect();
    let cider = cider(&sentences);
    let mut total = BleuCounts::default();
    let mut images = Vec::with_capacity(pairs.len());
    for ((pair, sentence), cider) in pairs.iter().zip(&sentences).zip(cider) {
        let counts = BleuCounts::of(sentence);
        total.add(&counts);
        images.push(ImageScores {
            bleu: counts.bleu(),
            cider,
            rouge_l: rouge_l(pair),
        });
    }
    let mean = |score: fn(&ImageScores) -> f64| {
        images.iter().map(score).sum::<f64>() / images.len().max(1) as f64 + 0.0
    };
    CaptionScores {
        bleu: total.bleu(),
        cider: mean(|image| image.cider),
        rouge_l: mean(|image| image.rouge_l),
        images,
    }
}

/// Numbers for words, so that n-grams compare fast.
#[derive(Default)]
struct Words(HashMap<String, u32>);

impl Words {
    fn number(&mut self, word: &str) -> u32 {
        let next = self.0.len() as u32 + 1; // 0 fills up n-grams shorter than N
        match self.0.get(word) {
            Some(&number) => number,
            None => *self.0.entry(word.to_owned()).or_insert(next),
        }
    }
}

type Ngram = [u32; N];

/// A sentence as the number of times it has each n-gram.
struct Sentence {
    /// Words.
    length: usize,
    /// For n = 1 to 4: n-grams, sorted, with their counts.
    ngrams: [Vec<(Ngram, f64)>; N],
}

impl Sentence {
    fn new(tokens: &[String], words: &mut Words) -> Self {
        // pycocoevalcap splits here at any white space, and a fraction's token (3 1/2) has some in
        // it.
        let numbers: Vec<u32> = tokens
            .iter()
            .flat_map(|token| token.split_whitespace())
            .map(|word| words.number(word))
            .collect();
        let ngrams = std::array::from_fn(|n| {
            let mut grams: Vec<Ngram> = numbers
                .windows(n + 1)
                .map(|window| std::array::from_fn(|i| window.get(i).copied().unwrap_or(0)))
                .collect();
            grams.sort_unstable();
            let runs = grams.chunk_by(|a, b| a == b);
            runs.map(|run| (run[0], run.len() as f64)).collect()
        });
        Self {
            length: numbers.len(),
            ngrams,
        }
    }

    fn count(&self, n: usize, ngram: &Ngram) -> f64 {
        let found = self.ngrams[n].binary_search_by_key(ngram, |&(ngram, _)| ngram);
        found.map_or(0.0, |index| self.ngrams[n][index].1)
    }
}

/// What BLEU counts, of a sentence or of many.
#[derive(Default)]
struct BleuCounts {
    correct: [f64; N],
    guessed: [f64; N],
    length: f64,
    reference_length: f64,
}

impl BleuCounts {
    fn of(pair: &CaptionPair<Sentence>) -> Self {
        let length = pair.candidate.length;
        let closest = pair
            .references
            .iter()
            .map(|r| (r.length.abs_diff(length), r.length))
            .min();
        Self {
            correct: std::array::from_fn(|n| {
                let clipped = pair.candidate.ngrams[n].iter().map(|(ngram, count)| {
                    let most = pair
                        .references
                        .iter()
                        .map(|r| r.count(n, ngram))
                        .fold(0.0, f64::max);
                    count.min(most)
                });
                clipped.sum()
            }),
            guessed: std::array::from_fn(|n| length.saturating_sub(n) as f64),
            length: length as f64,
            reference_length: closest.map_or(0, |(_, length)| length) as f64,
        }
    }

    fn add(&mut self, other: &Self) {
        for n in 0..N {
            self.correct[n] += other.correct[n];
            self.guessed[n] += other.guessed[n];
        }
        self.length += other.length;
        self.reference_length += other.reference_length;
    }

    /// Geometric means of the precisions of 1 to n-grams, times the brevity penalty.
    fn bleu(&self) -> [f64; N] {
        let ratio = (self.length + TINY) / (self.reference_length + SMALL);
        let penalty = if ratio < 1.0 {
            (1.0 - 1.0 / ratio).exp()
        } else {
            1.0
        };
        let mut product = 1.0;
        std::array::from_fn(|n| {
            product *= (self.correct[n] + TINY) / (self.guessed[n] + SMALL);
            product.powf(1.0 / (n + 1) as f64) * penalty
        })
    }
}

/// An n-gram vector of TF-IDF weights.
struct Weights {
    /// As in [`Sentence::ngrams`], weights instead of counts.
    ngrams: [Vec<(Ngram, f64)>; N],
    norm: [f64; N],
    /// Bigrams in the sentence: what pycocoevalcap takes for its length.
    length: f64,
}

/// CIDEr-D of each image.
fn cider(pairs: &[CaptionPair<Sentence>]) -> Vec<f64> {
    // Number of images that have the n-gram in a reference.
    let mut images_with: HashMap<(usize, Ngram), f64> = HashMap::new();
    for pair in pairs {
        for n in 0..N {
            let all = pair
                .references
                .iter()
                .flat_map(|r| r.ngrams[n].iter().map(|&(ngram, _)| ngram));
            let mut ngrams: Vec<Ngram> = all.collect();
            ngrams.sort_unstable();
            ngrams.dedup();
            for ngram in ngrams {
                *images_with.entry((n, ngram)).or_default() += 1.0;
            }
        }
    }
    let log_images = (pairs.len() as f64).ln();
    let weights = |sentence: &Sentence| {
        let ngrams: [Vec<(Ngram, f64)>; N] = std::array::from_fn(|n| {
            let weighted = sentence.ngrams[n].iter().map(|&(ngram, count)| {
                let images = images_with.get(&(n, ngram)).copied().unwrap_or(0.0);
                (ngram, count * (log_images - images.max(1.0).ln()))
            });
            weighted.collect()
        });
        let norm =
            std::array::from_fn(|n| ngrams[n].iter().map(|(_, w)| w * w).sum::<f64>().sqrt());
        Weights {
            ngrams,
            norm,
            length: sentence.length.saturating_sub(1) as f64,
        }
    };
    pairs
        .iter()
        .map(|pair| {
            let candidate = weights(&pair.candidate);
            let similarities = pair
                .references
                .iter()
                .map(|r| similarity(&candidate, &weights(r)));
            let sum: f64 = similarities.sum();
            // Nothing in common sums up to -0, which + 0 makes 0.
            10.0 * sum / pair.references.len().max(1) as f64 + 0.0
        })
        .collect()
}

/// Mean over n of the clipped cosine, times the length penalty.
fn similarity(candidate: &Weights, reference: &Weights) -> f64 {
    let delta = candidate.length - reference.length;
    let penalty = (-delta * delta / (2.0 * SIGMA * SIGMA)).exp();
    let cosine = |n: usize| {
        let others = &reference.ngrams[n];
        let product: f64 = candidate.ngrams[n]
            .iter()
            .filter_map(|(ngram, weight)| {
                let index = others
                    .binary_search_by_key(ngram, |&(ngram, _)| ngram)
                    .ok()?;
                Some(weight.min(others[index].1) * others[index].1)
            })
            .sum();
        let norm = candidate.norm[n] * reference.norm[n];
        if norm == 0.0 { product } else { product / norm }
    };
    (0..N).map(cosine).sum::<f64>() / N as f64 * penalty
}

fn rouge_l(pair: &CaptionPair<Vec<String>>) -> f64 {
    // pycocoevalcap's split of an empty text gives one empty word.
    let empty = [String::new()];
    let or_empty = |tokens: &[String]| {
        if tokens.is_empty() {
            empty.to_vec()
        } else {
            tokens.to_vec()
        }
    };
    let candidate = or_empty(&pair.candidate);
    let (mut precision, mut recall) = (0.0, 0.0);
    for reference in &pair.references {
        let reference = or_empty(reference);
        let common = longest_common_subsequence(&candidate, &reference) as f64;
        precision = f64::max(precision, common / candidate.len() as f64);
        recall = f64::max(recall, common / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

fn longest_common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(row[j])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair<'a>(candidate: &'a str, references: &[&'a str]) -> CaptionPair<&'a str> {
        CaptionPair {
            candidate,
            references: references.to_vec(),
        }
    }

    #[test]
    fn nothing_in_common_is_no_negative_zero() {
        let scores = score_captions(&[pair("xyz", &["a man"]), pair("", &["a dog"])]);
        for score in [scores.cider, scores.images[0].cider, scores.images[1].cider] {
            assert!(score == 0.0 && score.is_sign_positive(), "{score}");
        }
    }

    #[test]
    fn a_caption_equal_to_a_reference_scores_full() {
        let scores = score_captions(&[
            pair("A red cat sits here.", &["a red cat sits here"]),
            pair("two blue dogs run fast", &["Two blue dogs run fast!"]),
        ]);
        assert!(
            scores.bleu.iter().all(|b| (b - 1.0).abs() < 1e-6),
            "{scores:?}"
        );
        assert!(
            (scores.cider - 10.0).abs() < 1e-9 && (scores.rouge_l - 1.0).abs() < 1e-9,
            "{scores:?}"
        );
    }

    #[test]
    fn an_empty_caption_scores_nothing_and_breaks_nothing() {
        let scores = score_captions(&[pair("", &["a cat"]), pair("a dog", &["a dog"])]);
        assert!(scores.images[0].cider == 0.0 && scores.images[0].rouge_l == 0.0);
        assert!(scores.bleu.iter().all(|b| b.is_finite()));
        assert_eq!(score_captions(&[]).cider, 0.0);
        assert!(score_captions(&[pair("a", &[])]).bleu[0].is_finite());
    }
}
