//! Results in the official submission formats, and how they fit the truth.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use serde_json::value::RawValue;

use super::datasets::{ListedImage, ids_in_names};
use super::json::{JsonFile, Top};
use super::tables::{self, Row};
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
    /// The images that they are for, where the file gives these in place of ids.
    images: Vec<String>,
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
    /// Reads `[{"image_id", "caption"}]`, or such objects a line, as this program's runs write
    /// them.
    ///
    /// # Errors
    /// Another layout; a missing or wrong field or an image given twice, named with its item.
    pub fn read_captions(file: &Path) -> Result<Self, EvalError> {
        let json = JsonFile::read(file)?;
        if let Some(rows) = tables::read(json.text(), file, &["image_id"]) {
            return Self::from_table(file, rows?);
        }
        Self::read(
            &json,
            file,
            &["image_id"],
            &["caption", "pred_caption"],
            "[{\"image_id\", \"caption\"}, …], or the lines of a run of captions",
        )
    }

    /// Captions in a table, as a run of captions writes it: one an image.
    fn from_table(file: &Path, rows: Vec<Row>) -> Result<Self, EvalError> {
        let mut seen = HashMap::new();
        for row in &rows {
            if let Some(first) = seen.insert(row.image.as_str(), row.line) {
                let problem = format!("is the image of line {first} too; keep one of the two");
                let item = format!("line {} (image {})", row.line, row.image);
                return Err(EvalError::item(file, item, problem));
            }
        }
        let images: Vec<String> = rows.iter().map(|row| row.image.clone()).collect();
        let texts = rows.into_iter().map(|row| row.captions.join(" "));
        Ok(Self {
            file: file.into(),
            id_field: "image",
            texts: ids_in_names(&images).into_iter().zip(texts).collect(),
            images,
        })
    }

    /// Reads `[{"question_id", "answer"}]`, LAVIS's `pred_ans` for GQA, or GQA's own
    /// `[{"questionId", "prediction"}]`, VizWiz's `[{"image", "answer"}]`, or A-OKVQA's object of answers.
    ///
    /// # Errors
    /// As [`Results::read_captions`].
    pub fn read_answers(file: &Path) -> Result<Self, EvalError> {
        let json = JsonFile::read(file)?;
        if let Some(texts) = direct_answers(&json)? {
            return Ok(Self {
                file: file.into(),
                id_field: "question_id",
                texts,
                images: Vec::new(),
            });
        }
        Self::read(
            &json,
            file,
            &["question_id", "questionId", "image"],
            &["answer", "pred_ans", "prediction", "pred_answer"],
            "[{\"question_id\", \"answer\"}, …], or A-OKVQA's {QUESTION_ID: {\"direct_answer\"}}",
        )
    }

    fn read(
        json: &JsonFile,
        file: &Path,
        id_fields: &[&'static str],
        text_fields: &[&str],
        expected: &'static str,
    ) -> Result<Self, EvalError> {
        let lines = json.lines().filter(|lines| lines.len() > 1);
        let items = match lines {
            Some(lines) => lines,
            None => match json.top(expected)? {
                Top::List(items) => items,
                Top::Object(top) if text_fields.iter().any(|field| top.has(field)) => {
                    json.lines().unwrap_or_default()
                }
                Top::Object(_) => {
                    return Err(json.layout("it holds an object".into(), expected));
                }
            },
        };
        let mut id_field = id_fields[0];
        let (mut ids, mut texts) = (
            Vec::with_capacity(items.len()),
            Vec::with_capacity(items.len()),
        );
        let mut images = Vec::new();
        for (index, raw) in items.into_iter().enumerate() {
            let item = json.item(raw, "", index, id_field)?;
            if index == 0 && item.get("settings").is_some() {
                continue; // the first line of predictions.jsonl
            }
            // An image is the id of VizWiz's questions; beside a question it is not.
            let is_id = |field: &str| field != "image" || item.get("question").is_none();
            let known = id_fields
                .iter()
                .find(|field| item.get(field).is_some() && is_id(field));
            id_field = known.copied().unwrap_or(id_field);
            let field = text_fields.iter().find(|field| item.get(field).is_some());
            texts.push(item.string(field.unwrap_or(&text_fields[0]))?.to_owned());
            let image = item.get("image").and_then(Value::as_str);
            match (known, image) {
                (None, Some(image)) if id_field == "image_id" && ids.is_empty() => {
                    images.push(image.to_owned());
                }
                (None, Some(_)) if id_field != "image_id" => {
                    let problem = "is missing; `eval vqa` writes results.json with it";
                    return Err(item.wrong(id_field, problem));
                }
                // Either all items have ids, or all have images.
                _ if images.is_empty() => ids.push(item.id(id_field)?),
                _ => return Err(item.wrong("image", "is missing; the items before have it")),
            }
        }
        if texts.is_empty() {
            let problem = "no result in it; pass the results.json of a run that did some".into();
            return Err(EvalError::Empty {
                file: file.into(),
                problem,
            });
        }
        let called = |index: usize| match images.is_empty() {
            true => (id_field, ids[index].to_string()),
            false => ("image", images[index].clone()),
        };
        let mut seen = HashMap::new();
        for index in 0..texts.len() {
            let (field, name) = called(index);
            if let Some(first) = seen.insert(name.clone(), index) {
                let problem = format!("is the {field} of item {first} too; keep one of the two");
                let item = format!("item {index} ({field} {name})");
                return Err(EvalError::item(file, item, problem));
            }
        }
        if !images.is_empty() {
            ids = ids_in_names(&images);
        }
        Ok(Self {
            file: file.into(),
            id_field,
            texts: ids.into_iter().zip(texts).collect(),
            images,
        })
    }

    /// Calls texts that are for named images as `listed` calls those: the images at these paths, of which either
    /// side may lack the leading folders. A name that is no image's there stays, and is unknown.
    ///
    /// # Errors
    /// Two texts for one image.
    pub fn named_in(mut self, listed: &[ListedImage]) -> Result<Self, EvalError> {
        let (mut whole, mut by_ending) = (HashMap::new(), HashMap::new());
        let paths = listed.iter().flat_map(|image| {
            image
                .paths
                .iter()
                .map(move |path| (path.as_str(), &image.id))
        });
        for (path, id) in paths {
            whole.insert(path, id);
            for ending in endings(path) {
                let place = by_ending.entry(ending).or_insert(Some(id));
                *place = place.filter(|other| *other == id);
            }
        }
        let mut seen: HashMap<&Id, &str> = HashMap::new();
        for ((id, _), image) in self.texts.iter_mut().zip(&self.images) {
            let shorter = || endings(image).find_map(|ending| whole.get(ending).copied());
            let longer = || by_ending.get(image.as_str()).copied().flatten();
            let Some(known) = shorter().or_else(longer) else {
                if !whole.is_empty() {
                    *id = Id::Text(image.clone());
                }
                continue;
            };
            if let Some(other) = seen.insert(known, image) {
                let problem = format!("is the image of {other} too; keep one of the two");
                return Err(EvalError::item(
                    &self.file,
                    format!("image {image}"),
                    problem,
                ));
            }
            *id = known.clone();
        }
        Ok(self)
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

/// A-OKVQA's predictions: an object of answers by question, each `{"direct_answer": TEXT}` or the text;
/// `None` for any other file.
fn direct_answers(json: &JsonFile) -> Result<Option<Vec<(Id, String)>>, EvalError> {
    if !json.text().trim_start().starts_with('{') || json.lines().is_some_and(|it| it.len() > 1) {
        return Ok(None);
    }
    let Top::Object(top) = json.top("")? else {
        return Ok(None);
    };
    let answer = |raw: &RawValue| match serde_json::from_str::<Value>(raw.get()) {
        Ok(Value::Object(fields)) => fields.get("direct_answer")?.as_str().map(str::to_owned),
        _ => None,
    };
    let answers = top
        .fields()
        .map(|(id, raw)| Some((Id::new(id), answer(raw)?)));
    let answers: Option<Vec<_>> = answers.collect();
    Ok(answers.filter(|answers| !answers.is_empty()))
}

/// A path, then without its first folder, and so on to the name alone.
fn endings(path: &str) -> impl Iterator<Item = &str> {
    let starts = std::iter::once(0).chain(path.match_indices('/').map(|(slash, _)| slash + 1));
    starts.map(|start| &path[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(Id, String)>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("results.json");
        std::fs::write(&file, bytes).expect("written");
        let results = Results::read_captions(&file);
        results
            .map(|results| results.texts)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn text_is_utf_8_with_a_mark_or_without() {
        let text = "[{\"image_id\": 1, \"caption\": \"un caf\u{e9}\"}]";
        let expected = vec![(Id::Number(1), "un caf\u{e9}".to_owned())];
        assert_eq!(read(text.as_bytes()), Ok(expected.clone()));
        let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
        assert_eq!(read(&marked), Ok(expected));
        let utf_16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let latin_1: Vec<u8> = text.chars().map(|c| c as u8).collect();
        let marked = [b"\xff\xfe", &utf_16[..]].concat();
        assert_eq!(
            read(&marked),
            Ok(vec![(Id::Number(1), "un caf\u{e9}".to_owned())])
        );
        for (bytes, part) in [
            (utf_16, "UTF-16"),
            (latin_1, "byte 0xe9 in line 1; it may be Latin-1"),
        ] {
            let error = read(&bytes).expect_err("refused");
            assert!(
                error.contains(part) && error.contains("save it as UTF-8"),
                "{error}"
            );
        }
    }

    #[test]
    fn objects_a_line_are_results_too() {
        let kept =
            b"{\"settings\": {\"task\": \"caption\"}}\n{\"image_id\": 4, \"caption\": \"a\"}\n";
        assert_eq!(read(kept), Ok(vec![(Id::Number(4), "a".into())]));
        let said = b"{\"image\": \"x/COCO_000012.jpg\", \"caption\": \"a\"}\n";
        assert_eq!(read(said), Ok(vec![(Id::Number(12), "a".into())]));
        let two = [&said[..], b"{\"image\": \"cat.png\", \"caption\": \"b\"}\n"].concat();
        let expected = vec![
            (Id::Number(12), "a".into()),
            (Id::Text("cat".into()), "b".into()),
        ];
        assert_eq!(read(&two), Ok(expected));
        let error = read(b"{\"images\": []}").expect_err("refused");
        assert!(error.contains("it holds an object; expected [{"), "{error}");
    }

    #[test]
    fn images_are_called_as_the_annotations_call_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("said.jsonl");
        let line = |image: &str| format!("{{\"image\": \"{image}\", \"caption\": \"a\"}}\n");
        let said = [
            "/data/val/1.png",
            "2.png",
            "test/1.png",
            "test/2.png",
            "other_9.png",
        ]
        .map(line);
        std::fs::write(&file, said.concat()).expect("written");
        let results = Results::read_captions(&file).expect("read");
        let listed = [("val/1.png", 70), ("a/val/2.png", 71), ("test/1.png", 72)];
        let listed = listed.map(|(path, id)| ListedImage {
            id: Id::Number(id),
            paths: vec![path.into()],
        });
        let ids: Vec<_> = results
            .named_in(&listed)
            .expect("each once")
            .texts
            .into_iter()
            .map(|(id, _)| id.to_string())
            .collect();
        assert_eq!(ids, ["70", "71", "72", "test/2.png", "other_9.png"]);
        let twice = ["/data/val/1.png", "val/1.png"].map(line);
        std::fs::write(&file, twice.concat()).expect("written");
        let results = Results::read_captions(&file).expect("read");
        let error = results.named_in(&listed).expect_err("twice").to_string();
        assert!(
            error.contains("image val/1.png is the image of /data/val/1.png too"),
            "{error}"
        );
    }
}
