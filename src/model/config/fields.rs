//! Reading typed fields out of `config.json`, with errors that name the file, the field and its
//! value.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// A problem with `config.json`. The text is one line: the file, the field, its value, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {cause}; a model folder needs the config.json of its weights", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// The file is not a JSON object.
    #[error("{}: is not a configuration: {problem}; download config.json again", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A field has a value that this program cannot work with.
    #[error("{}: {field} is {value}: {problem}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field with the sections around it, as in `vision_config.hidden_size`.
        field: String,
        /// Its value, as JSON, shortened.
        value: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// An object of the configuration: the whole, or one of its parts.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    pub file: &'a Path,
    /// `vision_config.` or the like; empty for the whole.
    pub prefix: &'static str,
    pub fields: &'a Map<String, Value>,
}

/// What to say of a field that has another type than it should.
const RESTORE: &str = "restore config.json as it was published with the weights";

impl<'a> Section<'a> {
    /// The value of a field; `null` counts as absent, as transformers writes it for "not set".
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// An error about `field`, whose value is looked up.
    pub fn error(&self, field: &str, problem: impl Into<String>) -> ConfigError {
        let value = self.fields.get(field).map_or("absent".into(), shortened);
        self.error_with_value(field, value, problem)
    }

    /// An error about `field`, for a value that may be a default.
    pub fn error_with_value(
        &self,
        field: &str,
        value: impl ToString,
        problem: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Field {
            file: self.file.into(),
            field: format!("{}{field}", self.prefix),
            value: value.to_string(),
            problem: problem.into(),
        }
    }

    /// A nested object; `None` if absent.
    pub fn section(
        &self,
        field: &str,
        prefix: &'static str,
    ) -> Result<Option<Section<'a>>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Section {
                file: self.file,
                prefix,
                fields,
            })),
            Some(_) => Err(self.error(field, format!("must be an object; {RESTORE}"))),
        }
    }

    /// A whole number from 1 to `limit`: a size or a count.
    pub fn size(&self, field: &str, default: usize, limit: usize) -> Result<usize, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(default);
        };
        match value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
        {
            Some(number) if (1..=limit).contains(&number) => Ok(number),
            _ => Err(self.error(
                field,
                format!("must be a whole number from 1 to {limit}; {RESTORE}"),
            )),
        }
    }

    /// A [`Section::size`] that may also be given as a pair of equal numbers, as image and patch
    /// sizes may.
    pub fn square(&self, field: &str, default: usize, limit: usize) -> Result<usize, ConfigError> {
        match self.get(field).and_then(Value::as_array).map(Vec::as_slice) {
            Some([a, b]) if a == b => {
                let one = Map::from_iter([(field.to_string(), a.clone())]);
                Section {
                    fields: &one,
                    ..*self
                }
                .size(field, default, limit)
            }
            Some(_) => Err(self.error(
                field,
                "must be one number or two equal ones: only square images are supported",
            )),
            None => self.size(field, default, limit),
        }
    }

    /// A token id.
    pub fn token(&self, field: &str) -> Result<Option<u32>, ConfigError> {
        self.get(field)
            .map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok()))
            .map(|id| id.ok_or_else(|| self.error(field, format!("must be a token id; {RESTORE}"))))
            .transpose()
    }

    /// One token id or a list of them.
    pub fn tokens(&self, field: &str, default: u32) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(vec![default]);
        };
        let ids = value
            .as_array()
            .map_or(std::slice::from_ref(value), Vec::as_slice)
            .iter();
        ids.map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<Vec<u32>>>()
            .ok_or_else(|| {
                self.error(
                    field,
                    format!("must be a token id or a list of them; {RESTORE}"),
                )
            })
    }

    /// A small positive number: the epsilon of a layer norm.
    pub fn epsilon(&self, field: &str, default: f32) -> Result<f32, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(default);
        };
        match value.as_f64() {
            Some(number) if number > 0.0 && number < 1.0 => Ok(number as f32),
            _ => Err(self.error(
                field,
                format!("must be a number between 0 and 1; {RESTORE}"),
            )),
        }
    }

    /// `true` or `false`.
    pub fn flag(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.error(field, format!("must be true or false; {RESTORE}"))),
        }
    }

    /// A string.
    pub fn text(&self, field: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(field, format!("must be a string; {RESTORE}"))),
        }
    }
}

/// A value as JSON on one line, cut after 60 characters.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
