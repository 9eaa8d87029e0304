//! Texts that end a generated text.

/// Texts before whose first occurrence a generated text ends. Empty: none does.
#[derive(Clone, Debug, Default)]
pub struct StopStrings(Vec<String>);

impl StopStrings {
    /// Those of `stops`, none of which is empty.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        Self(stops.to_vec())
    }

    /// What of `text` is before the first of them; `None` where none occurs.
    #[must_use]
    pub fn cut<'t>(&self, text: &'t str) -> Option<&'t str> {
        let found = self.0.iter().filter_map(|stop| text.find(stop.as_str()));
        found.min().map(|at| &text[..at])
    }

    /// What of `text` stays, however it goes on: not the end of it that may be the beginning of one of them.
    #[must_use]
    pub fn certain<'t>(&self, text: &'t str) -> &'t str {
        self.cut(text).unwrap_or_else(|| {
            let begun = self.0.iter().map(|stop| begun(text, stop));
            &text[..text.len() - begun.max().unwrap_or(0)]
        })
    }
}

/// Bytes of the longest beginning of `stop`, not all of it, that `text` ends with.
fn begun(text: &str, stop: &str) -> usize {
    let lengths = stop.char_indices().map(|(length, _)| length).rev();
    let mut lengths = lengths.filter(|&length| text.ends_with(&stop[..length]));
    lengths.next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(stops: &[&str]) -> StopStrings {
        StopStrings(stops.iter().map(|stop| (*stop).to_owned()).collect())
    }

    #[test]
    fn a_text_ends_before_the_first_of_them() {
        let stops = stops(&["\n", "Question:", "🐱é"]);
        for (text, cut) in [
            ("", None),
            ("a cat", None),
            ("a cat\nQuestion:", Some("a cat")),
            ("a Question: b\n", Some("a ")),
            ("Question", None),
            ("a🐱ée", Some("a")),
            ("a🐱e", None),
        ] {
            assert_eq!(stops.cut(text), cut, "{text:?}");
        }
        assert_eq!(StopStrings::default().cut("a"), None);
    }

    #[test]
    fn what_may_begin_one_of_them_is_uncertain() {
        let stops = stops(&["aab", "🐱é"]);
        for (text, certain) in [
            ("", ""),
            ("a", ""),
            ("aa", ""),
            ("aaa", "a"),
            ("aaab", "a"),
            ("aac", "aac"),
            ("caa", "c"),
            ("c🐱", "c"),
            ("c🐱é", "c"),
            ("c🐱e", "c🐱e"),
        ] {
            assert_eq!(stops.certain(text), certain, "{text:?}");
        }
        assert_eq!(StopStrings::default().certain("a"), "a");
    }

    /// Whatever a text goes on with, what was certain of it is a beginning of what is left of the whole.
    #[test]
    fn what_is_certain_is_never_taken_back() {
        let stops = stops(&["abc", "bca", "cc", "é🐱"]);
        for word in ["abcabc", "ababcc", "é🐱é", "aéé🐱a", "bcbcbca", "ccc"] {
            let whole = stops.cut(word).unwrap_or(word);
            let ends = word.char_indices().map(|(end, _)| end);
            for end in ends.chain([word.len()]) {
                let certain = stops.certain(&word[..end]);
                assert!(whole.starts_with(certain), "{word:?} at {end}: {certain:?}");
            }
        }
    }
}
