//! BLIP-2 (ViT → Q-Former → OPT or T5) on any GPU, through hand-written WGSL kernels on `wgpu`.
//!
//! Start at [`Blip2`]: open a checkpoint, caption images, ask about them. Below it the parts can be used by themselves:
//! [`gpu`] and [`kernels`] are a small compute engine, [`image`], [`text`] and [`weights`] read what the published
//! checkpoints come with, [`generate`] holds greedy, beam search and sampling as plain state machines.
#![deny(missing_docs)]
#![deny(unsafe_code)]

#[cfg(test)]
mod arrows;
#[cfg(feature = "bench")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "convert")]
pub mod convert;
#[cfg(feature = "demo-model")]
mod demo;
mod error;
#[cfg(feature = "eval")]
pub mod eval;
mod files;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod generate;
pub mod gpu;
#[cfg(feature = "hub")]
pub mod hub;
pub mod image;
pub mod kernels;
pub mod model;
mod platform;
pub mod schedule;
pub mod task;
pub mod text;
pub mod weights;

pub use error::Error;
pub use task::{
    Answer, Blip2, Caption, CaptionOptions, OpenOptions, Preset, Question, Retriever, VqaOptions,
};
