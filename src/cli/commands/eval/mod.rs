//! `blip2-wgpu eval caption|vqa|retrieval|merge`: runs a dataset, keeps what is done, measures it.

mod args;
mod caption;
mod evaluation;
mod image_folder;
mod merge;
mod predictions;
mod report;
mod retrieval;
mod scene;
mod scenes;
mod vqa;

use crate::Error;

use crate::cli::shared::Shared;
use crate::cli::shared::output::Output;
pub use args::Command;
#[cfg(feature = "fuzzing")]
pub use predictions::fuzz as fuzz_predictions;

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
