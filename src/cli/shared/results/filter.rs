//! Which items are still to be done.

use std::collections::HashMap;

use super::EarlierResults;
use crate::cli::shared::inputs::{ImageInput, ImageSource, STDIN_NAME};

/// How an item stands, as far as results are kept.
#[derive(Debug, PartialEq, Eq)]
pub enum ItemState {
    /// The results file, if there is one, has no line of it.
    Missing,
    /// It has its line.
    Done,
    /// It was given before.
    Repeated,
    /// It could be taken for another; says why.
    Unclear(String),
}

/// Tells items apart by their keys, which begin with an image's path as it is written.
#[derive(Debug)]
pub struct ItemFilter<'a> {
    results: Option<&'a EarlierResults>,
    seen: HashMap<String, ImageSource>,
}

impl<'a> ItemFilter<'a> {
    /// A filter before the first item.
    pub fn new(results: Option<&'a EarlierResults>) -> Self {
        Self {
            results,
            seen: HashMap::new(),
        }
    }

    /// How the next item stands: its image, and its [`Columns::key`](super::Columns::key).
    pub fn state(&mut self, image: &ImageInput, key: &str) -> ItemState {
        match self.seen.get(key) {
            Some(source) if *source == image.source => return ItemState::Repeated,
            Some(_) => {
                return ItemState::Unclear(format!(
                    "{}: another file is called that too where bytes are not UTF-8, and results could not tell them apart; rename one",
                    image.name
                ));
            }
            None => {}
        }
        self.seen.insert(key.to_owned(), image.source.clone());
        let done = self.results.is_some_and(|results| results.has(key));
        match done {
            true if image.name == STDIN_NAME => ItemState::Unclear(
                "-: the results file has a line for standard input, perhaps for another image; give a file, or another --out"
                    .into(),
            ),
            true => ItemState::Done,
            false => ItemState::Missing,
        }
    }
}
