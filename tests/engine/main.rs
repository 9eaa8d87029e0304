//! The engine through the library: stages, tokens and scores against transformers, on every kind of device that the
//! adapter can stand in for; memory, queues, streams.

#[cfg(feature = "demo-model")]
mod bench;
#[path = "../support/cli_support/mod.rs"]
mod cli_support;
#[path = "../support/common.rs"]
mod common;
#[cfg(feature = "demo-model")]
mod demo;
mod explain;
mod generation;
mod library;
mod memory;
mod parity;
#[cfg(feature = "demo-model")]
mod quant;
mod queue;
mod served;
mod service;
mod sizes;
mod stream;
mod t5;
mod vqa;
