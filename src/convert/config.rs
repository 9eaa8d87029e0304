//! The result's `config.json`: the one given, the folder's own, or that of the published model which the sizes tell.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::gpu::{QUANT_BLOCK, WeightFormat};
use crate::model::config::QUANT_METHOD;
use crate::text::{BertTokenizer, PromptMark, Tokenizer};

use crate::weights::Format;

use super::files::read_object;
use super::kind::{Family, Task};
use super::plan::{Output, Plan};
use super::{ConvertError, ConvertOptions};

const POSITIONS: &str = "vision_model.embeddings.position_embedding";
const PASS_CONFIG: &str = "pass the model's config.json in the Hugging Face form as `config`";

/// The vision transformer of all published models: EVA-CLIP's g.
const VIT_WIDTH: usize = 1408;
const PATCH: usize = 14;
/// The Q-Former of all published models: BERT base.
const QFORMER_WIDTH: usize = 768;
const QFORMER_LAYERS: usize = 12;

/// What OPT's captions end with where the tokenizer does not say: "\n" of GPT-2's vocabulary as OPT numbers it.
const OPT_NEWLINE: u32 = 50118;
/// The first token of OPT's texts.
const OPT_BOS: u32 = 2;

/// `</s>`: the last token of every prompt for T5.
const T5_EOS: u32 = 1;

/// A configuration to write.
#[derive(Debug)]
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
    pub fn set_dtype(&mut self, tensors: &[Output], plan: &Plan, format: Option<Format>) {
        if plan.kind.family == Family::HuggingFace && format.is_none() {
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

/// The configuration of the result.
///
/// # Errors
/// Sizes that no published model has and no [`ConvertOptions::config`]; a language model of another width than the checkpoint's.
pub fn decide(
    plan: &mut Plan,
    options: &ConvertOptions,
    tokenizer: &Path,
) -> Result<Config, ConvertError> {
    let own = plan.source.folder().join("config.json");
    let given = match (&options.config, plan.kind.family) {
        (Some(file), _) => Some(file.clone()),
        (None, Family::HuggingFace) => Some(own),
        (None, _) => None,
    };
    let mut config = match given {
        Some(file) => Config {
            fields: read_object(&file)?,
            file,
        },
        None => Config {
            fields: published(plan, tokenizer)?,
            file: plan.source.path().join("config.json"),
        },
    };
    if plan.kind.family != Family::HuggingFace {
        check_projection(plan, &config)?;
        fit(plan, &mut config);
    }
    Ok(config)
}

/// The configuration of a published model, its sizes told by the tensors.
fn published(plan: &Plan, tokenizer: &Path) -> Result<Map<String, Value>, ConvertError> {
    check_published_sizes(plan)?;
    let retrieval = plan.kind.task == Task::Retrieval;
    let queries = plan
        .find("query_tokens")
        .and_then(|view| view.shape.get(1).copied());
    let mut fields = Map::new();
    let architecture = match plan.kind.task {
        Task::Generation => "Blip2ForConditionalGeneration",
        Task::Retrieval => "Blip2ForImageTextRetrieval",
    };
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
        let text = language_model(plan, tokenizer)?;
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
fn check_published_sizes(plan: &Plan) -> Result<(), ConvertError> {
    let width = |name: &str| plan.find(name).and_then(|view| view.shape.last().copied());
    let vit = width("vision_model.post_layernorm.weight");
    let qformer = width("query_tokens");
    let last_layer = format!(
        "qformer.encoder.layer.{}.output_query.dense.weight",
        QFORMER_LAYERS - 1
    );
    if (vit, qformer) == (Some(VIT_WIDTH), Some(QFORMER_WIDTH)) && plan.find(&last_layer).is_some()
    {
        return Ok(());
    }
    let number = |size: Option<usize>| size.map_or("unknown".into(), |size| size.to_string());
    let problem = format!(
        "its sizes are none of a published model's (vision transformer {} wide, Q-Former {}; published are {VIT_WIDTH} and {QFORMER_WIDTH} with {QFORMER_LAYERS} layers)",
        number(vit),
        number(qformer)
    );
    Err(ConvertError::refused(
        plan.source.path(),
        problem,
        PASS_CONFIG,
    ))
}

/// The language model's own configuration, with what LAVIS changes in it.
fn language_model(plan: &Plan, tokenizer: &Path) -> Result<Map<String, Value>, ConvertError> {
    let Some(llm) = plan.llm else {
        let problem = "holds its language model, but nothing tells that model's sizes";
        return Err(ConvertError::refused(
            plan.source.path(),
            problem,
            PASS_CONFIG,
        ));
    };
    let mut fields = read_object(&llm.folder().join("config.json"))?;
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
fn check_projection(plan: &Plan, config: &Config) -> Result<(), ConvertError> {
    let Some(view) = plan.find("language_projection.weight") else {
        return Ok(());
    };
    let (trained, file) = (view.shape.first().copied(), plan.source.path());
    let widths = ["hidden_size", "d_model"].map(|field| config.get("text_config", field));
    let width = widths.into_iter().flatten().next().and_then(Value::as_u64);
    match (trained, width, plan.llm) {
        (Some(trained), Some(width), Some(llm)) if trained as u64 != width => {
            let problem = format!(
                "is a language model {width} wide, but {} was trained with one {trained} wide",
                file.display()
            );
            let remedy = format!("pass `llm`: {}", plan.language_model_name());
            Err(ConvertError::refused(llm.path(), problem, remedy))
        }
        _ => Ok(()),
    }
}

/// Sets the sizes that tables alone decide and that differ between files of one model: vocabularies, which some pad, and
/// the image size.
fn fit(plan: &mut Plan, config: &mut Config) {
    let rows = |name: &str| plan.find(name).and_then(|view| view.shape.first().copied());
    let words = rows("language_model.model.decoder.embed_tokens.weight")
        .or_else(|| rows("language_model.shared.weight"));
    let image = plan
        .find(POSITIONS)
        .and_then(|view| image_size(view.shape, config));
    let sizes = [
        ("text_config", "vocab_size", words),
        (
            "qformer_config",
            "vocab_size",
            rows("embeddings.word_embeddings.weight"),
        ),
        (
            "qformer_config",
            "max_position_embeddings",
            rows("embeddings.position_embeddings.weight"),
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
            plan.notes.push(format!(
                "{section}.{field} is {size}, as the tensors have it"
            ));
        }
    }
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
