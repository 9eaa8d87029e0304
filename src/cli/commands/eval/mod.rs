//! `blip2-wgpu eval caption|vqa|retrieval|merge`: runs a dataset, keeps what is done, measures it.

mod args;
mod caption;
mod finish;
mod merge;
mod predict;
mod retrieval;
mod scenes;
mod vqa;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::eval::EvalError;

use crate::cli::shared::output::Output;
use crate::cli::shared::results::model_fingerprint;
use crate::cli::shared::{DEMO, Shared};
pub use args::Command;

/// Runs or joins; `false` if any item failed.
pub async fn run(shared: &Shared, command: &Command, output: &Output) -> Result<bool, Error> {
    match command {
        Command::Caption(args) => Ok(caption::run(shared, args, output).await?.print(output)),
        Command::Vqa(args) => Ok(vqa::run(shared, args, output).await?.print(output)),
        Command::Retrieval(args) => Ok(retrieval::run(shared, args, output).await?.print(output)),
        Command::Scenes(args) => scenes::run(shared, args, output).await,
        Command::Merge(args) => Ok(merge::merge(args, output)?.print(output)),
    }
}

/// What a run's predictions depend on; a run is gone on with only if all of it is the same. `truths` are the files that
/// say what is asked, each with what it is; names are noted for readers, contents are compared.
fn settings(
    task: &str,
    shared: &Shared,
    images: &Path,
    truths: &[(&str, &Path)],
    image_size: Option<u32>,
    given: BTreeMap<String, String>,
) -> Result<Map<String, Value>, Error> {
    let checkpoint = shared.checkpoint()?;
    let images = images
        .canonicalize()
        .or_else(|_| std::path::absolute(images))
        .unwrap_or_else(|_| images.into());
    let mut settings = Map::from_iter([
        ("task".to_owned(), json!(task)),
        (
            "model".to_owned(),
            json!(checkpoint.map_or_else(|| DEMO.to_owned(), name_of)),
        ),
        (
            "model_fingerprint".to_owned(),
            json!(model_fingerprint(checkpoint)),
        ),
        ("images".to_owned(), json!(images.to_string_lossy())),
        ("image_size".to_owned(), json!(image_size)),
    ]);
    for (what, file) in truths {
        settings.insert((*what).to_owned(), json!(name_of(file)));
        settings.insert(format!("{what}_hash"), json!(hash_of(file)?));
    }
    settings.extend(shared.given().map(|(flag, value)| (flag, json!(value))));
    settings.extend(given.into_iter().map(|(flag, value)| (flag, json!(value))));
    Ok(settings)
}

/// The flag that says how much of a dataset is run.
const LIMIT: &str = "--limit";

/// `given` and the limit.
fn with_limit(
    mut given: BTreeMap<String, String>,
    limit: Option<usize>,
) -> BTreeMap<String, String> {
    given.extend(limit.map(|limit| (LIMIT.to_owned(), limit.to_string())));
    given
}

/// The last part of a path.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// The beginning of the SHA-256 of a file's bytes.
fn hash_of(file: &Path) -> Result<String, EvalError> {
    let read = |cause| EvalError::Read {
        file: file.into(),
        cause,
    };
    let bytes = std::fs::read(file).map_err(read)?;
    let digest = Sha256::digest(&bytes);
    Ok(digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn make_folder(folder: &Path) -> Result<(), EvalError> {
    std::fs::create_dir_all(folder).map_err(|cause| EvalError::Write {
        file: folder.into(),
        cause,
    })
}
