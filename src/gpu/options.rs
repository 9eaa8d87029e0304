//! How to open a device.

use std::path::PathBuf;

use super::GpuError;
use super::adapter::AdapterChoice;
use super::profile::Profiler;

/// Features that are left unused although the adapter has them: for tests, and around driver faults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disabled {
    /// No kernel may use `SHADER_F16`. Only those on cooperative matrices do: weights are unpacked from `u32` everywhere
    /// else.
    pub f16: bool,
    /// Do not use subgroup operations.
    pub subgroups: bool,
    /// Stay within WebGPU's default limits (128 MiB bindings, 16 KiB workgroup memory, 256 invocations).
    pub limits: bool,
}

impl Disabled {
    /// Reads a comma-separated list of `f16`, `subgroups`, `limits`; empty text disables nothing.
    ///
    /// # Errors
    /// [`GpuError::UnknownDisable`] for any other word.
    pub fn parse(list: &str) -> Result<Self, GpuError> {
        let mut disabled = Self::default();
        for word in list
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            match word {
                "f16" => disabled.f16 = true,
                "subgroups" => disabled.subgroups = true,
                "limits" => disabled.limits = true,
                _ => return Err(GpuError::UnknownDisable { word: word.into() }),
            }
        }
        Ok(disabled)
    }
}

/// A kernel that the user has chosen, as `linear=matvec_subgroup`: what is computed, and by which variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelChoice {
    /// `linear`, or one of `matmul` and `matvec` alone; `attention`.
    pub family: String,
    /// A variant as `devices` lists it, the first word of one, or a kernel's name.
    pub variant: String,
}

impl KernelChoice {
    /// Reads a comma-separated list of choices.
    ///
    /// # Errors
    /// [`GpuError::UnknownKernel`] for what has no `=`. Which families and variants there are is known when the device is
    /// open.
    pub fn parse(list: &str) -> Result<Vec<Self>, GpuError> {
        let words = list.split(',').map(str::trim).filter(|it| !it.is_empty());
        words
            .map(|word| match word.split_once('=') {
                Some((family, variant)) => Ok(Self {
                    family: family.trim().into(),
                    variant: variant.trim().into(),
                }),
                None => Err(GpuError::UnknownKernel {
                    wanted: word.into(),
                    available: "a choice is FAMILY=VARIANT, such as linear=tile".into(),
                }),
            })
            .collect()
    }

    /// The variant without its size.
    pub(crate) fn kind(&self) -> &str {
        self.variant.split(' ').next().unwrap_or_default()
    }
}

impl std::fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.family, self.variant)
    }
}

/// How to open a device.
#[derive(Debug, Clone, Default)]
pub struct GpuOptions {
    /// Which adapter.
    pub adapter: AdapterChoice,
    /// What not to use of it.
    pub disabled: Disabled,
    /// Build shaders with bounds checks and zeroed workgroup memory (slower, same results).
    pub checked: bool,
    /// Where compiled pipelines are kept between runs; `None` keeps none.
    pub cache_dir: Option<PathBuf>,
    /// The variants that serve, in the place of those that this program would choose: for measuring, and around driver faults.
    /// Which variants there are, `devices` lists. What cannot be is an error of [`crate::kernels::self_check`].
    pub kernels: Vec<KernelChoice>,
    /// A folder of shaders, laid out as `shaders/` is, that stand in for those of this program: for trying a change without
    /// building anew. A kernel whose text is not this program's own is built with bounds checks, as by `checked`: what
    /// is promised of ours is not known of it.
    pub shaders: Option<PathBuf>,
    /// Split weight matrices into parts of at most this many bytes, where bindings could be larger: for tests of what
    /// a device with small bindings does to large weights. `None` splits only what does not fit one binding.
    pub max_part_bytes: Option<u64>,
    /// Collects the time of every dispatch. `None` times nothing, and costs nothing.
    pub profiler: Option<Profiler>,
    /// Bind at most this many bytes at once, where the device could more: for tests of what becomes of requests that
    /// a device has no room for. `None` is the device's own limit.
    pub max_binding_bytes: Option<u64>,
}
