//! Measuring: kernels at the shapes of the published models, and a whole model, each beside what the same adapter reaches
//! in the same run on a plain copy, a plain read and a plain multiply loop. What `blip2-wgpu bench` and the bench targets
//! share.

mod cases;
mod inputs;
mod kernels;
mod model;

pub use cases::{Case, Traffic, cases, ceilings};
pub use inputs::Inputs;
pub use kernels::{Ceiling, Ceilings, KernelRow, Measurement, measure_kernels, replay, unmatched};
pub use model::{BatchRow, LoadRow, ModelBench, ModelReport, picture, reading_rate};
