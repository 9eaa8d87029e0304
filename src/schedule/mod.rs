//! From requests to tokens: images through the encoder, prompts through prefill, decoding over the paged cache.
//!
//! ```text
//! Request → Queue: waiting → ImageStore (query rows) → prefill → Job: active rows of the Session → Event
//! ```

mod decode;
mod engine;
mod images;
mod job;
mod pages;
mod plan;
mod queue;
mod session;
mod tails;

pub use engine::{Engine, Timings};
pub use images::Pixels;
pub use plan::MemoryPlan;
pub use queue::{Event, MAX_BATCH, Queue, Request};
