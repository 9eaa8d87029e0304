//! The networks: configuration, ViT, Q-Former, OPT. Composition of kernels only.

mod blip2;
pub mod config;
mod layers;
mod opt;
mod positions;
mod qformer;
mod retrieval;
mod tensors;
mod vit;

pub use blip2::Blip2Model;
pub use config::Blip2Config;
pub use opt::{KvCache, Opt};
pub use positions::interpolate_positions;
pub use qformer::{QFormer, TextBranch, Texts};
pub use retrieval::RetrievalModel;
pub use tensors::{Component, TensorSpec};
pub use vit::Vit;
