//! Words that follow no rule, found by asking Stanford's tokenizer.

/// Tokens that pycocoevalcap leaves out. Brackets stay: it looks for `-LRB-`, but they are
/// lower-cased by then.
pub(super) const REMOVED: [&str; 11] = ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--"];
pub(super) const REMOVED_TOO: [&str; 2] = ["...", ";"];

/// Abbreviations that keep their period. Single letters do too; see the rule.
pub(super) const ABBREVIATIONS: &[&str] = &[
    "a.k.a", "adj", "adm", "adv", "al", "ala", "alex", "apr", "ariz", "assn", "assoc", "asst",
    "atty", "attys", "aug", "ave", "bancorp", "bhd", "bldg", "blvd", "brig", "bros", "calif",
    "capt", "cf", "cie", "cmdr", "co", "col", "colo", "comdr", "conn", "cont'd", "corp", "cos",
    "cpl", "ct", "dak", "dec", "dept", "det", "dr", "drs", "ed.d", "elec", "ens", "esq", "est",
    "etc", "ext", "feb", "fla", "fri", "ft", "ga", "gen", "gov", "govs", "hon", "inc", "ind",
    "insp", "intl", "invt", "jan", "jos", "jr", "jul", "jun", "kan", "kans", "ky", "lieut", "lt",
    "ltd", "maj", "mar", "md", "messrs", "mfg", "mich", "minn", "mlle", "mme", "mo", "mon", "mont",
    "mr", "mrs", "ms", "msgr", "mt", "mtg", "natl", "neb", "nev", "nov", "oct", "okla", "penn",
    "pfc", "ph", "ph.d", "plc", "ppte", "ppty", "pres", "prof", "profs", "pte", "ptes", "pty",
    "ptys", "pvt", "rd", "rep", "reps", "rev", "rt", "sen", "sens", "sep", "sept", "seq", "sfc",
    "sgt", "spc", "sq", "sr", "st", "ste", "supt", "supts", "sys", "tel", "tenn", "thu", "thurs",
    "treas", "tue", "tues", "univ", "va", "vs", "vt", "wed", "wis", "wisc", "wm", "wyo",
];

/// Abbreviations that keep their period before a number only.
pub(super) const BEFORE_NUMBERS: &[&str] =
    &["art", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop"];

/// Words that show, with a capital and after a single letter's period, that the period ended a
/// sentence.
pub(super) const SENTENCE_STARTS: &[&str] = &[
    "A",
    "About",
    "According",
    "Additionally",
    "After",
    "An",
    "As",
    "At",
    "But",
    "Earlier",
    "He",
    "Her",
    "Here",
    "However",
    "If",
    "In",
    "It",
    "Last",
    "Many",
    "More",
    "Now",
    "Once",
    "One",
    "Other",
    "Our",
    "She",
    "Since",
    "So",
    "Some",
    "Such",
    "That",
    "The",
    "Their",
    "Then",
    "There",
    "These",
    "They",
    "This",
    "We",
    "When",
    "While",
    "What",
    "Yet",
    "You",
];

/// Words written as one and counted as two, with the characters of the first.
pub(super) const TWO_IN_ONE: &[(&str, usize)] = &[
    ("cannot", 3),
    ("gonna", 3),
    ("gotta", 3),
    ("lemme", 3),
    ("gimme", 3),
    ("wanna", 3),
    ("'tis", 2),
    ("'twas", 2),
];

/// What an apostrophe and these letters make of the word before it: a token of its own.
pub(super) const CLITICS: [&str; 7] = ["m", "s", "d", "re", "ve", "ll", "em"];

/// Words with an apostrophe in or before them that no rule gives.
pub(super) const APOSTROPHE_WORDS: &[&str] = &[
    "'cause",
    "'em",
    "'til",
    "'till",
    "'twixt",
    "c'mon",
    "d'",
    "e'er",
    "ev'ry",
    "j'",
    "l'",
    "li'l",
    "nat'l",
    "nor'easter",
    "ol'",
    "s'mores",
    "somethin'",
];
