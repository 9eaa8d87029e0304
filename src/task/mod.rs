//! What people use BLIP-2 for, as functions: the public interface of the library.

mod blip2;
mod caption;
mod explain;
mod parity;
mod preset;
mod source;

pub use crate::schedule::MemoryPlan;
pub use crate::schedule::Timings;
pub use blip2::{Blip2, OpenOptions, plan_memory};
pub use caption::{Caption, CaptionOptions, Text, check_caption_options};
pub use explain::{ExplainedWord, Explanation, WrittenText};
pub use parity::{ParityReport, ParityRow, TOLERANCE};
pub use preset::Preset;
