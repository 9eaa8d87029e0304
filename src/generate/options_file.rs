use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{EarlyStopping, GenerateError, GenerationOverrides, SequenceBias};

impl GenerationOverrides {
    /// What a `generation_config.json` sets. `json` is its text, `file` its name for messages.
    ///
    /// Fields that are absent or null are left out, and those that [`passed_over`] names: what this program
    /// does not do, and `max_length` and `min_length`, in which transformers counts the prompt and the image.
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
            min_p: fields.get("min_p")?,
            typical_p: fields.get("typical_p")?,
            epsilon_cutoff: fields.get("epsilon_cutoff")?,
            eta_cutoff: fields.get("eta_cutoff")?,
            seed: None,
            repetition_penalty: fields.get("repetition_penalty")?,
            no_repeat_ngram_size: fields.get("no_repeat_ngram_size")?,
            num_return_sequences: fields.get("num_return_sequences")?,
            eos_token_ids: fields
                .get::<OneOrMany>("eos_token_id")?
                .map(OneOrMany::into_vec),
            stop: fields
                .get::<Strings>("stop_strings")?
                .map(Strings::into_vec),
            suppress_tokens: fields.tokens("suppress_tokens")?,
            begin_suppress_tokens: fields.tokens("begin_suppress_tokens")?,
            sequence_bias: fields
                .get::<Vec<(Vec<u32>, f32)>>("sequence_bias")?
                .map(biases),
            bad_words_ids: fields.get("bad_words_ids")?,
            forced_bos_token_id: fields.get("forced_bos_token_id")?,
            forced_eos_token_ids: fields
                .get::<OneOrMany>("forced_eos_token_id")?
                .map(OneOrMany::into_vec),
            pad_token_id: fields.token("pad_token_id")?,
            bos_token_id: fields.token("bos_token_id")?,
        })
    }
}

/// Fields that do not change a text, or that say what this program does anyway.
const IDLE: [&str; 22] = [
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "disable_compile",
    "is_assistant",
    "low_memory",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",
    "return_dict_in_generate",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
];

/// Fields that are read.
const READ: [&str; 25] = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "epsilon_cutoff",
    "eta_cutoff",
    "forced_eos_token_id",
    "length_penalty",
    "max_new_tokens",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beams",
    "num_return_sequences",
    "pad_token_id",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// What transformers does without a field: to say as much changes nothing.
fn is_neutral(field: &str, value: &Value) -> bool {
    let number = value.as_f64();
    match field {
        "max_length" => number == Some(20.0),
        "guidance_scale" | "encoder_repetition_penalty" | "num_beam_groups" => number == Some(1.0),
        "min_length" | "encoder_no_repeat_ngram_size" | "diversity_penalty" | "penalty_alpha" => {
            number == Some(0.0)
        }
        _ => {
            matches!(value, Value::Null | Value::Bool(false)) || value == &Value::Array(Vec::new())
        }
    }
}

/// Fields of a `generation_config.json` that are passed over though they would change texts elsewhere, and
/// those that nobody knows; with what they say. `forced_bos_token_id` and `decoder_start_token_id` are among
/// them: whether they count depends on the decoder.
#[must_use]
pub fn passed_over(json: &str) -> Vec<(String, Value)> {
    let object: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
    let fields = object.into_iter().filter(|(field, value)| {
        let is_known = READ.contains(&field.as_str()) || IDLE.contains(&field.as_str());
        !is_known && !is_neutral(field, value)
    });
    fields.collect()
}

struct Fields<'a> {
    object: Map<String, Value>,
    file: &'a Path,
}

impl Fields<'_> {
    /// A token's id; a negative one is none.
    fn token(&self, field: &'static str) -> Result<Option<u32>, GenerateError> {
        let tokens = self
            .get::<i64>(field)?
            .map(|token| self.ids(field, vec![token]));
        Ok(tokens
            .transpose()?
            .and_then(|tokens| tokens.first().copied()))
    }

    /// Tokens' ids, the negative ones left out.
    fn tokens(&self, field: &'static str) -> Result<Option<Vec<u32>>, GenerateError> {
        let tokens = self.get::<Vec<i64>>(field)?;
        tokens.map(|tokens| self.ids(field, tokens)).transpose()
    }

    fn ids(&self, field: &'static str, tokens: Vec<i64>) -> Result<Vec<u32>, GenerateError> {
        let tokens = tokens.into_iter().filter(|&token| token >= 0);
        let id = |token| {
            u32::try_from(token).map_err(|_| GenerateError::Field {
                file: self.file.to_owned(),
                field,
                problem: format!("{token} is no token id"),
            })
        };
        tokens.map(id).collect()
    }

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

/// Runs with their biases. Of a run that is there twice the later counts, as in transformers.
fn biases(runs: Vec<(Vec<u32>, f32)>) -> Vec<SequenceBias> {
    let mut biases: Vec<SequenceBias> = Vec::with_capacity(runs.len());
    let mut places = HashMap::new();
    for (tokens, bias) in runs {
        match places.get(&tokens) {
            Some(&place) => biases[place] = SequenceBias { tokens, bias },
            None => {
                places.insert(tokens.clone(), biases.len());
                biases.push(SequenceBias { tokens, bias });
            }
        }
    }
    biases
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
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum Strings {
    One(String),
    Many(Vec<String>),
}

impl Strings {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
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
    fn rules_over_scores_are_read() {
        let read = read(
            r#"{"min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 3e-4, "eta_cutoff": 1e-3, "stop_strings": "\n",
                "begin_suppress_tokens": [2], "bad_words_ids": [[5], [6, 7]], "sequence_bias": [[[8, 9], -1.5]],
                "forced_bos_token_id": 0, "forced_eos_token_id": 2}"#,
        );
        let expected = GenerationOverrides {
            min_p: Some(0.1),
            typical_p: Some(0.9),
            epsilon_cutoff: Some(3e-4),
            eta_cutoff: Some(1e-3),
            stop: Some(vec!["\n".into()]),
            begin_suppress_tokens: Some(vec![2]),
            bad_words_ids: Some(vec![vec![5], vec![6, 7]]),
            sequence_bias: Some(vec![SequenceBias {
                tokens: vec![8, 9],
                bias: -1.5,
            }]),
            forced_bos_token_id: Some(0),
            forced_eos_token_ids: Some(vec![2]),
            ..Default::default()
        };
        assert_eq!(read.unwrap(), expected);
        let two =
            self::read(r#"{"stop_strings": ["a", "b"], "forced_eos_token_id": [2, 3]}"#).unwrap();
        assert_eq!(
            two.stop.unwrap().len() + two.forced_eos_token_ids.unwrap().len(),
            4
        );
    }

    #[test]
    fn negative_ids_are_none_and_the_later_bias_counts() {
        let read = read(
            r#"{"pad_token_id": -1, "suppress_tokens": [-1, 3], "sequence_bias": [[[1], -5.0], [[2], 1.0], [[1], 5.0]]}"#,
        );
        let read = read.unwrap();
        assert_eq!(
            (read.pad_token_id, read.suppress_tokens),
            (None, Some(vec![3]))
        );
        let biases = read.sequence_bias.unwrap();
        assert_eq!(
            biases.iter().map(|run| run.bias).collect::<Vec<_>>(),
            [5.0, 1.0]
        );
    }

    #[test]
    fn what_is_passed_over_is_named() {
        let fields = passed_over(
            r#"{"exponential_decay_length_penalty": [5, 1.1], "guidance_scale": 1.5, "max_length": 60, "num_beans": 5,
                "min_p": 0.1, "use_cache": true, "constraints": null}"#,
        );
        let fields: Vec<String> = fields.into_iter().map(|(field, _)| field).collect();
        assert_eq!(
            fields.join(" "),
            "exponential_decay_length_penalty guidance_scale max_length num_beans"
        );
        // What transformers itself writes says nothing else than we do.
        let published = r#"{"_from_model_config": true, "bos_token_id": 2, "eos_token_id": 50118, "pad_token_id": 1,
            "max_length": 20, "min_length": 0, "guidance_scale": 1.0, "diversity_penalty": 0.0,
            "num_beam_groups": 1, "renormalize_logits": false, "transformers_version": "4.47.1"}"#;
        assert!(passed_over(published).is_empty());
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
