//! From requests to tokens: images through the encoder, prompts through prefill, decoding over the paged cache.

mod decode;
mod encode;
mod engine;
mod images;
mod matching;
mod plan;
mod search;
mod session;
mod tails;

pub use engine::{Engine, Request, Timings};
pub use images::{EncodedImage, ImageEncoder, ImageShapes};
pub use matching::{EncodedText, Matcher};
pub use plan::MemoryPlan;
pub use search::{Hit, Search, SearchDirection, itc_score};
