//! Predictions as a run makes them: a file that each batch is appended to and synced, so that a run cut short goes on
//! where it stopped, and files of several shards that join into one.
//!
//! The first line is `{"settings": {…}}`, what the run was asked; each other line an item of the official results.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{EvalError, Id};

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
    /// Candidates found for a query of retrieval, the best first; there is no official format.
    pub const RANKED: Self = Self {
        id: "query",
        text: "found",
    };
}

/// Predictions by item, in memory and in a file.
#[derive(Debug)]
pub struct Predictions {
    file: PathBuf,
    handle: File,
    fields: ResultFields,
    by_id: HashMap<Id, Value>,
}

impl Predictions {
    /// Opens `file`, or makes it. What an interrupted write left of a line is dropped.
    ///
    /// # Errors
    /// A file that cannot be read or written, is damaged, or was made with other `settings`.
    pub fn open(
        file: &Path,
        fields: ResultFields,
        settings: &Map<String, Value>,
    ) -> Result<Self, EvalError> {
        let cannot = |cause| EvalError::Write {
            file: file.into(),
            cause,
        };
        let bytes = match std::fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(cause) => {
                return Err(EvalError::Read {
                    file: file.into(),
                    cause,
                });
            }
        };
        let (made_with, by_id, whole) = parse(file, fields, &bytes)?;
        if let Some(made_with) = &made_with {
            check_settings(file, made_with, settings)?;
        }
        let mut handle = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(file)
            .map_err(cannot)?;
        handle.set_len(whole as u64).map_err(cannot)?;
        handle.seek(SeekFrom::End(0)).map_err(cannot)?;
        let mut predictions = Self {
            file: file.into(),
            handle,
            fields,
            by_id,
        };
        if made_with.is_none() {
            predictions.append(&format!("{}\n", json!({ "settings": settings })))?;
        }
        Ok(predictions)
    }

    /// Joins the predictions in `parts` into a new file. The parts must be of one run's shards.
    ///
    /// # Errors
    /// A part that cannot be read or is damaged, parts made with different settings, an item that two parts have
    /// different predictions for; a file that cannot be written.
    pub fn merge(file: &Path, fields: ResultFields, parts: &[PathBuf]) -> Result<Self, EvalError> {
        let mut settings: Option<Map<String, Value>> = None;
        let mut lines = Vec::new();
        let mut from: HashMap<Id, (Value, &Path)> = HashMap::new();
        for part in parts {
            let bytes = std::fs::read(part).map_err(|cause| EvalError::Read {
                file: part.clone(),
                cause,
            })?;
            let (made_with, by_id, _) = parse(part, fields, &bytes)?;
            let Some(made_with) = made_with else {
                return Err(EvalError::Empty {
                    file: part.clone(),
                    problem: "no settings in it; is it a predictions file?".into(),
                });
            };
            match &settings {
                Some(settings) => check_settings(part, &made_with, settings)?,
                None => settings = Some(made_with),
            }
            let mut items: Vec<_> = by_id.into_iter().collect();
            items.sort_by(|a, b| a.0.cmp(&b.0));
            for (id, text) in items {
                match from.get(&id) {
                    None => {
                        lines.push((id.clone(), text.clone()));
                        from.insert(id, (text, part));
                    }
                    Some((other, _)) if *other == text => {}
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
        let mut merged = Self::open(file, fields, &settings.unwrap_or_default())?;
        lines.retain(|(id, _)| !merged.by_id.contains_key(id));
        merged.add(lines)?;
        Ok(merged)
    }

    /// The settings of the run that made `file`; `None` where its first line has none.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn settings(file: &Path) -> Result<Option<Map<String, Value>>, EvalError> {
        let bytes = std::fs::read(file).map_err(|cause| EvalError::Read {
            file: file.into(),
            cause,
        })?;
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

    /// Where they are kept.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
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
            .map(|(id, text)| format!("{}\n", self.item(id, text)));
        self.append(&lines.collect::<String>())?;
        self.by_id.extend(predictions);
        Ok(())
    }

    /// The official results of the items `ids`, those without a prediction left out.
    #[must_use]
    pub fn official<'a>(&self, ids: impl IntoIterator<Item = &'a Id>) -> Value {
        let items = ids
            .into_iter()
            .filter_map(|id| Some(self.item(id, self.by_id.get(id)?)));
        items.collect()
    }

    fn item(&self, id: &Id, text: &Value) -> Value {
        json!({ self.fields.id: id.to_json(), self.fields.text: text })
    }

    fn append(&mut self, text: &str) -> Result<(), EvalError> {
        let written = self
            .handle
            .write_all(text.as_bytes())
            .and_then(|()| self.handle.sync_data());
        written.map_err(|cause| EvalError::Write {
            file: self.file.clone(),
            cause,
        })
    }
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

fn check_settings(
    file: &Path,
    made_with: &Map<String, Value>,
    asked: &Map<String, Value>,
) -> Result<(), EvalError> {
    let keys = made_with.keys().chain(asked.keys());
    let value = |settings: &Map<String, Value>, key: &str| {
        settings.get(key).cloned().unwrap_or(Value::Null)
    };
    match keys
        .into_iter()
        .find(|key| value(made_with, key) != value(asked, key))
    {
        None => Ok(()),
        Some(key) => {
            let (old, new) = (value(made_with, key), value(asked, key));
            let problem =
                format!("was made with {key} {old}, not {new}; use the same, or another --out");
            Err(EvalError::item(file, "it", problem))
        }
    }
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

/// Writes a file whole: under a temporary name, synced, renamed. There is never half a file of that name.
///
/// # Errors
/// A file that cannot be written.
pub fn write_whole(file: &Path, text: &str) -> Result<(), EvalError> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = file.with_file_name(name);
    let write = || {
        let mut handle = File::create(&temporary)?;
        handle.write_all(text.as_bytes())?;
        handle.sync_all()?;
        std::fs::rename(&temporary, file)
    };
    write().map_err(|cause| EvalError::Write {
        file: file.into(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: ResultFields = ResultFields::CAPTION;

    fn settings(beams: i64) -> Map<String, Value> {
        Map::from_iter([("beams".to_owned(), json!(beams))])
    }

    fn add(predictions: &mut Predictions, ids: &[i64]) {
        let items = ids
            .iter()
            .map(|&id| (Id::Number(id), json!(format!("text {id}"))));
        predictions.add(items.collect()).expect("written");
    }

    #[test]
    fn a_run_cut_at_any_byte_goes_on_without_loss() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.jsonl");
        let mut whole = Predictions::open(&file, FIELDS, &settings(1)).expect("made");
        add(&mut whole, &[1, 2]);
        add(&mut whole, &[3]);
        let bytes = std::fs::read(&file).expect("bytes");
        for cut in 0..=bytes.len() {
            std::fs::write(&file, &bytes[..cut]).expect("cut");
            let mut again = Predictions::open(&file, FIELDS, &settings(1)).expect("opened");
            let missing: Vec<i64> = (1..=3)
                .filter(|&id| again.get(&Id::Number(id)).is_none())
                .collect();
            let lines = bytes[..cut].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(missing.len(), 3 - lines.saturating_sub(1), "cut at {cut}");
            add(&mut again, &missing);
            assert_eq!(std::fs::read(&file).expect("bytes"), bytes, "cut at {cut}");
        }
    }

    #[test]
    fn what_does_not_belong_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.jsonl");
        add(
            &mut Predictions::open(&file, FIELDS, &settings(1)).expect("made"),
            &[1, 2],
        );
        let error = |file: &Path, beams| {
            Predictions::open(file, FIELDS, &settings(beams))
                .expect_err("refused")
                .to_string()
        };
        assert!(error(&file, 5).contains("beams 1, not 5"));
        let text = std::fs::read_to_string(&file).expect("text");
        for (from, to, part) in [
            ("text 1\",", "text 1,", "line 2 is damaged"),
            ("\"image_id\":2", "\"image_id\":1", "image_id 1 again"),
            ("{\"settings\"", "{\"other\"", "no settings"),
        ] {
            let spoilt = text.replace(from, to) + "{}\n";
            std::fs::write(&file, spoilt).expect("spoilt");
            assert!(error(&file, 1).contains(part), "{}", error(&file, 1));
        }
    }

    #[test]
    fn shards_join_and_disagreeing_ones_do_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for (name, ids) in [("a", [1, 3]), ("b", [2, 4])] {
            add(
                &mut Predictions::open(&path(name), FIELDS, &settings(1)).expect("made"),
                &ids,
            );
        }
        let merged =
            Predictions::merge(&path("m"), FIELDS, &[path("a"), path("b")]).expect("merged");
        let ids: Vec<Id> = (1..=4).map(Id::Number).collect();
        assert_eq!(merged.official(&ids).as_array().map(Vec::len), Some(4));
        let mut other = Predictions::open(&path("c"), FIELDS, &settings(1)).expect("made");
        other
            .add(vec![(Id::Number(1), json!("something else"))])
            .expect("written");
        let error =
            Predictions::merge(&path("n"), FIELDS, &[path("a"), path("c")]).expect_err("refused");
        assert!(error.to_string().contains("image_id 1"), "{error}");
        Predictions::open(&path("d"), FIELDS, &settings(2)).expect("made");
        assert!(Predictions::merge(&path("o"), FIELDS, &[path("a"), path("d")]).is_err());
    }

    #[test]
    fn shards_take_every_item_once() {
        let shards: Vec<Shard> = (1..=3)
            .map(|i| format!("{i}/3").parse().expect("a shard"))
            .collect();
        for item in 0..10 {
            assert_eq!(shards.iter().filter(|shard| shard.has(item)).count(), 1);
        }
        for wrong in ["0/3", "4/3", "1", "a/b", "1/0", ""] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
