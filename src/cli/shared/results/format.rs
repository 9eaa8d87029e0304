//! A record as a line, and the lines of an earlier run.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::{Format, ResultsError, failed};
use crate::files::log::Extent;

/// The fields of a command's records.
#[derive(Debug, Clone)]
pub struct Columns {
    names: Vec<&'static str>,
    keys: usize,
}

impl Columns {
    /// `keys`, texts that together name a record, then one field or more that every record has, and `more` that may
    /// be missing. Separated values have them in this order.
    pub fn new(keys: &[&'static str], more: &[&'static str]) -> Self {
        Self {
            names: [keys, more].concat(),
            keys: keys.len(),
        }
    }

    /// What tells a record from the others: its key fields as one text.
    pub fn key<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
        // File names hold no zero byte, and a question's is kept apart by being last.
        values.into_iter().collect::<Vec<_>>().join("\0")
    }

    /// The key of a record; `None` where a key field is missing.
    fn key_of(&self, record: &Map<String, Value>) -> Option<String> {
        let values = self.names[..self.keys]
            .iter()
            .map(|name| record.get(*name).and_then(Value::as_str))
            .collect::<Option<Vec<_>>>()?;
        Some(Self::key(values))
    }

    /// The field that every line has behind its keys.
    fn first_result(&self) -> &'static str {
        self.names[self.keys]
    }
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub struct Existing {
    /// The keys of its whole lines.
    pub keys: HashSet<String>,
    /// Its whole lines, header included.
    pub extent: Extent,
}

impl Format {
    /// What a file begins with.
    pub fn header(self, columns: &Columns) -> Vec<u8> {
        match self {
            Self::JsonLines => Vec::new(),
            Self::Csv => csv_line(columns.names.iter().copied()),
        }
    }

    /// A record as a line, newline included.
    pub fn line(self, columns: &Columns, record: &Value) -> Vec<u8> {
        match self {
            Self::JsonLines => format!("{record}\n").into_bytes(),
            Self::Csv => csv_line(columns.names.iter().map(|name| field(record.get(name)))),
        }
    }

    /// Reads what is in `path`: nothing, where there is no such file.
    pub fn read(self, path: &Path, columns: &Columns) -> Result<Existing, ResultsError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Existing::default()),
            Err(error) => return Err(failed(path, "read")(error)),
        };
        let extent = Extent::of(BufReader::new(file), self == Self::Csv);
        let extent = extent.map_err(failed(path, "read"))?;
        let file = File::open(path).map_err(failed(path, "read"))?;
        let lines = BufReader::new(file.take(extent.whole));
        let keys = match self {
            Self::JsonLines => json_keys(lines, columns),
            Self::Csv => csv_keys(lines, columns),
        };
        let keys = keys.map_err(|problem| match problem {
            Unreadable::Io(cause) => failed(path, "read")(cause),
            Unreadable::Foreign(problem) => ResultsError::Foreign {
                file: path.into(),
                problem,
            },
        })?;
        Ok(Existing { keys, extent })
    }
}

/// Why lines cannot be read.
enum Unreadable {
    Io(io::Error),
    Foreign(String),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Foreign("not UTF-8 text".into()),
            _ => Self::Io(error),
        }
    }
}

fn json_keys(lines: impl BufRead, columns: &Columns) -> Result<HashSet<String>, Unreadable> {
    let mut keys = HashSet::new();
    for (index, line) in lines.lines().enumerate() {
        let line = line?;
        let foreign = |problem: &str| Unreadable::Foreign(format!("line {} {problem}", index + 1));
        let Ok(record) = serde_json::from_str::<Map<String, Value>>(&line) else {
            return Err(foreign("is no JSON object"));
        };
        let key = columns.key_of(&record);
        match key.filter(|_| record.contains_key(columns.first_result())) {
            Some(key) => keys.insert(key),
            None => {
                let names = columns.names[..=columns.keys].join(", ");
                return Err(foreign(&format!("lacks one of {names}")));
            }
        };
    }
    Ok(keys)
}

fn csv_keys(lines: impl Read, columns: &Columns) -> Result<HashSet<String>, Unreadable> {
    let foreign = |error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(error) => Unreadable::from(error),
        csv::ErrorKind::UnequalLengths { pos, .. } => Unreadable::Foreign(format!(
            "line {} has another number of fields than the header",
            pos.map_or(0, |pos| pos.line())
        )),
        _ => Unreadable::Foreign("not UTF-8 text".into()),
    };
    let mut reader = csv::Reader::from_reader(lines);
    let header = reader.headers().map_err(foreign)?;
    if !header.is_empty() && header != columns.names {
        return Err(Unreadable::Foreign(format!(
            "its columns are not {}",
            columns.names.join(",")
        )));
    }
    let mut keys = HashSet::new();
    for record in reader.records() {
        let record = record.map_err(foreign)?;
        keys.insert(Columns::key(record.iter().take(columns.keys)));
    }
    Ok(keys)
}

fn csv_line<F: AsRef<[u8]>>(fields: impl IntoIterator<Item = F>) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    // Writing to memory does not fail, and there is always a field.
    let _ = writer.write_record(fields);
    writer.into_inner().unwrap_or_default()
}

/// A value as a field: texts as they are, nothing for what is missing, all else as JSON.
fn field(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// Reads what a run before has left in `path`, in either format, and the record beside it.
#[cfg(feature = "fuzzing")]
pub fn fuzz(path: &Path) {
    let columns = Columns::new(&["image", "question"], &["answer"]);
    let _ = Format::JsonLines.read(path, &columns);
    let _ = Format::Csv.read(path, &columns);
    let _ = super::RunRecord::read(path);
}
