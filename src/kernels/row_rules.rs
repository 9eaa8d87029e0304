//! `row_rules.wgsl`: what each row of logits is processed and ended by, as the shaders read it.

use crate::generate::GenerationOptions;

/// Words in front of the lists.
const LISTS: usize = 8;

/// Words of a row that hold the rules of `options`.
#[must_use]
pub fn row_rules_words(options: &GenerationOptions) -> usize {
    LISTS + options.eos_token_ids.len() + options.suppress_tokens.len()
}

/// Writes the rules of `options` into `row`, which has at least [`row_rules_words`] words.
///
/// A beam search works on log-probabilities, which its score processors see; greedy search and sampling work on logits,
/// as in transformers' `generate`.
pub fn write_row_rules(row: &mut [u32], options: &GenerationOptions) {
    let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let ends = options.eos_token_ids.len();
    row[..LISTS].copy_from_slice(&[
        u32::from(options.num_beams > 1),
        (options.repetition_penalty as f32).to_bits(),
        word(options.no_repeat_ngram_size),
        word(options.min_new_tokens),
        word(options.max_new_tokens),
        word(ends),
        word(options.suppress_tokens.len()),
        0,
    ]);
    let lists = &mut row[LISTS..];
    lists[..ends].copy_from_slice(&options.eos_token_ids);
    lists[ends..][..options.suppress_tokens.len()].copy_from_slice(&options.suppress_tokens);
}

/// The rules of a row for each of `options`, for tests of the kernels that read them: the words and their stride.
#[cfg(test)]
pub(super) fn rules_of(options: &[GenerationOptions]) -> (Vec<u32>, usize) {
    let stride = options.iter().map(row_rules_words).max().unwrap_or(LISTS) + 3;
    let mut words = vec![77; options.len() * stride];
    for (row, options) in words.chunks_mut(stride).zip(options) {
        write_row_rules(row, options);
    }
    (words, stride)
}
