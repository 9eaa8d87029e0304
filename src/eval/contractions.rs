//! The contractions that VQA scoring writes with their apostrophes. The evaluation tool has 120 in
//! a table; they follow from a few rules. Its keys with a capital never match a lower-cased word
//! and are left out.

/// Words whose final t gets an apostrophe before it.
const NEGATED: &str = "aint arent cant couldnt didnt doesnt dont hadnt hasnt havent isnt mightnt mustnt neednt oughtnt shant shouldnt \
     wasnt werent wont wouldnt";

/// Endings and the words they are found behind.
const ENDINGS: [(&str, &str); 5] = [
    (
        "ve",
        "could might must not should they we what where who would you",
    ),
    (
        "ll",
        "how it somebody someone something they what who why you",
    ),
    ("d", "he how it someone something there they where who you"),
    (
        "s",
        "he how somebody someone that there what when where who why",
    ),
    ("re", "there they what why you"),
];

/// Words before a double contraction, `couldn't've`.
const NOT_HAVE: &str = "couldn hadn mightn shouldn wouldn";

/// Words before the other, `he'd've`.
const WOULD_HAVE: &str = "he it she somebody someone something there they who you we";

/// Those that follow no rule.
const IRREGULAR: [(&str, &str); 13] = [
    ("maam", "ma'am"),
    ("oclock", "o'clock"),
    ("ow's'at", "'ow's'at"),
    ("'ows'at", "'ow's'at"),
    ("'ow'sat", "'ow's'at"),
    ("somebody'd", "somebodyd"),
    ("twas", "'twas"),
    ("yall", "y'all"),
    ("yall'll", "y'all'll"),
    ("y'allll", "y'all'll"),
    ("yall'd've", "y'all'd've"),
    ("y'alld've", "y'all'd've"),
    ("y'all'dve", "y'all'd've"),
];

/// The word with its apostrophes, if it is a contraction that lacks some.
pub(super) fn with_apostrophes(word: &str) -> Option<String> {
    let among = |list: &str, word: &str| list.split_whitespace().any(|entry| entry == word);
    if let Some((_, right)) = IRREGULAR.iter().find(|(wrong, _)| *wrong == word) {
        return Some((*right).to_owned());
    }
    if among(NEGATED, word) {
        return Some(format!("{}'t", word.trim_end_matches('t')));
    }
    for (ending, bases) in ENDINGS {
        if let Some(base) = word.strip_suffix(ending).filter(|base| among(bases, base)) {
            return Some(format!("{base}'{ending}"));
        }
    }
    for (wrong, right, bases) in [
        ("t've", "'t've", NOT_HAVE),
        ("'tve", "'t've", NOT_HAVE),
        ("d've", "'d've", WOULD_HAVE),
        ("'dve", "'d've", WOULD_HAVE),
    ] {
        if let Some(base) = word.strip_suffix(wrong).filter(|base| among(bases, base)) {
            return Some(format!("{base}{right}"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_and_what_is_near_it() {
        for (word, expected) in [
            ("dont", Some("don't")),
            ("cant", Some("can't")),
            ("couldnt've", Some("couldn't've")),
            ("couldn'tve", Some("couldn't've")),
            ("shed've", Some("she'd've")),
            ("hes", Some("he's")),
            ("shes", None), // not in the table
            ("youre", Some("you're")),
            ("twas", Some("'twas")),
            ("somebodyd", None),
            ("were", None),
            ("id", None),
            ("ant", None),
            ("", None),
        ] {
            assert_eq!(with_apostrophes(word).as_deref(), expected, "{word}");
        }
    }
}
