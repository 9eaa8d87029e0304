//! From requests to tokens: images through the encoder, prompts through prefill, decoding over the paged cache.

mod decode;
mod encode;
mod engine;
mod explain;
mod plan;
mod session;
mod tails;

pub use engine::{Engine, Request, Timings};
pub(crate) use explain::AttentionReader;
pub use plan::MemoryPlan;
