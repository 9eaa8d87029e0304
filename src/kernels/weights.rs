//! Kernels that read weight matrices: one a weight format, for which their files import `shared/weights_{weights}`.

use crate::gpu::{Kernel, WeightFormat};

/// The kernels of the file `shaders/$folder/$name.wgsl`, one a format in the order of [`WeightFormat::ALL`].
macro_rules! by_format {
    ($params:ty, $folder:literal, $name:literal, $bindings:expr) => {{
        const KERNEL: Kernel = Kernel::new::<$params>(concat!($folder, "/", $name), $bindings);
        [
            KERNEL.named($name, &[("weights", "f16")]),
            KERNEL.named(concat!($name, "_q8"), &[("weights", "q8")]),
            KERNEL.named(concat!($name, "_q4"), &[("weights", "q4")]),
        ]
    }};
}

pub(super) use by_format;

/// The one of `kernels` for weights in `format`.
pub(super) fn of_format(kernels: &'static [Kernel; 3], format: WeightFormat) -> &'static Kernel {
    let [f16, q8, q4] = kernels;
    match format {
        WeightFormat::F16 => f16,
        WeightFormat::Q8 => q8,
        WeightFormat::Q4 => q4,
    }
}
