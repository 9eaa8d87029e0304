use std::path::Path;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{EarlyStopping, GenerateError, GenerationOverrides};

impl GenerationOverrides {
    /// What a `generation_config.json` sets. `json` is its text, `file` its name for messages.
    ///
    /// Unknown fields, and known ones that are absent or null, are left out. `max_length` and
    /// `min_length` are ignored: transformers counts the prompt and the image tokens in them.
    ///
    /// # Errors
    /// [`GenerateError::File`] if the text is no JSON object, [`GenerateError::Field`] naming the
    /// first field of a wrong type.
    pub fn from_json(json: &str, file: &Path) -> Result<Self, GenerateError> {
        let object: Map<String, Value> =
            serde_json::from_str(json).map_err(|error| GenerateError::File {
                file: file.to_owned(),
                problem: error.to_string(),
            })?;
        let fields = Fields { object, file };
        Ok(Self {
            max_new_tokens: fields.get("max_new_tokens")?,
            min_new_tokens: fields.get("min_new_tokens")?,
            num_beams: fields.get("num_beams")?,
            length_penalty: fields.get("length_penalty")?,
            early_stopping: fields
                .get::<BoolOrNever>("early_stopping")?
                .map(EarlyStopping::from),
            do_sample: fields.get("do_sample")?,
            temperature: fields.get("temperature")?,
            top_k: fields.get("top_k")?,
            top_p: fields.get("top_p")?,
            seed: None,
            repetition_penalty: fields.get("repetition_penalty")?,
            no_repeat_ngram_size: fields.get("no_repeat_ngram_size")?,
            num_return_sequences: fields.get("num_return_sequences")?,
            eos_token_ids: fields
                .get::<OneOrMany>("eos_token_id")?
                .map(OneOrMany::into_vec),
            stop: None,
            suppress_tokens: fields.get("suppress_tokens")?,
            pad_token_id: fields.get("pad_token_id")?,
            bos_token_id: fields.get("bos_token_id")?,
        })
    }
}

struct Fields<'a> {
    object: Map<String, Value>,
    file: &'a Path,
}

impl Fields<'_> {
    fn get<T: DeserializeOwned>(&self, field: &'static str) -> Result<Option<T>, GenerateError> {
        let Some(value) = self.object.get(field) else {
            return Ok(None);
        };
        serde_json::from_value(value.clone()).map_err(|error| GenerateError::Field {
            file: self.file.to_owned(),
            field,
            problem: error.to_string(),
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a token id or a list of token ids")]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected true, false or \"never\"")]
enum BoolOrNever {
    Bool(bool),
    Word(Never),
}

#[derive(Deserialize)]
enum Never {
    #[serde(rename = "never")]
    Never,
}

impl From<BoolOrNever> for EarlyStopping {
    fn from(value: BoolOrNever) -> Self {
        match value {
            BoolOrNever::Bool(true) => Self::True,
            BoolOrNever::Bool(false) => Self::False,
            BoolOrNever::Word(Never::Never) => Self::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<GenerationOverrides, GenerateError> {
        GenerationOverrides::from_json(json, Path::new("m/generation_config.json"))
    }

    #[test]
    fn known_fields_are_read_and_others_left() {
        let read = read(
            r#"{"_from_model_config": true, "bos_token_id": 2, "eos_token_id": 50118, "pad_token_id": 1,
                "num_beams": 5, "length_penalty": 0, "early_stopping": "never", "top_p": null,
                "transformers_version": "4.47.1", "max_length": 20}"#,
        )
        .unwrap();
        let expected = GenerationOverrides {
            bos_token_id: Some(2),
            eos_token_ids: Some(vec![50118]),
            pad_token_id: Some(1),
            num_beams: Some(5),
            length_penalty: Some(0.0),
            early_stopping: Some(EarlyStopping::Never),
            ..Default::default()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn end_tokens_may_be_a_list() {
        let read = read(r#"{"eos_token_id": [2, 50118], "early_stopping": true}"#).unwrap();
        assert_eq!(read.eos_token_ids, Some(vec![2, 50118]));
        assert_eq!(read.early_stopping, Some(EarlyStopping::True));
        assert_eq!(self::read("{}").unwrap(), GenerationOverrides::default());
    }

    #[test]
    fn a_wrong_type_names_file_and_field() {
        for (json, field) in [
            (r#"{"num_beams": "five"}"#, "num_beams"),
            (r#"{"num_beams": -1}"#, "num_beams"),
            (r#"{"top_k": 1.5}"#, "top_k"),
            (r#"{"eos_token_id": ["</s>"]}"#, "eos_token_id"),
            (r#"{"early_stopping": "always"}"#, "early_stopping"),
            (r#"{"do_sample": 1}"#, "do_sample"),
            (r#"{"temperature": []}"#, "temperature"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains("generation_config.json"), "{message}");
            assert!(message.contains(&format!("`{field}`")), "{message}");
        }
        let message = read(r#"{"early_stopping": "always"}"#)
            .unwrap_err()
            .to_string();
        assert!(message.contains("never"), "{message}");
    }

    #[test]
    fn broken_files_are_named() {
        for json in ["", "[1]", "{\"a\": ", "null"] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains("generation_config.json"), "{message}");
        }
    }
}
