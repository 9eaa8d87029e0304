//! How kernels read weight matrices: text pieces put before those that do, one a format.

pub(super) const F16_WEIGHTS: &str = include_str!("../../shaders/weights_f16.wgsl");
pub(super) const Q8_WEIGHTS: &str = include_str!("../../shaders/weights_q8.wgsl");
pub(super) const Q4_WEIGHTS: &str = include_str!("../../shaders/weights_q4.wgsl");
