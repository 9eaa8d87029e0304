//! JSON files of datasets and results, read item by item, so that what is wrong is named with its
//! id and a large file is never held as a tree.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::files::bounded::{self, MAX_TEXT_BYTES};
use crate::files::text;

use super::EvalError;

/// An image's, question's or text's id. `5` and `"5"` are the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// A number.
    Number(i64),
    /// Anything else.
    Text(String),
}

impl Id {
    /// The id that `text` is.
    #[must_use]
    pub fn new(text: &str) -> Self {
        match text.parse::<i64>() {
            Ok(number) if number.to_string() == text => Self::Number(number),
            _ => Self::Text(text.to_owned()),
        }
    }

    /// As the official result files write it: a number where it is one.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Number(number) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Text(text) => write!(formatter, "{text}"),
        }
    }
}

/// A JSON file's text.
pub(super) struct JsonFile {
    file: PathBuf,
    text: String,
}

/// What a JSON file has at its top.
pub(super) enum Top<'a> {
    /// A list of items.
    List(Vec<&'a RawValue>),
    /// An object of sections.
    Object(Object<'a>),
}

/// The fields of an object, in the file's order.
pub(super) struct Object<'a> {
    fields: Vec<(String, &'a RawValue)>,
    /// The first name that came again.
    twice: Option<String>,
}

impl<'a> Object<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        let mut fields = self.fields.iter();
        fields.find_map(|(known, value)| (known == name).then_some(*value))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Names and values.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.fields
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
    }
}

impl<'de> serde::Deserialize<'de> for Object<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Object<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Self::Value, A::Error> {
                let (mut fields, mut seen, mut twice) = (Vec::new(), HashSet::new(), None);
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    if !seen.insert(name.clone()) {
                        twice.get_or_insert(name.clone());
                    }
                    fields.push((name, value));
                }
                Ok(Object { fields, twice })
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

impl JsonFile {
    /// Reads a text in any encoding that is [known](text::decode).
    pub(super) fn read(file: &Path) -> Result<Self, EvalError> {
        let bytes = bounded::read(file, MAX_TEXT_BYTES).map_err(EvalError::read(file))?;
        match text::decode(&bytes) {
            Ok(text) => Ok(Self {
                file: file.into(),
                text: text.into_owned(),
            }),
            Err(error) => Err(EvalError::Encoding {
                file: file.into(),
                found: error.found().into(),
            }),
        }
    }

    /// All of it.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The objects of a file that has one a line; `None` for any other.
    pub(super) fn lines(&self) -> Option<Vec<&RawValue>> {
        let lines = self.text.lines().filter(|line| !line.trim().is_empty());
        let object = |line| {
            let raw: &RawValue = serde_json::from_str(line).ok()?;
            raw.get().starts_with('{').then_some(raw)
        };
        lines.map(object).collect()
    }

    /// The top of the file, whose layout should be `expected`.
    pub(super) fn top(&self, expected: &'static str) -> Result<Top<'_>, EvalError> {
        match self.text.trim_start().chars().next() {
            Some('[') => Ok(Top::List(self.parse(&self.text)?)),
            Some('{') => {
                let object: Object<'_> = self.parse(&self.text)?;
                match &object.twice {
                    None => Ok(Top::Object(object)),
                    Some(name) => Err(EvalError::item(
                        &self.file,
                        format!("{name:?}"),
                        "is there twice; each may be there once, so take one out",
                    )),
                }
            }
            _ => {
                let value: Value = self.parse(&self.text)?;
                Err(self.layout(format!("it holds {}", kind(&value)), expected))
            }
        }
    }

    /// A section of the object at the top: a list of items.
    pub(super) fn section<'a>(
        &'a self,
        top: &Object<'a>,
        name: &str,
        expected: &'static str,
    ) -> Result<Vec<&'a RawValue>, EvalError> {
        let Some(section) = top.get(name) else {
            return Err(self.layout(format!("it has no \"{name}\""), expected));
        };
        if !section.get().starts_with('[') {
            return Err(self.layout(format!("its \"{name}\" is no list"), expected));
        }
        self.parse(section.get())
    }

    /// The items of a section, objects; `id_field` is the field to call them by.
    pub(super) fn items<'a>(
        &'a self,
        top: &Object<'a>,
        section: &'a str,
        expected: &'static str,
        id_field: &'a str,
    ) -> Result<impl Iterator<Item = Result<Item<'a>, EvalError>>, EvalError> {
        let items = self.section(top, section, expected)?.into_iter();
        let item = move |(index, raw)| self.item(raw, section, index, id_field);
        Ok(items.enumerate().map(item))
    }

    fn parse<'a, T: serde::Deserialize<'a>>(&self, text: &'a str) -> Result<T, EvalError> {
        serde_json::from_str(text).map_err(|cause| EvalError::Json {
            file: self.file.clone(),
            cause,
        })
    }

    pub(super) fn layout(&self, problem: String, expected: &'static str) -> EvalError {
        EvalError::Layout {
            file: self.file.clone(),
            problem,
            expected,
        }
    }

    /// Item `index` of `section`, an object. `id_field` is the field to call it by.
    pub(super) fn item(
        &self,
        raw: &RawValue,
        section: &str,
        index: usize,
        id_field: &str,
    ) -> Result<Item<'_>, EvalError> {
        let name = match section {
            "" => format!("item {index}"),
            _ => format!("{section}[{index}]"),
        };
        let mut item = self.named_item(raw, name)?;
        let id = item.get(id_field);
        if let Some(id) = id.filter(|id| id.is_string() || id.is_number()) {
            let id = id.to_string();
            item.name = format!("{} ({id_field} {})", item.name, id.trim_matches('"'));
        }
        Ok(item)
    }

    /// An item, an object, that errors call `name`.
    pub(super) fn named_item(&self, raw: &RawValue, name: String) -> Result<Item<'_>, EvalError> {
        match self.parse(raw.get())? {
            Value::Object(fields) => Ok(Item {
                file: &self.file,
                name,
                fields,
            }),
            other => Err(EvalError::item(
                &self.file,
                name,
                format!(
                    "is {}; expected an object: correct the file or get it anew",
                    kind(&other)
                ),
            )),
        }
    }
}

/// An object of a file, with the name that errors call it by.
#[derive(Debug)]
pub(super) struct Item<'a> {
    file: &'a Path,
    pub(super) name: String,
    fields: Map<String, Value>,
}

impl Item<'_> {
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field)
    }

    /// An error about one of its fields.
    pub(super) fn wrong(&self, field: &str, problem: impl Into<String>) -> EvalError {
        EvalError::Field {
            file: self.file.into(),
            item: self.name.clone(),
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// An error about the whole of it.
    pub(super) fn error(&self, problem: impl Into<String>) -> EvalError {
        EvalError::item(self.file, self.name.clone(), problem)
    }

    pub(super) fn required(&self, field: &str) -> Result<&Value, EvalError> {
        self.get(field)
            .ok_or_else(|| self.wrong(field, "is missing"))
    }

    fn not(&self, field: &str, value: &Value, expected: &str) -> EvalError {
        self.wrong(field, format!("is {}; expected {expected}", kind(value)))
    }

    pub(super) fn string(&self, field: &str) -> Result<&str, EvalError> {
        let value = self.required(field)?;
        value
            .as_str()
            .ok_or_else(|| self.not(field, value, "a string"))
    }

    /// The path of an image.
    pub(super) fn path(&self, field: &str) -> Result<&str, EvalError> {
        match self.string(field)?.trim() {
            "" => Err(self.wrong(field, "is empty; expected an image's path")),
            _ => self.string(field),
        }
    }

    /// A string, where the field is there at all.
    pub(super) fn optional_string(&self, field: &str) -> Result<Option<&str>, EvalError> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.string(field).map(Some),
        }
    }

    /// The string `inner` of the object `field`, where either is there at all.
    pub(super) fn optional_inner_string(
        &self,
        field: &str,
        inner: &str,
    ) -> Result<Option<&str>, EvalError> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(fields)) => match fields.get(inner) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(text)) => Ok(Some(text)),
                Some(other) => Err(self.not(&format!("{field}.{inner}"), other, "a string")),
            },
            Some(other) => Err(self.not(field, other, "an object")),
        }
    }

    pub(super) fn id(&self, field: &str) -> Result<Id, EvalError> {
        match self.required(field)? {
            Value::Number(number) if number.is_i64() => Ok(Id::new(&number.to_string())),
            Value::Number(number) if number.is_u64() => {
                Err(self.wrong(field, format!("is {number}; expected at most {}", i64::MAX)))
            }
            Value::String(text) if !text.is_empty() => Ok(Id::new(text)),
            Value::String(_) => Err(self.wrong(field, "is empty")),
            other => Err(self.not(field, other, "a whole number or a string")),
        }
    }

    pub(super) fn list(&self, field: &str) -> Result<&[Value], EvalError> {
        let value = self.required(field)?;
        match value.as_array() {
            Some(list) => Ok(list),
            None => Err(self.not(field, value, "a list")),
        }
    }

    /// A list of strings, or of objects that have the string `inner`.
    pub(super) fn strings(
        &self,
        field: &str,
        inner: Option<&str>,
    ) -> Result<Vec<String>, EvalError> {
        let strings = self.list(field)?.iter().enumerate().map(|(index, value)| {
            let place = match inner {
                Some(inner) => format!("{field}[{index}].{inner}"),
                None => format!("{field}[{index}]"),
            };
            let value = match inner {
                None => value,
                Some(inner) if value.is_object() => value
                    .get(inner)
                    .ok_or_else(|| self.wrong(&place, "is missing"))?,
                Some(_) => return Err(self.not(&format!("{field}[{index}]"), value, "an object")),
            };
            let text = value
                .as_str()
                .ok_or_else(|| self.not(&place, value, "a string"));
            text.map(str::to_owned)
        });
        strings.collect()
    }
}

/// What a value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
