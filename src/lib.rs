//! BLIP-2 (ViT → Q-Former → OPT) on any GPU, through hand-written WGSL kernels on `wgpu`.
#![deny(missing_docs)]

#[cfg(feature = "cli")]
pub mod cli;
pub mod image;
