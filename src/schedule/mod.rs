//! From requests to tokens: images through the encoder, prompts through prefill, decoding over the paged cache.

mod decode;
mod encode;
mod engine;
mod session;
mod tails;

pub use engine::{Engine, Request, Timings};
