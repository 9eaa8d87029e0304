//! The model: what its configuration says, and which tensors it is made of.

pub mod config;
pub mod tensors;
