//! A choice of kernels never changes a bit of an answer.
//!
//! Kernels are chosen by the number of rows, which the company of a request makes, and by measuring,
//! which noise makes. Neither may show in what is computed:
//!
//! - A variant may stand in for another only if its sums run in the same [`Order`].
//! - Up to [`MATVEC_ROWS`](super::super::MATVEC_ROWS) rows have one choice together: a row has the same
//!   bits alone and among eight, since a kernel adds up a row by itself whatever the others are.
//! - `register`, which serves any number of rows, has one order for all of them: there a row has the same
//!   bits in prefill as in decode.
//!
//! What the user forces ([`crate::gpu::GpuOptions::kernels`]) does change bits, for all rows alike.

/// The order in which a variant's sums run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kernels) struct Order {
    kernel: &'static str,
    /// The constants that the order depends on.
    depends_on: Vec<u32>,
}

impl Order {
    /// One order for all sizes of a kernel, or one choice for all rows that could tell them apart.
    pub const fn of(kernel: &'static str) -> Self {
        Self {
            kernel,
            depends_on: Vec::new(),
        }
    }

    /// An order that changes with some constants of a kernel's size.
    pub fn by(kernel: &'static str, depends_on: Vec<u32>) -> Self {
        Self { kernel, depends_on }
    }
}
