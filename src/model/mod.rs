//! The networks: configuration, ViT, Q-Former, OPT, T5. Composition of kernels only.

mod blip2;
pub mod config;
mod language;
mod layers;
mod listing;
mod opt;
mod positions;
mod qformer;
mod retrieval;
mod t5;
mod vit;

pub use blip2::Blip2Model;
pub use config::Blip2Config;
pub use language::{InputRows, KvCache, LanguageModel, PromptEnds};
pub use opt::Opt;
pub use positions::interpolate_positions;
pub use qformer::{QFormer, TextBranch, Texts};
pub use retrieval::RetrievalModel;
pub use t5::T5;
pub use vit::Vit;
