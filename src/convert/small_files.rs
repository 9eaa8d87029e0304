//! The small files of a checkpoint in the Hugging Face layout: where the tokenizer's are, and what
//! the others say.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::image::{CLIP_MEAN, CLIP_STD};
use crate::model::Blip2Config;
use crate::text::{BertTokenizer, Tokenizer};
use crate::weights::Task;

use super::config::Config;
use super::error::ConvertError;
use super::parts::{CheckpointParts, Gathered};

/// The tokenizer's.
pub const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
];

/// Those that say how the model is used.
pub const SETTINGS: [&str; 4] = [
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.json",
];

/// The folder with the tokenizer's files: the one asked for, the checkpoint's, or the language
/// model's.
///
/// # Errors
/// None of them has any.
pub fn find_tokenizer(
    gathered: &Gathered,
    parts: &CheckpointParts,
) -> Result<PathBuf, ConvertError> {
    let task = gathered.kind.task;
    let has = |folder: &Path, names: &[&str]| names.iter().all(|name| folder.join(name).is_file());
    let is_tokenizer = |folder: &Path| {
        has(folder, &["tokenizer.json"])
            || match task {
                Task::Generation => has(folder, &["vocab.json", "merges.txt"]),
                Task::Retrieval => has(folder, &["vocab.txt"]),
            }
    };
    let (expected, example) = match task {
        Task::Generation => (
            "tokenizer.json, or vocab.json and merges.txt",
            "the language model's, as in facebook/opt-2.7b",
        ),
        Task::Retrieval => (
            "tokenizer.json or vocab.txt",
            "BERT's, as in bert-base-uncased",
        ),
    };
    if let Some(folder) = &parts.tokenizer {
        if is_tokenizer(folder) {
            return Ok(folder.clone());
        }
        let remedy = format!("pass a folder that has: {example}");
        return Err(ConvertError::refused(
            folder,
            format!("has no tokenizer ({expected})"),
            remedy,
        ));
    }
    // Retrieval reads its texts by BERT's, which no language model has.
    let llm = parts.llm.as_deref();
    let llm = llm.filter(|_| task == Task::Generation);
    let folders = [Some(gathered.folder()), llm.map(Path::to_path_buf)];
    let found = folders.into_iter().flatten().find(|it| is_tokenizer(it));
    found.ok_or_else(|| {
        let problem = format!("no tokenizer lies beside it ({expected})");
        ConvertError::refused(
            gathered.path(),
            problem,
            format!("pass `tokenizer`: {example}"),
        )
    })
}

/// What the settings' files say of a checkpoint that has none: name and text of each.
pub fn settings(task: Task, config: &Config, parsed: &Blip2Config) -> Vec<(&'static str, String)> {
    let size = parsed.vision.image_size;
    let preprocessor = json!({
        "do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "image_processor_type": "BlipImageProcessor",
        "processor_class": "Blip2Processor", "resample": 3, "rescale_factor": 1.0 / 255.0,
        "size": {"height": size, "width": size},
    });
    let processor =
        json!({"num_query_tokens": parsed.num_query_tokens, "processor_class": "Blip2Processor"});
    let mut files = vec![
        ("preprocessor_config.json", preprocessor),
        ("processor_config.json", processor),
    ];
    if task == Task::Generation {
        let mut generation = Map::new();
        generation.insert("_from_model_config".into(), true.into());
        for field in [
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "decoder_start_token_id",
        ] {
            let value = config.get("text_config", field);
            generation.extend(value.map(|value| (field.to_owned(), value.clone())));
        }
        files.push(("generation_config.json", generation.into()));
    }
    let text = |value: Value| format!("{value:#}\n");
    files
        .into_iter()
        .map(|(name, value)| (name, text(value)))
        .collect()
}

/// Opens the folder's tokenizer as the engine would: of the model's kind, every token with its
/// embedding.
pub fn check_tokenizer(folder: &Path, config: &Blip2Config) -> Result<(), ConvertError> {
    match config.language_model() {
        Some(decoder) => {
            let tokenizer = Tokenizer::open(folder, decoder.prompt_mark())?;
            tokenizer.check_embedding_rows(decoder.vocab_size())?;
        }
        None => {
            BertTokenizer::open(folder)?.check_embedding_rows(config.qformer.vocab_size)?;
        }
    }
    Ok(())
}
