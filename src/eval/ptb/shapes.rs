//! Rules for tokens by their shape: words, numbers, addresses, marks. Each gives the token's length
//! here, 0 if none.

use super::{Lexer, is_alphanumeric, is_apostrophe, is_digit, is_hyphen, is_letter, is_space};

impl Lexer<'_> {
    /// Letters and digits after a letter; a period, `!` or `?` between letters does not end them.
    pub(super) fn word(&self) -> usize {
        if !self.is(0, is_letter) {
            return 0;
        }
        let mut length = self.run(0, is_alphanumeric);
        while self.is(length, |c| matches!(c, '.' | '!' | '?')) && self.is(length + 1, is_letter) {
            length += 1 + self.run(length + 1, is_alphanumeric);
        }
        length
    }

    /// A part of a hyphenated word: letters and digits, perhaps after `d'`, `l'` or `o'`.
    pub(super) fn part(&self, offset: usize) -> usize {
        let elided = self.is(offset, |c| {
            matches!(c.to_ascii_lowercase(), 'd' | 'l' | 'o')
        }) && self.is(offset + 1, is_apostrophe);
        if elided && self.run(offset + 2, is_alphanumeric) > 1 {
            2 + self.run(offset + 2, is_alphanumeric)
        } else {
            self.run(offset, is_alphanumeric)
        }
    }

    /// `well-known`, `2-year-old`, `5-o'clock`; one part alone is a word with digits (`2nd`, `3x5`).
    pub(super) fn hyphenated(&self) -> usize {
        let mut length = self.part(0);
        if length == 0 {
            return 0;
        }
        while self.is(length, |c| is_hyphen(c) || c == '_') && self.part(length + 1) > 0 {
            length += 1 + self.part(length + 1);
        }
        length
    }

    /// `U.S.-based`, `5.5-inch`: periods and commas in the first part.
    pub(super) fn hyphenated_with_periods(&self) -> usize {
        if !self.is(0, is_alphanumeric) {
            return 0;
        }
        let first = self.run(0, |c| is_alphanumeric(c) || c == '.' || c == ',');
        let mut length = first;
        while self.is(length, |c| c == '-') && self.is(length + 1, is_alphanumeric) {
            length += 1 + self.run(length + 1, is_alphanumeric);
        }
        if length == first { 0 } else { length }
    }

    /// `and/or`, `black/dark-grey`: at most three words of at most three parts.
    pub(super) fn slashed(&self) -> usize {
        let word = |offset: usize| {
            let mut length = self.run(offset, is_alphanumeric);
            for _ in 0..2 {
                let next = self.run(offset + length + 1, is_letter);
                if length > 0 && next > 0 && self.is(offset + length, |c| c == '-') {
                    length += 1 + next;
                }
            }
            length
        };
        let first = word(0);
        let mut length = first;
        for _ in 0..2 {
            if length > 0 && self.is(length, |c| c == '/') && word(length + 1) > 0 {
                length += 1 + word(length + 1);
            }
        }
        if length == first { 0 } else { length }
    }

    /// `5`, `-5`, `1,000`, `3.5`, `.5`, `10:30`, `:30`.
    pub(super) fn number(&self) -> usize {
        let sign = usize::from(self.is(0, |c| c == '-' || c == '+'));
        let mut length = sign + self.run(sign, is_digit);
        while self.is(length, |c| matches!(c, '.' | ',' | ':')) {
            let digits = self.run(length + 1, is_digit);
            if digits == 0 {
                break;
            }
            length += 1 + digits;
        }
        if length > sign { length } else { 0 }
    }

    /// `1/2`, `3 1/2`.
    pub(super) fn fraction(&self) -> usize {
        let simple = |offset: usize| {
            let (above, below) = (
                self.run(offset, is_digit),
                self.run(offset + self.run(offset, is_digit) + 1, is_digit),
            );
            let fits = |digits| (1..=4).contains(&digits);
            (fits(above) && below > 0 && self.is(offset + above, |c| c == '/'))
                .then_some(above + 1 + below.min(4))
        };
        let whole = self.run(0, is_digit);
        let mixed =
            (1..=4).contains(&whole) && self.is(whole, |c| matches!(c, ' ' | '-' | '\u{a0}'));
        match mixed.then(|| simple(whole + 1)).flatten() {
            Some(length) => whole + 1 + length,
            None => simple(0).unwrap_or(0),
        }
    }

    /// `12/5/2012`; with hyphens it is a hyphenated word.
    pub(super) fn date(&self) -> usize {
        let mut length = 0;
        for most in [2, 2, 4] {
            let digits = self.run(length, is_digit);
            let separated = length == 0 || self.text.get(self.at + length - 1) == Some(&'/');
            if !separated || digits == 0 || digits > most {
                return 0;
            }
            length += digits + usize::from(most == 2 && self.is(length + digits, |c| c == '/'));
        }
        length
    }

    /// `AT&T`, in capitals only.
    pub(super) fn joined_capitals(&self) -> usize {
        let first = self.run(0, |c| c.is_ascii_uppercase());
        let mut length = first;
        while length > 0
            && self.is(length, |c| c == '&' || c == '+')
            && self.is(length + 1, |c| c.is_ascii_uppercase())
        {
            length += 1 + self.run(length + 1, |c| c.is_ascii_uppercase());
        }
        if length == first { 0 } else { length }
    }

    /// Web and mail addresses.
    pub(super) fn address(&self) -> usize {
        let stops = |c: char| {
            is_space(c) || matches!(c, '"' | '<' | '>' | '|' | '(' | ')' | '{' | '}' | '`')
        };
        let run = self.run(0, |c| !stops(c));
        let text: String = self.string(run).to_ascii_lowercase();
        let trimmed = text.trim_end_matches(|c: char| ".!?,;:&'-".contains(c));
        let web = ["http://", "https://", "ftp://"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
            || text.starts_with("www.") && trimmed.len() > 4 && trimmed[4..].contains('.')
            || [".com", ".net", ".org", ".edu"].iter().any(|end| {
                trimmed.len() > end.len()
                    && trimmed.ends_with(end)
                    && !trimmed.contains([',', '/', ':', '@', '!', '?'])
            });
        let mail = self.is(0, |c| c.is_ascii_alphanumeric())
            && trimmed.split_once('@').is_some_and(|(name, host)| {
                !name.contains([',', ';', ':'])
                    && !host.is_empty()
                    && !host.contains([',', ';', ':', '@'])
            });
        if web || mail {
            trimmed.chars().count()
        } else {
            0
        }
    }

    /// `@user`, `#topic`.
    pub(super) fn handle(&self) -> usize {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let starts =
            self.is(0, |c| c == '@' || c == '#') && self.is(1, |c| c.is_ascii_alphabetic());
        if starts { 1 + self.run(1, name) } else { 0 }
    }

    /// `<br>`, `</b>`, `<a href="x">`.
    pub(super) fn tag(&self) -> usize {
        let slash = usize::from(self.is(1, |c| c == '/'));
        if !self.is(0, |c| c == '<') || !self.is(1 + slash, |c| c.is_ascii_alphabetic()) {
            return 0;
        }
        let name = 1 + slash + self.run(1 + slash, |c| c.is_ascii_alphanumeric());
        let inside = self.run(name, |c| c != '<' && c != '>' && c != '\n');
        let rest: String = self.text.iter().skip(self.at + name).take(inside).collect();
        let plain = rest.trim().is_empty() || rest.trim() == "/";
        let attributes = rest.starts_with(' ') && rest.contains('=');
        if (plain || attributes) && self.is(name + inside, |c| c == '>') {
            name + inside + 1
        } else {
            0
        }
    }

    /// `:-)`.
    pub(super) fn smiley(&self) -> usize {
        if !self.is(0, |c| matches!(c, ':' | ';' | '=')) {
            return 0;
        }
        let nose = usize::from(self.is(1, |c| matches!(c, '-' | 'o' | '*' | '\'')));
        let mouth = self.is(1 + nose, |c| "()DPdpO\\{@|[]".contains(c));
        if mouth && !self.is(2 + nose, is_letter) {
            2 + nose
        } else {
            0
        }
    }

    /// Runs of a mark that are one token: `...`, `?!`, `--`, `__`, `**`, `US$`.
    pub(super) fn marks(&self) -> usize {
        let repeated = |mark: char| self.run(0, |c| c == mark);
        match self.peek(0) {
            Some('.') if repeated('.') > 2 => repeated('.'),
            Some('?' | '!') => self.run(0, |c| c == '?' || c == '!'),
            Some(mark @ ('_' | '*' | '@' | '#')) => repeated(mark),
            Some(mark @ ('\'' | '`' | '<' | '>')) if repeated(mark) > 1 => 2,
            Some('-') if repeated('-') > 1 => repeated('-'),
            Some('c' | 'C') if self.reads(1, "++") => 3,
            Some('c' | 'C') if self.reads(1, "#") => 2,
            Some(c) if c.is_ascii_uppercase() => {
                let capitals = self.run(0, |c| c.is_ascii_uppercase());
                if self.is(capitals, |c| c == '$') {
                    capitals + 1
                } else {
                    0
                }
            }
            _ => 0,
        }
    }
}
