//! Predictions as a run makes them: a file that each batch is appended to and synced, so that a run
//! cut short goes on where it stopped, and files of several shards that join into one.
//!
//! The first line is `{"settings": {…}}`, what the run was asked; each other line an item of the
//! official results.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::eval::{EvalError, Id};
use crate::files::atomic;
use crate::files::bounded::{self, MAX_TEXT_BYTES};
use crate::files::log::Log;

/// What official result files call an item and its prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultFields {
    /// The item's id.
    pub id: &'static str,
    /// The prediction.
    pub text: &'static str,
}

impl ResultFields {
    /// COCO captions.
    pub const CAPTION: Self = Self {
        id: "image_id",
        text: "caption",
    };
    /// VQAv2 and GQA answers.
    pub const ANSWER: Self = Self {
        id: "question_id",
        text: "answer",
    };
    /// GQA's answers as its server takes them: the ids are texts there.
    pub const GQA: Self = Self {
        id: "questionId",
        text: "prediction",
    };
    /// VizWiz's answers.
    pub const VIZWIZ: Self = Self {
        id: "image",
        text: "answer",
    };
    /// A-OKVQA's answers: an object by question, not a list.
    pub const AOKVQA: Self = Self {
        id: "question_id",
        text: "direct_answer",
    };
    /// Candidates found for a query of retrieval, the best first; there is no official format.
    pub const RANKED: Self = Self {
        id: "query",
        text: "found",
    };

    /// An item of the results.
    fn item(self, id: &Id, text: &Value) -> Value {
        let id = match self {
            Self::GQA => id.to_string().into(),
            _ => id.to_json(),
        };
        json!({ self.id: id, self.text: text })
    }
}

/// Settings that are there for readers: files may be called otherwise and still be the same.
const FOR_READERS: [&str; 3] = ["model", "annotations", "questions"];
/// Where the images lie may differ from machine to machine, and so between the parts of one run.
const OF_THE_MACHINE: &str = "images";

/// Predictions by item, in memory and in a file.
#[derive(Debug)]
pub struct Predictions {
    file: PathBuf,
    /// Open once something was written.
    log: Option<Log>,
    fields: ResultFields,
    by_id: HashMap<Id, Value>,
    settings: Map<String, Value>,
    /// The settings in the file, if it has any.
    written: Option<Map<String, Value>>,
    /// Bytes of the file's whole lines.
    whole: usize,
}

impl Predictions {
    /// Reads `file`, if there is one. Nothing is written before [`Self::begin`] or [`Self::add`],
    /// so that a run that cannot start leaves no trace; settings of a file without predictions do
    /// not count. The setting `free` may be another than the file's: predictions do not depend on
    /// it.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or was made with other `settings`.
    pub fn open(
        file: &Path,
        fields: ResultFields,
        settings: &Map<String, Value>,
        free: Option<&str>,
    ) -> Result<Self, EvalError> {
        let bytes = match bounded::read(file, MAX_TEXT_BYTES) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.map_err(EvalError::read(file))?,
        };
        let (written, by_id, whole) = parse(file, fields, &bytes)?;
        if let (Some(written), false) = (&written, by_id.is_empty()) {
            let remedy = "use the same, or another --out";
            check_settings(file, written, settings, free, remedy)?;
        }
        Ok(Self {
            file: file.into(),
            log: None,
            fields,
            by_id,
            settings: settings.clone(),
            written,
            whole,
        })
    }

    /// Makes the file ready for predictions: with this run's settings, and without what an
    /// interruption left of a line.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn begin(&mut self) -> Result<(), EvalError> {
        if self.log.is_some() {
            return Ok(());
        }
        if self.written.as_ref() != Some(&self.settings) {
            let mut text = settings_line(&self.settings);
            if !self.by_id.is_empty() {
                let bytes = bounded::read(&self.file, MAX_TEXT_BYTES)
                    .map_err(EvalError::read(&self.file))?;
                let whole = String::from_utf8_lossy(&bytes[..self.whole.min(bytes.len())]);
                text.extend(whole.split_once('\n').map(|(_, items)| items));
            }
            write_whole(&self.file, &text)?;
            self.whole = text.len();
            self.written = Some(self.settings.clone());
        }
        let log = Log::resume(&self.file, self.whole as u64);
        self.log = Some(log.map_err(EvalError::write(&self.file))?);
        Ok(())
    }

    /// Joins the predictions in `parts` into `file`, which is made anew. The parts must be of one
    /// run's shards; where the images lay may differ.
    ///
    /// # Errors
    /// A part that cannot be read or is damaged, parts made with different settings, an item that
    /// two parts have different predictions for; a file that holds another run's predictions or
    /// cannot be written.
    pub fn merge(file: &Path, fields: ResultFields, parts: &[PathBuf]) -> Result<Self, EvalError> {
        let free = Some(OF_THE_MACHINE);
        let mut settings: Option<Map<String, Value>> = None;
        let mut text = String::new();
        let mut from: HashMap<Id, (Value, &Path)> = HashMap::new();
        for part in parts {
            let bytes = bounded::read(part, MAX_TEXT_BYTES).map_err(EvalError::read(part))?;
            let (made_with, by_id, _) = parse(part, fields, &bytes)?;
            let Some(made_with) = made_with else {
                return Err(EvalError::Empty {
                    file: part.clone(),
                    problem: "no settings in it; is it a predictions file?".into(),
                });
            };
            match &settings {
                Some(settings) => {
                    let remedy = "merge the shards of one run";
                    check_settings(part, &made_with, settings, free, remedy)?;
                }
                None => settings = Some(made_with),
            }
            let mut items: Vec<_> = by_id.into_iter().collect();
            items.sort_by(|a, b| a.0.cmp(&b.0));
            for (id, value) in items {
                match from.get(&id) {
                    None => {
                        text.push_str(&format!("{}\n", fields.item(&id, &value)));
                        from.insert(id, (value, part));
                    }
                    Some((other, _)) if *other == value => {}
                    Some((_, other)) => {
                        let problem = format!(
                            "has another prediction in {}; merge the shards of one run",
                            other.display()
                        );
                        return Err(EvalError::item(
                            part,
                            format!("{} {id}", fields.id),
                            problem,
                        ));
                    }
                }
            }
        }
        let settings = settings.unwrap_or_default();
        if let (false, Ok(bytes)) = (
            parts.iter().any(|part| part == file),
            bounded::read(file, MAX_TEXT_BYTES),
        ) && let (Some(earlier), by_id, _) = parse(file, fields, &bytes)?
            && !by_id.is_empty()
        {
            // The result of an earlier merge goes; another run's predictions may have taken days.
            check_settings(file, &earlier, &settings, free, "give another --out")?;
        }
        write_whole(file, &(settings_line(&settings) + &text))?;
        Self::open(file, fields, &settings, None)
    }

    /// The settings of the run that made `file`; `None` where its first line has none.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn settings(file: &Path) -> Result<Option<Map<String, Value>>, EvalError> {
        let bytes = bounded::read(file, MAX_TEXT_BYTES).map_err(EvalError::read(file))?;
        let first = bytes
            .split(|&byte| byte == b'\n')
            .next()
            .unwrap_or_default();
        let line: Option<Map<String, Value>> = serde_json::from_slice(first).ok();
        match line.and_then(|mut line| line.remove("settings")) {
            Some(Value::Object(settings)) => Ok(Some(settings)),
            _ => Ok(None),
        }
    }

    /// The prediction for an item.
    #[must_use]
    pub fn get(&self, id: &Id) -> Option<&Value> {
        self.by_id.get(id)
    }

    /// Predictions for items that are not among `ids`, which were read from `truth`.
    pub fn unknown<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a Id>,
        truth: &Path,
    ) -> Vec<EvalError> {
        let known: HashSet<&Id> = ids.into_iter().collect();
        let mut unknown: Vec<&Id> = self.by_id.keys().filter(|id| !known.contains(id)).collect();
        unknown.sort();
        let problem = format!("is not in {}; it is left out", truth.display());
        let error = |id: &Id| {
            let item = format!("{} {id}", self.fields.id);
            EvalError::item(&self.file, item, &problem)
        };
        unknown.into_iter().map(error).collect()
    }

    /// Those of `items` whose text is empty, which counts as wrong.
    pub fn empty<'a>(&self, items: impl IntoIterator<Item = (&'a Id, &'a str)>) -> Vec<EvalError> {
        let empty = items.into_iter().filter(|(_, text)| text.trim().is_empty());
        let error = |(id, _): (&Id, &str)| {
            let item = format!("{} {id}", self.fields.id);
            let problem = format!("has an empty {}; it counts as wrong", self.fields.text);
            EvalError::item(&self.file, item, problem)
        };
        empty.map(error).collect()
    }

    /// Adds predictions; they are on the disk when this returns.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add(&mut self, predictions: Vec<(Id, Value)>) -> Result<(), EvalError> {
        let lines = predictions
            .iter()
            .map(|(id, text)| format!("{}\n", self.fields.item(id, text)));
        self.append(&lines.collect::<String>())?;
        self.by_id.extend(predictions);
        Ok(())
    }

    /// The official results of the items `ids`, those without a prediction left out; `fields` is
    /// what they call them.
    #[must_use]
    pub fn official<'a>(
        &self,
        fields: ResultFields,
        ids: impl IntoIterator<Item = &'a Id>,
    ) -> Value {
        let predicted = ids
            .into_iter()
            .filter_map(|id| Some((id, self.by_id.get(id)?)));
        if fields == ResultFields::AOKVQA {
            let items = predicted.map(|(id, text)| (id.to_string(), json!({ fields.text: text })));
            return Value::Object(items.collect());
        }
        predicted.map(|(id, text)| fields.item(id, text)).collect()
    }

    fn append(&mut self, text: &str) -> Result<(), EvalError> {
        self.begin()?;
        let Some(log) = &mut self.log else {
            return Ok(()); // begin has opened it
        };
        let written = log.append(text.as_bytes()).and_then(|()| log.sync());
        written.map_err(EvalError::write(&self.file))
    }
}

/// The first line of a predictions file.
fn settings_line(settings: &Map<String, Value>) -> String {
    format!("{}\n", json!({ "settings": settings }))
}

type Parsed = (Option<Map<String, Value>>, HashMap<Id, Value>, usize);

/// Settings, predictions, and the bytes that whole lines take.
fn parse(file: &Path, fields: ResultFields, bytes: &[u8]) -> Result<Parsed, EvalError> {
    let (mut settings, mut by_id, mut whole) = (None, HashMap::new(), 0);
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let object = line
            .ends_with(b"\n")
            .then(|| serde_json::from_slice::<Map<String, Value>>(line).ok())
            .flatten();
        let damaged = |problem: &str| {
            let problem = format!("{problem}; take the line out and run again");
            EvalError::item(file, format!("line {}", index + 1), problem)
        };
        let Some(mut object) = object else {
            // The last line is what an interruption may have cut; before it nothing may be missing.
            if whole + line.len() == bytes.len() {
                break;
            }
            return Err(damaged("is damaged"));
        };
        if index == 0 {
            match object.remove("settings") {
                Some(Value::Object(found)) => settings = Some(found),
                _ => {
                    return Err(damaged(
                        "has no settings: this is no predictions file of this program",
                    ));
                }
            }
        } else {
            let id = match object.get(fields.id) {
                Some(Value::Number(number)) => Id::new(&number.to_string()),
                Some(Value::String(text)) => Id::new(text),
                _ => return Err(damaged(&format!("has no {}", fields.id))),
            };
            let Some(text) = object.remove(fields.text) else {
                let (id_field, text_field) = (fields.id, fields.text);
                return Err(damaged(&format!("({id_field} {id}) has no {text_field}")));
            };
            if fields != ResultFields::RANKED && !text.is_string() {
                let (id_field, text_field) = (fields.id, fields.text);
                return Err(damaged(&format!(
                    "({id_field} {id}) has a {text_field} that is no string"
                )));
            }
            if by_id.insert(id.clone(), text).is_some() {
                return Err(damaged(&format!("has the {} {id} again", fields.id)));
            }
        }
        whole += line.len();
    }
    Ok((settings, by_id, whole))
}

/// Refuses predictions made with other settings than are `asked`; that of name `free` may differ.
fn check_settings(
    file: &Path,
    made_with: &Map<String, Value>,
    asked: &Map<String, Value>,
    free: Option<&str>,
    remedy: &str,
) -> Result<(), EvalError> {
    let value = |settings: &Map<String, Value>, key: &str| {
        settings.get(key).cloned().unwrap_or(Value::Null)
    };
    let mut keys = made_with.keys().chain(asked.keys());
    let differs = keys.find(|key| {
        !FOR_READERS.contains(&key.as_str())
            && Some(key.as_str()) != free
            && value(made_with, key) != value(asked, key)
    });
    let Some(key) = differs else {
        return Ok(());
    };
    let (old, new) = (value(made_with, key), value(asked, key));
    // A file's hash says nothing to people; its name does.
    let named = ["_fingerprint", "_hash"]
        .iter()
        .find_map(|end| key.strip_suffix(end));
    let problem = match named {
        Some(what) if old.is_null() => {
            format!("does not say which {what} it was made with; {remedy}")
        }
        Some(what) => {
            let (old, new) = (value(made_with, what), value(asked, what));
            let same = if old == new {
                " of that name, but of other content"
            } else {
                ""
            };
            format!("was made with another {what}: {old}, not {new}{same}; {remedy}")
        }
        None if old.is_null() => format!("was made without {key}, not with {new}; {remedy}"),
        None if new.is_null() => format!("was made with {key} {old}, not without; {remedy}"),
        None => format!("was made with {key} {old}, not {new}; {remedy}"),
    };
    Err(EvalError::item(file, "it", problem))
}

/// A part of a dataset: item i belongs to shard `i mod count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 0.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl Shard {
    /// Whether item `index` is in it.
    #[must_use]
    pub fn has(self, index: usize) -> bool {
        index % self.count == self.index
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    /// `i/n`, i from 1 to n.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text
            .split_once('/')
            .and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((i, count)) if (1..=count).contains(&i) => Ok(Self {
                index: i - 1,
                count,
            }),
            _ => Err("give i/n with i from 1 to n, such as 2/4".into()),
        }
    }
}

/// Writes a file whole and on the disk, or not at all.
///
/// # Errors
/// A file that cannot be written.
pub fn write_whole(file: &Path, text: &str) -> Result<(), EvalError> {
    atomic::write_synced(file, text.as_bytes()).map_err(EvalError::write(file))
}

/// Reads the predictions in `file`.
#[cfg(feature = "fuzzing")]
pub fn fuzz(file: &Path) {
    let _ = Predictions::settings(file);
    let _ = Predictions::open(file, ResultFields::CAPTION, &Map::new(), None);
}

#[cfg(test)]
mod tests;
