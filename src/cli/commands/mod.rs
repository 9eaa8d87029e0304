//! One file or folder a subcommand.

mod bench;
mod caption;
mod convert;
mod devices;
mod embed;
mod eval;
mod inspect;
mod match_;
mod parity;
mod pull;
mod retrieve;
mod score;
mod stages;
mod vqa;

#[cfg(feature = "fuzzing")]
pub use eval::fuzz_predictions;

use clap::Subcommand;

use crate::Error;

use super::given::Given;
use super::shared::Shared;
use super::shared::output::Output;

/// The shared flags of the device.
const DEVICE: [&str; 6] = [
    "adapter", "disable", "kernel", "checked", "profile", "trace",
];

/// The shared flags of the parts that a checkpoint file lacks.
const PARTS: [&str; 4] = ["vit", "llm", "config", "tokenizer"];

/// The shared flags of a model besides its parts.
const MODEL: [&str; 3] = ["model", "quant", "memory"];

/// Flags that do nothing, and what follows after saying so.
pub type Idle = (Vec<String>, &'static str);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure kernels or a model on this adapter, as shares of what the adapter reaches
    #[command(subcommand)]
    Bench(bench::Command),
    /// Describe images
    Caption(Box<caption::Args>),
    /// Make a folder that --model takes from a checkpoint of LAVIS, mmpretrain or transformers
    Convert(convert::Args),
    /// List adapters, their limits, and the kernels each would use
    #[command(after_help = "Example: blip2-wgpu devices --json")]
    Devices,
    /// Write features of images or texts to a file
    Embed(Box<embed::Args>),
    /// Run a dataset and measure the results
    #[command(subcommand)]
    Eval(eval::Command),
    /// Show a checkpoint's configuration, parameters and memory need
    Inspect(inspect::Args),
    /// Score how well images and texts go together
    Match(Box<match_::Args>),
    /// Find the best texts for images, or images for texts
    Retrieve(Box<retrieve::Args>),
    /// Compare every stage with a reference dump of transformers
    Parity(parity::Args),
    /// Measure results: captions, answers, or retrieval scores against the truth
    #[command(subcommand)]
    Score(score::Command),
    /// Write every stage of an image as an array, and compare two runs
    Stages(Box<stages::Args>),
    /// Answer questions about images
    Vqa(Box<vqa::Args>),
    /// Fetch a checkpoint from the Hugging Face Hub, or the rest of it
    Pull(pull::Args),
}

impl Command {
    /// Whether it works with the checkpoint of `--model`.
    pub fn takes_model(&self) -> bool {
        !matches!(
            self,
            Self::Bench(bench::Command::Kernels(_))
                | Self::Convert(_)
                | Self::Devices
                | Self::Inspect(_)
                | Self::Parity(_)
                | Self::Pull(_)
                | Self::Score(_)
                | Self::Eval(eval::Command::Merge(_))
        )
    }

    /// The shared flags that it has use for, besides those of what is shown.
    fn uses(&self) -> Vec<&'static str> {
        match self {
            Self::Bench(bench::Command::Kernels(_)) => DEVICE.to_vec(),
            Self::Convert(_) => [&PARTS[..], &["quant"]].concat(),
            Self::Devices => vec!["disable"],
            Self::Inspect(_) => [&PARTS[..], &["adapter", "disable", "quant", "memory"]].concat(),
            Self::Parity(_) => [&PARTS[..], &DEVICE, &["quant", "memory"]].concat(),
            Self::Pull(_) | Self::Score(_) | Self::Eval(eval::Command::Merge(_)) => Vec::new(),
            Self::Bench(bench::Command::Model(_))
            | Self::Caption(_)
            | Self::Embed(_)
            | Self::Eval(_)
            | Self::Match(_)
            | Self::Retrieve(_)
            | Self::Stages(_)
            | Self::Vqa(_) => [&PARTS[..], &DEVICE, &MODEL].concat(),
        }
    }

    /// Flags on the command line that do nothing with this command, or not with its others. What
    /// depends on files is said once they are read. The environment is set for many commands, so
    /// nothing is said of it.
    pub fn idle_flags(&self, shared: &Shared, given: &Given) -> Vec<Idle> {
        let uses = self.uses();
        let of_others = [&MODEL[..], &PARTS, &DEVICE].concat();
        let of_others = of_others.into_iter().filter(|flag| !uses.contains(flag));
        let with = |flags: &[&'static str], remedy| (flags.to_vec(), remedy);
        let own = match self {
            Self::Caption(args) if args.keeps_nothing() => with(
                &["overwrite"],
                "where nothing is kept; add --out FILE or --sidecar",
            ),
            Self::Vqa(args) if args.keeps_nothing() => {
                with(&["overwrite"], "where nothing is kept; add --out FILE")
            }
            Self::Convert(_) if shared.quant().is_some_and(|format| !format.is_quantised()) => {
                with(
                    &["quant"],
                    "with f16, which is no quantisation; --dtype f16 stores all so",
                )
            }
            Self::Eval(eval::Command::Caption(_) | eval::Command::Vqa(_)) => with(
                &["stream", "num_captions"],
                "with eval, which keeps the best text of each item and shows none",
            ),
            Self::Stages(args) if !args.compares() => {
                with(&["json"], "where nothing is compared; add --against DIR")
            }
            _ => with(&[], ""),
        };
        let shared = (of_others.collect(), "with this command");
        let idle = [shared, own].into_iter().map(|(flags, remedy)| {
            let flags = flags.into_iter().filter(|flag| given.has(flag));
            let spelled = flags.map(|flag| format!("--{}", flag.replace('_', "-")));
            (spelled.collect(), remedy)
        });
        idle.collect()
    }

    /// Runs it; `false` if something failed, which is reported, and the rest was done.
    ///
    /// # Errors
    /// What it cannot go on with.
    pub async fn run(&self, shared: &Shared, output: &Output) -> Result<bool, Error> {
        match self {
            Self::Bench(command) => bench::run(shared, command, output).await,
            Self::Caption(args) => caption::run(shared, args, output).await,
            Self::Convert(args) => convert::run(shared, args, output),
            Self::Devices => devices::run(shared, output).await,
            Self::Embed(args) => embed::run(shared, args, output).await,
            Self::Eval(command) => eval::run(shared, command, output).await,
            Self::Inspect(args) => inspect::run(shared, args, output).await,
            Self::Match(args) => match_::run(shared, args, output).await,
            Self::Retrieve(args) => retrieve::run(shared, args, output).await,
            Self::Parity(args) => parity::run(shared, args, output).await,
            Self::Pull(args) => pull::run(args, output),
            Self::Score(command) => score::run(command, output),
            Self::Stages(args) => stages::run(shared, args, output).await,
            Self::Vqa(args) => vqa::run(shared, args, output).await,
        }
    }
}
