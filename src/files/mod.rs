//! Files as this program writes them: whole or not at all, resumable, and in formats that other
//! programs read; and as it reads those of strangers: up to a bound.

#[cfg(feature = "cli")]
pub(crate) mod arrays;
pub(crate) mod atomic;
pub(crate) mod bounded;
pub(crate) mod checksum;
#[cfg(feature = "cli")]
pub(crate) mod log;
#[cfg(feature = "eval")]
pub(crate) mod npy;
