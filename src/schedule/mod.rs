//! From requests to tokens: images through the encoder, prompts through prefill, decoding over the paged cache.
//!
//! ```text
//! Request → Queue: waiting → ImageStore (query rows) → prefill → SequenceGroup: active rows of the DeviceState → Event
//! ```

mod attention;
mod decode_loop;
mod device_state;
mod engine;
mod image_store;
mod memory;
mod pages;
mod programs;
mod queue;
mod request;
mod retrieval;
mod sequence;
mod tables;
mod timings;

pub(crate) use attention::AttentionReader;
pub use device_state::MAX_BATCH;
pub use engine::{BatchWork, Engine};
pub use memory::{MemoryPlan, Workload};
pub use queue::Queue;
pub use request::{Event, Pixels, Request};
pub use retrieval::{
    EncodedImage, EncodedText, Hit, ImageEncoder, ImageShapes, Matcher, RetrievalWorkload, Search,
    SearchDirection, itc_score,
};
pub use timings::Timings;
