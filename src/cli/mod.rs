//! The command line program.

pub mod inputs;
