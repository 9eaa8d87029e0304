//! What people use BLIP-2 for, as functions: the public interface of the library.

mod blip2;
mod caption;
mod memory;
mod parity;
mod preset;

pub use crate::schedule::Timings;
pub use blip2::{Blip2, OpenOptions};
pub use caption::{Caption, CaptionOptions, Text};
pub use memory::{MemoryPlan, memory_plan};
pub use parity::{ParityReport, ParityRow, TOLERANCE};
pub use preset::Preset;
