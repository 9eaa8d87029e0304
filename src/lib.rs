//! BLIP-2 (ViT → Q-Former → OPT) on any GPU, through hand-written WGSL kernels on `wgpu`.
#![deny(missing_docs)]

pub mod model;
pub mod weights;
