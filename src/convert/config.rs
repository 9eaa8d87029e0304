//! The result's `config.json`: the one given, the folder's own, or that of the published model
//! which the sizes tell.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::gpu::{QUANT_BLOCK, WeightFormat};
use crate::model::Blip2Config;
use crate::model::config::QUANT_METHOD;
use crate::text::{BertTokenizer, PromptMark, Tokenizer};

use crate::weights::{Component, Family, Format, Task, TensorSpec, folder_of};

use super::error::ConvertError;
use super::input::read_object;
use super::outputs::Output;
use super::parts::{
    CLASS_EMBEDDING, CheckpointParts, Gathered, LANGUAGE_PROJECTION, POSITIONS, QFORMER_POSITIONS,
    QFORMER_WORDS, QUERIES, WORDS, architecture, usual_tensors,
};

const PASS_CONFIG: &str = "pass the model's config.json in the Hugging Face form as `config`";

/// The vision transformer of all published models: EVA-CLIP's g.
const VIT_WIDTH: usize = 1408;
const PATCH: usize = 14;
/// The Q-Former of all published models: BERT base.
const QFORMER_WIDTH: usize = 768;
const QFORMER_LAYERS: usize = 12;

/// What OPT's captions end with where the tokenizer does not say: "\n" of GPT-2's vocabulary as OPT
/// numbers it.
const OPT_NEWLINE: u32 = 50118;
/// The first token of OPT's texts.
const OPT_BOS: u32 = 2;

/// `</s>`: the last token of every prompt for T5.
const T5_EOS: u32 = 1;

/// A configuration to write.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its fields.
    pub fields: Map<String, Value>,
    /// Where it comes from, for errors.
    pub file: PathBuf,
}

impl Config {
    /// Its JSON.
    pub fn text(&self) -> String {
        format!("{:#}\n", Value::from(self.fields.clone()))
    }

    /// Names the element type that most of the result has, for transformers to load it in.
    pub fn set_dtype(&mut self, tensors: &[Output], family: Family, format: Option<Format>) {
        if family == Family::HuggingFace && format.is_none() {
            return;
        }
        let bytes = |dtype: Dtype| -> u64 {
            let those = tensors.iter().filter(|tensor| tensor.dtype == dtype);
            those.map(Output::bytes).sum()
        };
        let names = [
            (Dtype::F32, "float32"),
            (Dtype::F16, "float16"),
            (Dtype::BF16, "bfloat16"),
        ];
        let most = names.into_iter().max_by_key(|(dtype, _)| bytes(*dtype));
        self.fields.remove("dtype");
        self.fields.insert(
            "torch_dtype".into(),
            most.map_or("float32", |(_, name)| name).into(),
        );
    }

    /// Says that matrices are stored in blocks, for who reads them.
    pub fn set_quantised(&mut self, format: WeightFormat) {
        let section = json!({
            "quant_method": QUANT_METHOD,
            "bits": format.bits(),
            "block": QUANT_BLOCK,
        });
        self.fields.insert("quantization_config".into(), section);
    }

    /// A field of a section.
    pub fn get(&self, section: &str, field: &str) -> Option<&Value> {
        self.fields.get(section)?.get(field)
    }
}

/// The configuration of the result, and what a user may want to know of it.
///
/// # Errors
/// Sizes that no published model has and no `config.json` is given; a language model of another
/// width than the checkpoint's.
pub fn decide(
    gathered: &Gathered,
    parts: &CheckpointParts,
    tokenizer: &Path,
) -> Result<(Config, Vec<String>), ConvertError> {
    let given = match (&parts.config, gathered.kind.family) {
        (Some(file), _) => Some(file.clone()),
        (None, Family::HuggingFace) => Some(gathered.folder().join("config.json")),
        (None, _) => None,
    };
    let mut config = match given {
        Some(file) => Config {
            fields: read_object(&file)?,
            file,
        },
        None => Config {
            fields: published(gathered, tokenizer)?,
            file: gathered.path().join("config.json"),
        },
    };
    let mut notes = Vec::new();
    if gathered.kind.family != Family::HuggingFace {
        check_projection(gathered, &config)?;
        fit(gathered, &mut config, &mut notes)?;
    }
    Ok((config, notes))
}

/// The configuration of a published model, its sizes told by the tensors.
fn published(gathered: &Gathered, tokenizer: &Path) -> Result<Map<String, Value>, ConvertError> {
    check_published_sizes(gathered)?;
    let retrieval = gathered.kind.task == Task::Retrieval;
    let queries = gathered
        .find(&usual_tensors(gathered.kind.task)?, QUERIES)
        .and_then(|view| view.shape.get(1).copied());
    let mut fields = Map::new();
    let architecture = architecture(gathered.kind.task);
    fields.insert("architectures".into(), json!([architecture]));
    fields.insert("model_type".into(), "blip-2".into());
    fields.insert("num_query_tokens".into(), json!(queries.unwrap_or(32)));
    fields.insert("image_text_hidden_size".into(), json!(256));
    fields.insert("initializer_factor".into(), json!(1.0));
    fields.insert("initializer_range".into(), json!(0.02));
    fields.insert(
        "vision_config".into(),
        json!({
            "model_type": "blip_2_vision_model", "hidden_size": VIT_WIDTH, "intermediate_size": 6144,
            "num_hidden_layers": 39, "num_attention_heads": 16, "image_size": 224, "patch_size": PATCH,
            "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": true, "attention_dropout": 0.0,
            "initializer_range": 1e-10,
        }),
    );
    fields.insert(
        "qformer_config".into(),
        json!({
            "model_type": "blip_2_qformer", "vocab_size": 30522, "hidden_size": QFORMER_WIDTH,
            "num_hidden_layers": QFORMER_LAYERS, "num_attention_heads": 12, "intermediate_size": 3072,
            "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
            "max_position_embeddings": 512, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
            "cross_attention_frequency": 2, "encoder_hidden_size": VIT_WIDTH, "use_qformer_text_input": retrieval,
        }),
    );
    let image_token = if retrieval {
        BertTokenizer::open(tokenizer)?.token_id("<image>")
    } else {
        let text = language_model(gathered, tokenizer)?;
        let decoder_only = text.get("model_type").and_then(Value::as_str) != Some("t5");
        fields.insert(
            "use_decoder_only_language_model".into(),
            decoder_only.into(),
        );
        let mark = if decoder_only {
            PromptMark::First(OPT_BOS)
        } else {
            PromptMark::Last(T5_EOS)
        };
        fields.insert("text_config".into(), text.into());
        Tokenizer::open(tokenizer, mark)?.token_id("<image>")
    };
    fields.insert("image_token_index".into(), json!(image_token));
    Ok(fields)
}

/// Refuses sizes that the tensors do not tell in full: the number of heads is in none of them.
fn check_published_sizes(gathered: &Gathered) -> Result<(), ConvertError> {
    // Generative and retrieval models have all of these.
    let specs = usual_tensors(Task::Generation)?;
    let width = |place| gathered.find(&specs, place)?.shape.last().copied();
    let (vit, qformer) = (width(CLASS_EMBEDDING), width(QUERIES));
    let is_qformer = |spec: &&TensorSpec| spec.component == Component::QFormer;
    let deepest = specs.iter().rfind(is_qformer);
    let is_deep = deepest.is_some_and(|spec| gathered.checkpoint.find(&spec.name).is_some());
    if (vit, qformer) == (Some(VIT_WIDTH), Some(QFORMER_WIDTH)) && is_deep {
        return Ok(());
    }
    let number = |size: Option<usize>| size.map_or("unknown".into(), |size| size.to_string());
    let problem = format!(
        "its sizes are none of a published model's (vision transformer {} wide, Q-Former {}; published are {VIT_WIDTH} and {QFORMER_WIDTH} with {QFORMER_LAYERS} layers)",
        number(vit),
        number(qformer)
    );
    Err(ConvertError::refused(gathered.path(), problem, PASS_CONFIG))
}

/// The language model's own configuration, with what LAVIS changes in it.
fn language_model(
    gathered: &Gathered,
    tokenizer: &Path,
) -> Result<Map<String, Value>, ConvertError> {
    let Some(llm) = &gathered.llm else {
        let problem = "holds its language model, but nothing tells that model's sizes";
        return Err(ConvertError::refused(gathered.path(), problem, PASS_CONFIG));
    };
    let mut fields = read_object(&folder_of(&llm.path).join("config.json"))?;
    if let Some(Value::Object(text)) = fields.remove("text_config") {
        fields = text; // the folder is another BLIP-2 model's
    }
    if fields.get("model_type").and_then(Value::as_str) == Some("t5") {
        // `blip2_t5.py`: t5_config.dense_act_fn = "gelu"
        fields.insert("dense_act_fn".into(), "gelu".into());
    } else {
        // `blip2_opt.py`: texts end with the first token of "\n"
        let newline = Tokenizer::open(tokenizer, PromptMark::First(OPT_BOS))?.newline();
        fields.insert("eos_token_id".into(), json!(newline.unwrap_or(OPT_NEWLINE)));
    }
    Ok(fields)
}

/// Refuses a language model of another width than the checkpoint was trained with.
fn check_projection(gathered: &Gathered, config: &Config) -> Result<(), ConvertError> {
    let specs = usual_tensors(gathered.kind.task)?;
    let Some(view) = gathered.find(&specs, LANGUAGE_PROJECTION) else {
        return Ok(());
    };
    let (trained, file) = (view.shape.first().copied(), gathered.path());
    let widths = ["hidden_size", "d_model"].map(|field| config.get("text_config", field));
    let width = widths.into_iter().flatten().next().and_then(Value::as_u64);
    match (trained, width, &gathered.llm) {
        (Some(trained), Some(width), Some(llm)) if trained as u64 != width => {
            let problem = format!(
                "is a language model {width} wide, but {} was trained with one {trained} wide",
                file.display()
            );
            let remedy = format!("pass `llm`: {}", gathered.language_model_name(&specs));
            Err(ConvertError::refused(&llm.path, problem, remedy))
        }
        _ => Ok(()),
    }
}

/// Sets the sizes that tables alone decide and that differ between files of one model:
/// vocabularies, which some pad, and the image size.
fn fit(
    gathered: &Gathered,
    config: &mut Config,
    notes: &mut Vec<String>,
) -> Result<(), ConvertError> {
    // Which tensors these are does not depend on the sizes that are still to be set.
    let parsed = Blip2Config::from_json(config.text().as_bytes(), &config.file)?;
    let specs = parsed.tensors(None)?;
    let text_specs = usual_tensors(Task::Retrieval)?;
    let rows = |specs: &[TensorSpec], place| gathered.find(specs, place)?.shape.first().copied();
    let image = gathered
        .find(&specs, POSITIONS)
        .and_then(|view| image_size(view.shape, config));
    let sizes = [
        ("text_config", "vocab_size", rows(&specs, WORDS)),
        (
            "qformer_config",
            "vocab_size",
            rows(&text_specs, QFORMER_WORDS),
        ),
        (
            "qformer_config",
            "max_position_embeddings",
            rows(&text_specs, QFORMER_POSITIONS),
        ),
        ("vision_config", "image_size", image),
    ];
    for (section, field, size) in sizes {
        let Some(size) = size else { continue };
        let Some(Value::Object(fields)) = config.fields.get_mut(section) else {
            continue;
        };
        let before = fields.insert(field.into(), json!(size));
        if before.as_ref().is_none_or(|before| *before != json!(size)) {
            notes.push(format!(
                "{section}.{field} is {size}, as the tensors have it"
            ));
        }
    }
    Ok(())
}

/// Side of the images that a table of positions `[1, 1 + grid², width]` is for.
fn image_size(shape: &[usize], config: &Config) -> Option<usize> {
    let &[1, tokens, _] = shape else { return None };
    let grid = (tokens.checked_sub(1)?).isqrt();
    let patch = config
        .get("vision_config", "patch_size")
        .and_then(Value::as_u64);
    let patch = patch
        .and_then(|patch| usize::try_from(patch).ok())
        .unwrap_or(PATCH);
    (grid * grid + 1 == tokens)
        .then(|| grid.checked_mul(patch))
        .flatten()
}

#[cfg(test)]
mod tests;
