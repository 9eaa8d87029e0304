//! The small files of the result, and its examination before it gets its name.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::image::{CLIP_MEAN, CLIP_STD};
use crate::model::Blip2Config;
use crate::text::{BertTokenizer, PromptMark, Tokenizer};
use crate::weights::Checkpoint;

use super::config::Config;
use super::kind::{Family, Kind, Task};
use super::plan::Plan;
use super::source::Source;
use super::{ConvertError, ConvertOptions, write};

/// Tokenizers have a few MB, configurations a few KB. More than this is neither.
const MAX_BYTES: u64 = 64 << 20;

const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
];

/// Files of a folder in the Hugging Face layout that say how the model is used.
const SETTINGS: [&str; 4] = [
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.json",
];

/// The JSON object in a file.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_object(file: &Path) -> Result<Map<String, Value>, ConvertError> {
    let text = read(file)?;
    serde_json::from_slice(&text).map_err(|error| {
        ConvertError::refused(
            file,
            format!("is no JSON object ({error})"),
            "download it again",
        )
    })
}

fn read(file: &Path) -> Result<Vec<u8>, ConvertError> {
    let mut content = Vec::new();
    let opened =
        File::open(file).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut content));
    match opened {
        Ok(length) if length as u64 <= MAX_BYTES => Ok(content),
        Ok(_) => Err(ConvertError::refused(
            file,
            format!("has more than {MAX_BYTES} bytes"),
            "give the file that was published",
        )),
        Err(error) => Err(ConvertError::refused(
            file,
            format!("cannot be read ({error})"),
            "check the path; a checkpoint's folder needs this file",
        )),
    }
}

/// The folder with the tokenizer's files: the one asked for, the checkpoint's, or the language model's.
///
/// # Errors
/// None of them has any.
pub fn find_tokenizer(
    kind: Kind,
    source: &Source,
    options: &ConvertOptions,
) -> Result<PathBuf, ConvertError> {
    let has = |folder: &Path, names: &[&str]| names.iter().all(|name| folder.join(name).is_file());
    let is_tokenizer = |folder: &Path| {
        has(folder, &["tokenizer.json"])
            || match kind.task {
                Task::Generation => has(folder, &["vocab.json", "merges.txt"]),
                Task::Retrieval => has(folder, &["vocab.txt"]),
            }
    };
    let (expected, example) = match kind.task {
        Task::Generation => (
            "tokenizer.json, or vocab.json and merges.txt",
            "the language model's, as in facebook/opt-2.7b",
        ),
        Task::Retrieval => (
            "tokenizer.json or vocab.txt",
            "BERT's, as in bert-base-uncased",
        ),
    };
    if let Some(folder) = &options.tokenizer {
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
    let llm = options.llm.as_deref();
    let llm = llm.filter(|_| kind.task == Task::Generation);
    let found = [Some(source.folder()), llm]
        .into_iter()
        .flatten()
        .find(|folder| is_tokenizer(folder));
    found.map(Path::to_path_buf).ok_or_else(|| {
        let problem = format!("no tokenizer lies beside it ({expected})");
        ConvertError::refused(
            source.path(),
            problem,
            format!("pass `tokenizer`: {example}"),
        )
    })
}

/// Writes everything but the weights.
pub fn write(
    folder: &Path,
    plan: &Plan,
    config: &Config,
    parsed: &Blip2Config,
    tokenizer: &Path,
) -> Result<(), ConvertError> {
    write::file(&folder.join("config.json"), config.text().as_bytes())?;
    copy(tokenizer, folder, &TOKENIZER_FILES)?;
    if plan.kind.family == Family::HuggingFace {
        return copy(plan.source.folder(), folder, &SETTINGS);
    }
    let json = |name: &str, value: Value| {
        write::file(&folder.join(name), format!("{value:#}\n").as_bytes())
    };
    let size = parsed.vision.image_size;
    json(
        "preprocessor_config.json",
        json!({
            "do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
            "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "image_processor_type": "BlipImageProcessor",
            "processor_class": "Blip2Processor", "resample": 3, "rescale_factor": 1.0 / 255.0,
            "size": {"height": size, "width": size},
        }),
    )?;
    json(
        "processor_config.json",
        json!({"num_query_tokens": parsed.num_query_tokens, "processor_class": "Blip2Processor"}),
    )?;
    if plan.kind.task == Task::Retrieval {
        return Ok(());
    }
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
    json("generation_config.json", generation.into())
}

/// Copies those of the files that are there.
fn copy(from: &Path, to: &Path, names: &[&str]) -> Result<(), ConvertError> {
    for name in names {
        let file = from.join(name);
        if file.is_file() {
            write::file(&to.join(name), &read(&file)?)?;
        }
    }
    Ok(())
}

/// Opens the result as the engine would: every tensor there in its shape, every token with its embedding.
pub fn verify(folder: &Path, config: &Blip2Config) -> Result<(), ConvertError> {
    let checkpoint = Checkpoint::open(folder)?;
    Blip2Config::open(folder)?.tensors(Some(&checkpoint))?;
    check_tokenizer(folder, config)
}

/// Opens the folder's tokenizer as the engine would: of the model's kind, every token with its embedding.
pub fn check_tokenizer(folder: &Path, config: &Blip2Config) -> Result<(), ConvertError> {
    match config.language_model() {
        Some(decoder) => {
            let tokenizer = Tokenizer::open(folder, PromptMark::of(decoder))?;
            tokenizer.check_embedding_rows(decoder.vocab_size())?;
        }
        None => {
            BertTokenizer::open(folder)?.check_embedding_rows(config.qformer.vocab_size)?;
        }
    }
    Ok(())
}
