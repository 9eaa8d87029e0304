//! `--pairs FILE.jsonl`: an image and a question a line.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::files::bounded::{self, MAX_TEXT_BYTES};
use crate::files::text;

use super::inputs::STDIN_NAME;

/// A line of a pairs file.
#[derive(Debug, PartialEq, Eq)]
pub struct Pair {
    /// The line it is on, from 1.
    pub line: usize,
    /// The image as the line names it.
    pub image: String,
    pub question: String,
}

/// Why pairs cannot be read, or not all.
#[derive(Debug, thiserror::Error)]
pub enum PairsError {
    #[error("{file}: cannot be read ({source}); give a file with a JSON object a line")]
    Unreadable {
        file: String,
        source: std::io::Error,
    },
    #[error(
        "{file}, line {line}: no pair ({problem}); write {{\"image\": PATH, \"question\": TEXT}}"
    )]
    Malformed {
        file: String,
        line: usize,
        problem: String,
    },
    #[error(
        "{file}: has no pairs; write a line {{\"image\": PATH, \"question\": TEXT}} for each question"
    )]
    Empty { file: String },
}

/// The pairs of `file` (`-`: standard input), and the lines that are none. Empty lines are passed
/// over.
pub fn read(file: &Path) -> (Vec<Pair>, Vec<PairsError>) {
    let name = file.display().to_string();
    let bytes = match file == Path::new(STDIN_NAME) {
        true => bounded::read_rest(std::io::stdin().lock(), Vec::new(), MAX_TEXT_BYTES),
        false => bounded::read(file, MAX_TEXT_BYTES),
    };
    match bytes {
        Ok(bytes) => match text::decode(&bytes) {
            Ok(text) => parse(text.as_bytes(), &name),
            // A line that is no text spoils only itself.
            Err(_) => parse(&bytes, &name),
        },
        Err(source) => (
            Vec::new(),
            vec![PairsError::Unreadable { file: name, source }],
        ),
    }
}

fn parse(bytes: &[u8], file: &str) -> (Vec<Pair>, Vec<PairsError>) {
    #[derive(Deserialize)]
    struct Line {
        image: String,
        question: String,
    }

    // Some editors put a byte order mark in front.
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let (mut pairs, mut errors) = (Vec::new(), Vec::new());
    for (line, text) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        if text.trim_ascii().is_empty() {
            continue;
        }
        // By way of an object: serde would take a list for a struct too.
        let object = serde_json::from_slice::<serde_json::Map<_, _>>(text);
        match object.and_then(|object| serde_json::from_value(object.into())) {
            Ok(Line { image, question }) => pairs.push(Pair {
                line,
                image,
                question,
            }),
            Err(error) => errors.push(PairsError::Malformed {
                file: file.into(),
                line,
                problem: problem(&error),
            }),
        }
    }
    if pairs.is_empty() && errors.is_empty() {
        errors.push(PairsError::Empty { file: file.into() });
    }
    (pairs, errors)
}

/// What is wrong with a line, and in which column: to serde every text here has one line.
fn problem(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column", ", column")
}

/// Where the image of a pair is: beside the pairs file, or else from the working directory.
pub fn locate(pairs_file: &Path, image: &str) -> PathBuf {
    let beside = pairs_file.parent().map(|folder| folder.join(image));
    match beside {
        Some(beside) if pairs_file != Path::new(STDIN_NAME) && beside.exists() => beside,
        _ => image.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &[u8]) -> Vec<String> {
        let (_, errors) = parse(text, "p.jsonl");
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lines_are_pairs() {
        let text = "\u{FEFF}{\"image\": \"a.png\", \"question\": \"why?\", \"id\": 7}\r\n\n  \n\
                    {\"question\": \"\\u0000🐱\", \"image\": \"b b.png\"}";
        let (pairs, errors) = parse(text.as_bytes(), "p.jsonl");
        assert!(errors.is_empty(), "{errors:?}");
        let pair = |line, image: &str, question: &str| Pair {
            line,
            image: image.into(),
            question: question.into(),
        };
        assert_eq!(
            pairs,
            [pair(1, "a.png", "why?"), pair(4, "b b.png", "\0🐱")]
        );
    }

    #[test]
    fn other_lines_are_named() {
        let good = b"{\"image\": \"a\", \"question\": \"b\"}\n";
        for (line, part) in [
            (&b"nonsense"[..], "column 2"),
            (b"[\"a\", \"b\"]", "expected a map"),
            (b"{\"image\": \"a\", ", "EOF"),
            (b"{\"image\": \"a\"}", "missing field `question`"),
            (b"{\"image\": 1, \"question\": \"b\"}", "expected a string"),
            (
                b"{\"image\": null, \"question\": \"b\"}",
                "expected a string",
            ),
            (b"{\"image\": \"a\", \"question\": \"\xFF\"}", "unicode"),
            (b"{\"image\": \"a\", \"question\": \"b\"} x", "trailing"),
        ] {
            let text = [good, line, b"\n", good].concat();
            assert_eq!(parse(&text, "p.jsonl").0.len(), 2);
            let messages = messages(&text);
            assert_eq!(messages.len(), 1, "{messages:?}");
            assert!(messages[0].starts_with("p.jsonl, line 2: "), "{messages:?}");
            assert!(messages[0].contains(part), "{messages:?}");
            assert!(!messages[0].contains("line 1"), "{messages:?}");
        }
        for empty in [&b""[..], b"\n\r\n", b"\xEF\xBB\xBF"] {
            assert_eq!(messages(empty).len(), 1);
        }
    }

    #[test]
    fn images_are_beside_the_file_or_in_the_working_directory() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.jsonl");
        let here = folder.path().join("Cargo.toml");
        assert_eq!(locate(&file, "Cargo.toml"), Path::new("Cargo.toml"));
        std::fs::write(&here, "").unwrap();
        assert_eq!(locate(&file, "Cargo.toml"), here);
        assert_eq!(
            locate(Path::new("-"), "Cargo.toml"),
            Path::new("Cargo.toml")
        );
        let absolute = here.display().to_string();
        assert_eq!(locate(Path::new("else/p.jsonl"), &absolute), here);
    }
}
