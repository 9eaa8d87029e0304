//! From requests to tokens: images through the encoder, prompts through prefill, decoding over the paged cache.
//!
//! ```text
//! Request → Queue: waiting → ImageStore (query rows) → prefill → Job: active rows of the Session → Event
//! ```

mod decode;
mod encode;
mod engine;
mod explain;
mod images;
mod job;
mod matching;
mod pages;
mod plan;
mod queue;
mod search;
mod session;
mod stages;
mod tails;

pub use encode::Pixels;
pub use engine::{BatchWork, Engine, Timings};
pub(crate) use explain::AttentionReader;
pub use images::{EncodedImage, ImageEncoder, ImageShapes};
pub use matching::{EncodedText, Matcher, RetrievalWorkload};
pub use plan::{MemoryPlan, Workload};
pub use queue::{Event, MAX_BATCH, Queue, Request};
pub use search::{Hit, Search, SearchDirection, itc_score};
