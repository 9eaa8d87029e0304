//! What people use BLIP-2 for, as functions: the public interface of the library.

mod blip2;
mod caption;
mod parity;
mod preset;
mod question;
mod source;
mod text;
mod vqa;

pub use crate::schedule::MemoryPlan;
pub use crate::schedule::Timings;
pub use blip2::{Blip2, OpenOptions, plan_memory};
pub use caption::{Caption, CaptionOptions, check_caption_options};
pub use parity::{ParityReport, ParityRow, TOLERANCE};
pub use preset::Preset;
pub use text::Text;
#[cfg(feature = "cli")]
pub(crate) use vqa::MAX_QUESTIONS;
pub use vqa::{Answer, Question, VqaOptions, check_vqa_options};
