//! Matching, search and features: through the library and on the command line.

#[path = "../support/cli_support/mod.rs"]
mod cli_support;
mod command;
#[path = "../support/common.rs"]
mod common;
mod library;
