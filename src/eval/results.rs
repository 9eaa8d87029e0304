//! Results in the official submission formats, and how they fit the truth.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::json::{JsonFile, Top};
use super::{EvalError, Id};

/// A file of predictions: a text for each image or question.
#[derive(Debug, Clone, PartialEq)]
pub struct Results {
    /// Where they were read.
    pub file: PathBuf,
    /// What the ids are called in the file.
    id_field: &'static str,
    /// In the file's order.
    pub texts: Vec<(Id, String)>,
}

/// Predictions beside the items they are for.
#[derive(Debug)]
pub struct Joined<'a> {
    /// The prediction for each item of the truth; `None` where there is none.
    pub texts: Vec<Option<&'a str>>,
    /// Predictions for items that the truth does not have.
    pub unknown: Vec<EvalError>,
    /// Items without a prediction, and predictions that are empty.
    pub incomplete: Vec<EvalError>,
}

impl Results {
    /// Reads `[{"image_id", "caption"}]`.
    ///
    /// # Errors
    /// Another layout; a missing or wrong field or an image given twice, named with its item.
    pub fn read_captions(file: &Path) -> Result<Self, EvalError> {
        Self::read(
            file,
            "image_id",
            &["caption"],
            "[{\"image_id\", \"caption\"}, …]",
        )
    }

    /// Reads `[{"question_id", "answer"}]`, or LAVIS's `pred_ans` for GQA.
    ///
    /// # Errors
    /// As [`Results::read_captions`].
    pub fn read_answers(file: &Path) -> Result<Self, EvalError> {
        Self::read(
            file,
            "question_id",
            &["answer", "pred_ans"],
            "[{\"question_id\", \"answer\"}, …]",
        )
    }

    fn read(
        file: &Path,
        id_field: &'static str,
        text_fields: &[&str],
        expected: &'static str,
    ) -> Result<Self, EvalError> {
        let json = JsonFile::read(file)?;
        let Top::List(items) = json.top(expected)? else {
            return Err(json.layout("it holds an object".into(), expected));
        };
        let mut texts = Vec::with_capacity(items.len());
        let mut seen = HashMap::new();
        for (index, raw) in items.into_iter().enumerate() {
            let item = json.item(raw, "", index, id_field)?;
            let field = text_fields.iter().find(|field| item.get(field).is_some());
            let text = item.string(field.unwrap_or(&text_fields[0]))?.to_owned();
            let id = item.id(id_field)?;
            if let Some(first) = seen.insert(id.clone(), index) {
                let problem = format!("is the {id_field} of item {first} too; keep one of the two");
                return Err(item.error(problem));
            }
            texts.push((id, text));
        }
        if texts.is_empty() {
            let problem = "no result in it; it is an empty list".into();
            return Err(EvalError::Empty {
                file: file.into(),
                problem,
            });
        }
        Ok(Self {
            file: file.into(),
            id_field,
            texts,
        })
    }

    /// Lays the predictions beside the truth's `ids`, which were read from `truth`.
    pub fn join<'a>(&'a self, ids: impl IntoIterator<Item = &'a Id>, truth: &Path) -> Joined<'a> {
        let places: HashMap<&Id, usize> = ids
            .into_iter()
            .enumerate()
            .map(|(index, id)| (id, index))
            .collect();
        let mut order: Vec<(&Id, usize)> = places.iter().map(|(&id, &index)| (id, index)).collect();
        order.sort_by_key(|&(_, index)| index);
        let mut joined = Joined {
            texts: vec![None; places.len()],
            unknown: Vec::new(),
            incomplete: Vec::new(),
        };
        let problem = |id: &Id, problem: String| {
            EvalError::item(&self.file, format!("{} {id}", self.id_field), problem)
        };
        for (id, text) in &self.texts {
            match places.get(id) {
                Some(&index) => joined.texts[index] = Some(text),
                None => joined.unknown.push(problem(
                    id,
                    format!("is not in {}; it is left out", truth.display()),
                )),
            }
        }
        for (id, index) in order {
            match joined.texts[index] {
                None => {
                    let text = format!(
                        "has no result, but is in {}; it is left out",
                        truth.display()
                    );
                    joined.incomplete.push(problem(id, text));
                }
                Some(text) if text.trim().is_empty() => {
                    joined.incomplete.push(problem(
                        id,
                        "has an empty result; it counts as wrong".into(),
                    ));
                }
                Some(_) => {}
            }
        }
        joined
    }
}
