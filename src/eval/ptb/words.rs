//! Rules for words with apostrophes and periods. Each gives its reach, which may include what
//! follows the token, and the token's own length; 0 if none.

use super::lists::{
    ABBREVIATIONS, APOSTROPHE_WORDS, BEFORE_NUMBERS, CLITICS, SENTENCE_STARTS, TWO_IN_ONE,
};
use super::{Lexer, is_apostrophe, is_digit, is_letter, is_space};

impl Lexer<'_> {
    pub(super) fn two_in_one(&self) -> (usize, usize) {
        TWO_IN_ONE
            .iter()
            .find(|(word, _)| self.reads(0, word))
            .map_or((0, 0), |&(word, first)| (word.chars().count(), first))
    }

    /// `does|n't`, and the `n't` that is left.
    pub(super) fn negated(&self) -> (usize, usize) {
        let letters = self.run(0, is_letter);
        let n = |offset| self.reads(offset, "n't");
        if n(0) && !self.is(3, is_letter) {
            return (3, 3);
        }
        // The word is what comes before the n, which is the last letter before the apostrophe.
        let before = letters.saturating_sub(1);
        if before > 0 && n(before) && !self.is(before - 1, |c| c.eq_ignore_ascii_case(&'n')) {
            (before + 3, before)
        } else {
            (0, 0)
        }
    }

    /// The clitic at `offset`, the apostrophe included.
    pub(super) fn clitic(&self, offset: usize) -> Option<usize> {
        if !self.is(offset, is_apostrophe) {
            return None;
        }
        let found = CLITICS
            .iter()
            .filter(|clitic| self.reads(offset + 1, clitic));
        found.map(|clitic| clitic.len() + 1).max()
    }

    /// `dog|'s`, and the `'s` that is left.
    pub(super) fn with_clitic(&self) -> (usize, usize) {
        if let Some(length) = self.clitic(0) {
            // A curly apostrophe makes one of any such letters (’dog is ’d and og).
            let ends = !self.is(length, is_letter) || !self.is(0, |c| c == '\'');
            return if ends { (length, length) } else { (0, 0) };
        }
        let length = self.word().max(self.hyphenated()).max(self.slashed());
        match self.clitic(length) {
            Some(clitic) if length > 0 => (length + clitic, length),
            _ => (0, 0),
        }
    }

    /// `etc.`, `U.S.`, `No. 5`; and any word's period where a comma, colon or semicolon follows.
    pub(super) fn abbreviation(&self) -> (usize, usize) {
        let mut best = (0, 0);
        let mut consider = |reach: usize, length: usize| {
            if reach > best.0 {
                best = (reach, length);
            }
        };
        let period = |offset| self.is(offset, |c| c == '.');
        let mut acronym = 0; // letters with a period after each
        while self.is(acronym, |c| c.is_ascii_alphabetic()) && period(acronym + 1) {
            acronym += 2;
        }
        if acronym > 2 {
            consider(acronym, acronym);
        } else if acronym == 2 && !self.sentence_starts(2) {
            consider(2, 2);
        }
        for length in [
            self.run(0, is_letter),
            self.word(),
            self.run(0, |c| is_letter(c) || is_apostrophe(c)),
        ] {
            if length == 0 || !period(length) {
                continue;
            }
            let word = self.string(length).to_lowercase();
            if ABBREVIATIONS.binary_search(&word.as_str()).is_ok() {
                consider(length + 1, length + 1);
            }
            let space = usize::from(self.is(length + 1, is_space));
            if BEFORE_NUMBERS.contains(&word.as_str()) && self.is(length + 1 + space, is_digit) {
                consider(length + 2 + space, length + 1);
            }
        }
        for length in [self.word(), self.hyphenated()] {
            if length > 0 && period(length) && self.is(length + 1, |c| matches!(c, ',' | ';' | ':'))
            {
                consider(length + 2, length + 1);
            }
        }
        best
    }

    /// Whether a sentence starts after the space at `offset`, told by a common word with a capital.
    pub(super) fn sentence_starts(&self, offset: usize) -> bool {
        if !self.is(offset, is_space) {
            return false;
        }
        let start = offset + self.run(offset, is_space);
        let length = self.run(start, is_letter);
        let word = self.text.iter().skip(self.at + start).take(length);
        let word: String = word.collect();
        SENTENCE_STARTS.contains(&word.as_str()) && self.is(start + length, is_space)
    }

    /// Words with an apostrophe that stay whole: `ma'am`, `O'Brien`, `'90s`, `'n'`, `y'`.
    pub(super) fn apostrophe_word(&self) -> (usize, usize) {
        let listed = APOSTROPHE_WORDS.iter().filter(|word| self.reads(0, word));
        let mut best = listed.map(|word| word.chars().count()).max().unwrap_or(0);
        if self.is(0, is_apostrophe) {
            if self.is(1, |c| c.eq_ignore_ascii_case(&'n')) {
                let closed = self.is(2, is_apostrophe);
                let ends = self.peek(2).is_none_or(is_space);
                best = best.max(if closed { 3 } else { 2 * usize::from(ends) });
            }
            let digits = self.run(1, is_digit);
            if digits == 2
                && (self.reads(3, "s") && self.is(2, |c| c == '0') && self.is(1, |c| c >= '2'))
            {
                best = best.max(4);
            }
            if digits == 2 && self.peek(3).is_none_or(is_space) {
                best = best.max(3);
            }
            return (best, best);
        }
        let letters = self.run(0, is_letter);
        if letters == 0 || !self.is(letters, is_apostrophe) {
            return (best, best);
        }
        let rest = self.run(letters + 1, is_letter);
        let one = self.is(0, |c| matches!(c, 'A'..='H' | 'J'..='X' | 'Z' | 'n'));
        let vowel = |c: char| matches!(c.to_ascii_lowercase(), 'a' | 'e' | 'i' | 'o' | 'u');
        let after_vowel = letters > 1
            && self.is(letters - 1, |c| vowel(c) || c.eq_ignore_ascii_case(&'y'))
            && self.is(letters + 1, |c| vowel(c) || c.is_ascii_uppercase());
        if letters == 1 && one && rest > 1 || after_vowel {
            best = best.max(letters + 1 + rest);
        }
        if letters == 1 && self.is(0, |c| c.eq_ignore_ascii_case(&'y')) && rest > 0 {
            best = best.max(2);
        }
        (best, best)
    }
}
