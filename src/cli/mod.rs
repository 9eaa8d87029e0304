//! The command line: the only place that prints, blocks, or exits, and that knows how flags are
//! spelled.

mod commands;
mod given;
mod shared;

use std::ffi::OsString;

use clap::Parser;

use commands::Command;
use shared::Shared;
use shared::output::Output;
use shared::profile::Profile;

/// Exit code for "something failed; the rest was done".
const FAILED: u8 = 1;

/// BLIP-2 on any GPU: captions and answers from WGSL kernels, without Python or CUDA.
#[derive(Debug, Parser)]
#[command(
    name = "blip2-wgpu",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Command,
}

/// Runs the program on `arguments`, of which the first is its own name, and returns its exit code:
/// 0 where all was done, 1 where something failed and the rest was done, 2 where the usage was
/// wrong. Help, version and what the parser does not understand end the process at once.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let (mut cli, given) = given::parse(arguments);
    let output = Output::new(&cli.shared, given.variables.clone());
    for (flags, remedy) in cli.command.idle_flags(&cli.shared, &given) {
        output.idle(&flags, remedy);
    }
    let mut profile = None;
    let result = pollster::block_on(async {
        profile = Profile::begin(&mut cli.shared)?;
        if cli.command.takes_model() {
            cli.shared.find_model(&output)?;
        }
        cli.command.run(&cli.shared, &output).await
    });
    // The devices are gone by now, and all their times have come back.
    let shown = profile.is_none_or(|profile| profile.end(&output));
    match result.map(|all_well| all_well && shown) {
        Ok(true) => 0,
        Ok(false) => FAILED,
        Err(error) => {
            output.error(&error);
            if error.is_usage() { 2 } else { FAILED }
        }
    }
}

/// Doors for fuzzers: what the commands read that users and earlier runs have written.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz {
    use std::path::Path;

    use super::shared::results::fuzz as results;
    use super::shared::{pairs as shared_pairs, retrieval};

    pub use super::commands::fuzz_predictions as predictions;

    /// An image and a question a line.
    pub fn pairs(file: &Path) {
        let _ = shared_pairs::read(file);
    }

    /// A text a line.
    pub fn texts(file: &Path) {
        retrieval::fuzz(file);
    }

    /// What a run before has left of its results, and the record beside them.
    pub fn earlier_results(file: &Path) {
        results(file);
    }
}
