//! What can go wrong on the device.

use std::path::{Path, PathBuf};

/// An error of the device layer. Each message names the cause and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GpuError {
    /// The system offers no adapter at all.
    #[error("no GPU adapter found: {remedy}")]
    NoAdapter {
        /// Which package to install on this system.
        remedy: String,
    },
    /// The adapter asked for is not there.
    #[error(
        "no adapter matches '{wanted}'; this machine has: {available} (see `blip2-wgpu devices`)"
    )]
    UnknownAdapter {
        /// What was asked for.
        wanted: String,
        /// The names there are.
        available: String,
    },
    /// An unknown word in the list of things to switch off.
    #[error("cannot disable '{word}': use a comma-separated list of f16, subgroups, limits")]
    UnknownDisable {
        /// The word.
        word: String,
    },
    /// The driver refused to open a device.
    #[error("adapter '{adapter}' gave no device: {reason}; try another one with `adapter`")]
    NoDevice {
        /// The adapter's name.
        adapter: String,
        /// The driver's words.
        reason: String,
    },
    /// A profile was asked for that the adapter cannot give.
    #[error(
        "adapter '{adapter}' has no timestamp queries, so no kernel can be timed on it; leave out `profile` and `trace`, \
         or choose another adapter with `adapter` (`blip2-wgpu devices` lists them)"
    )]
    NoTimestamps {
        /// The adapter's name.
        adapter: String,
    },
    /// The device has not enough memory.
    #[error(
        "out of GPU memory on '{adapter}' while {doing}; use a smaller batch, fewer beams or weights in q8, or another adapter"
    )]
    OutOfMemory {
        /// The adapter's name.
        adapter: String,
        /// What was being done.
        doing: String,
    },
    /// The device was lost.
    #[error("GPU device lost: {reason}; the driver may have reset, try again")]
    Lost {
        /// The driver's words.
        reason: String,
    },
    /// A validation or internal error: a bug in this program or in the driver.
    #[error(
        "GPU error while {doing}: {message}; please report it with the output of `blip2-wgpu devices`"
    )]
    Internal {
        /// What was being done.
        doing: String,
        /// wgpu's words, on one line.
        message: String,
    },
    /// A choice of a kernel that there is not.
    #[error("cannot choose kernel '{wanted}': {available}")]
    UnknownKernel {
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// A choice of a kernel that this device cannot run.
    #[error("cannot choose kernel '{wanted}' on this device: {reason}")]
    UnfitKernel {
        /// What was asked for.
        wanted: String,
        /// What the device lacks.
        reason: String,
    },
    /// A shader file that is missing, or that cannot be put together.
    #[error("{place}: {problem}")]
    Shader {
        /// File and line, or the kernel.
        place: String,
        /// What is wrong there.
        problem: String,
    },
    /// Every kernel for a task gave a wrong result in its self-check.
    #[error(
        "on '{adapter}' no kernel for {what} computes rightly: {}",
        blame(shaders.as_deref())
    )]
    WrongKernels {
        /// The adapter's name.
        adapter: String,
        /// What the kernels are for.
        what: String,
        /// The folder that shaders were read from in the place of this program's own.
        shaders: Option<PathBuf>,
    },
    /// More workgroups than a dispatch may have.
    #[error(
        "{program}: kernel {kernel} needs {workgroups} workgroups, this device allows {limit}; use a smaller batch"
    )]
    Grid {
        /// The program recorded.
        program: String,
        /// The kernel.
        kernel: String,
        /// Workgroups needed in one dimension.
        workgroups: u32,
        /// Workgroups allowed.
        limit: u32,
    },
    /// A buffer that no limit of this device allows.
    #[error(
        "{what} needs {bytes} bytes in one buffer, this device allows {limit}; use a smaller batch or another adapter"
    )]
    TooLarge {
        /// What was to be stored.
        what: String,
        /// Bytes needed.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
    },
}

/// Who is at fault where kernels compute wrongly, and what to do.
fn blame(shaders: Option<&Path>) -> String {
    match shaders {
        Some(folder) => format!(
            "the shaders in {} are at fault, or the driver",
            folder.display()
        ),
        None => {
            "the driver is at fault; update it, or choose another adapter with `adapter`".into()
        }
    }
}
