//! What people use BLIP-2 for, as functions: the public interface of the library.

mod blip2;
mod caption;
mod parity;
mod prepare;
mod preset;
mod prompt;
mod question;
mod run;
mod source;
mod text;
mod vqa;

pub use crate::schedule::MemoryPlan;
pub use crate::schedule::Timings;
pub use blip2::{Blip2, OpenOptions, plan_memory};
pub use caption::{Caption, CaptionOptions, check_caption_options};
pub use parity::{ParityReport, ParityRow, TOLERANCE};
pub use prepare::ImageSource;
pub use preset::Preset;
pub use run::{Ask, Item, ItemEvent, Run, RunOptions, Texts};
pub use text::Text;
pub use vqa::{Answer, Question, VqaOptions, check_vqa_options};
