//! `blip2-wgpu bench kernels|model`

mod kernels;
mod model;

use crate::Error;

use crate::cli::shared::Shared;
use crate::cli::shared::output::Output;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Every kernel and variant that this adapter offers, at the shapes of the published models
    #[command(after_help = KERNELS_HELP)]
    Kernels(kernels::Args),
    /// A model: load, first token, tokens, images and captions a second
    #[command(after_help = MODEL_HELP)]
    Model(model::Args),
}

const KERNELS_HELP: &str = "\
Examples:
  blip2-wgpu bench kernels
  blip2-wgpu bench kernels matvec argmax --json

The first lines are what this adapter reaches in this run where a kernel only copies, only reads or only multiplies. The \
share of every other line is the time that those rates allow it (its bytes, of products the weights; its FLOPs, 2·M·N·K), \
the longer of the two, over its median. Other work on the machine shows in the figures; compare lines of one run.";

const MODEL_HELP: &str = "\
Example: blip2-wgpu bench model --model blip2-opt-2.7b --image photo.jpg --json

All seconds are the host's, waiting for the device included. Decode's share is its weights' bytes a second over what the \
adapter reads in the same run; the encoder's is its FLOPs a second over what the adapter multiplies.";

pub async fn run(shared: &Shared, command: &Command, output: &Output) -> Result<bool, Error> {
    match command {
        Command::Kernels(args) => kernels::run(shared, args, output).await,
        Command::Model(args) => model::run(shared, args, output).await,
    }
}

/// A number with the digits that a measurement has: four.
fn four_digits(value: f64) -> Option<f64> {
    format!("{value:.3e}")
        .parse()
        .ok()
        .filter(|it: &f64| it.is_finite())
}

/// `0.8123` as `81 %`.
fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.0} %", 100.0 * share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_are_kept() {
        assert_eq!(four_digits(123_456.0), Some(123_500.0));
        assert_eq!(four_digits(0.000_123_456), Some(0.000_123_5));
        assert_eq!(four_digits(f64::NAN), None);
        assert_eq!(percent(Some(0.812)), "81 %");
    }
}
