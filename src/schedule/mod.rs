//! From requests to tokens: images through the encoder, prompts through prefill, decoding over the paged cache.
//!
//! ```text
//! Handle::submit → Queue: waiting → ImageStore (query rows) → prefill → SequenceGroup: active rows of the DeviceState
//!                → Event → Ticket
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
mod service;
mod tables;
mod timings;

pub(crate) use attention::AttentionReader;
pub use device_state::MAX_BATCH;
pub use engine::{BatchWork, Engine};
pub use memory::{MemoryPlan, Workload};
pub use request::{Event, Image, ImageKey, Pixels, Request, StopRule};
pub use retrieval::{
    EncodedImage, EncodedText, Hit, ImageEncoder, ImageShapes, Matcher, RetrievalWorkload, Search,
    SearchDirection, itc_score,
};
pub use service::{
    DeviceMemory, Handle, ImageInput, Load, Refusal, Service, ServiceOptions, ServiceState, Ticket,
};
pub use timings::{RequestTimings, Timings};
