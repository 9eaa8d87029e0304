//! The command line program; see [`blip2_wgpu::cli`].

#![deny(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    silence_wayland();
    ExitCode::from(blip2_wgpu::cli::run(std::env::args_os()))
}

/// Mesa's layer that orders Vulkan devices asks for a Wayland display, and where there is no
/// `XDG_RUNTIME_DIR` (in containers, from cron) the library that it asks writes `error: XDG_RUNTIME_DIR is
/// invalid or not set in the environment` to stderr, twice a run. Nobody here wants a display: any
/// folder will do.
#[cfg(target_os = "linux")]
fn silence_wayland() {
    const FOLDER: &str = "XDG_RUNTIME_DIR";
    let is_set =
        std::env::var_os(FOLDER).is_some_and(|path| std::path::Path::new(&path).is_absolute());
    if !is_set {
        // SAFETY: the program has only this thread yet, so none reads the environment meanwhile.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(FOLDER, std::env::temp_dir());
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn silence_wayland() {}
