//! Metrics, annotations and results, and the commands that measure.

mod annotations;
#[path = "../support/cli_support/mod.rs"]
mod cli_support;
#[cfg(feature = "demo-model")]
mod eval_command;
mod metrics;
mod score_command;
mod settings;
