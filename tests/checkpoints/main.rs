//! Checkpoints: those of other systems, those on a hub, and those that are not what they should be.

mod bad_input;
#[path = "../support/cli_support/mod.rs"]
mod cli_support;
mod convert;
mod pull;
