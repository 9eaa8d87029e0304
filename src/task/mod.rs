//! What people use BLIP-2 for, as functions: the public interface of the library.

mod ask;
mod blip2;
mod caption;
mod checkpoint;
mod explain;
mod features;
mod forecast;
mod memory;
mod open;
mod parity;
mod prepare;
mod preset;
mod prompt;
mod question;
mod retrieval;
mod run;
mod service;
mod stages;
mod text;
mod vqa;

#[cfg(feature = "convert")]
pub use crate::convert::CheckpointParts;
pub use crate::schedule::ImageShapes;
pub use crate::schedule::MAX_BATCH;
pub use crate::schedule::{DeviceMemory, Load, Refusal, RequestTimings, ServiceState, Timings};
pub use crate::schedule::{MemoryPlan, RetrievalWorkload, Workload};
pub use ask::{Ask, Item, Texts};
pub use blip2::{Blip2, OpenOptions, Work};
pub use caption::{Caption, CaptionOptions, check_caption_options};
pub use checkpoint::CheckpointFiles;
pub use explain::{ExplainedWord, Explanation, WrittenText};
pub use features::ImageFeaturizer;
pub use forecast::Forecast;
pub use memory::{Alternative, Budget, Shortage, parse_bytes};
#[cfg(feature = "fuzzing")]
pub use parity::fuzz_dump;
pub use parity::{DumpModel, DumpSummary, ParityReport, ParityRow, TOLERANCE};
pub use prepare::ImageSource;
pub use preset::Preset;
#[cfg(feature = "fuzzing")]
pub use retrieval::fuzz_index;
pub use retrieval::{
    Direction, Gallery, GalleryEvent, GalleryImage, GallerySource, ImageFeatures, IndexError,
    PairScore, RetrieveOptions, Retrieved, Retriever, TextFeatures, TextUse,
};
pub use run::{ItemEvent, Run, RunOptions};
pub use service::{Handle, ServeOptions, Service, Ticket, TicketEvent};
pub use stages::{Stage, StageRun};
pub use text::Text;
pub use vqa::{Answer, Question, VqaOptions, check_vqa_options};
