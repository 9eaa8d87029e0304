//! The command line program; see [`blip2_wgpu::cli`].

#![deny(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    quiet_drivers();
    ExitCode::from(blip2_wgpu::cli::run(std::env::args_os()))
}

/// Keeps lines of the drivers that nobody here can act on from stderr.
///
/// Mesa's layer that orders Vulkan devices asks for a Wayland display, and where there is no
/// `XDG_RUNTIME_DIR` (in containers, from cron) the library that it asks writes `error: XDG_RUNTIME_DIR is
/// invalid or not set in the environment` to stderr, twice a run. Nobody here wants a display: any
/// folder will do that is not in another one's hands. Where caches are to lie in what is no folder
/// (`XDG_CACHE_HOME=/dev/null`), Mesa says that it keeps none; it is asked not to.
#[cfg(target_os = "linux")]
fn quiet_drivers() {
    use std::path::Path;
    let has_runtime = std::env::var_os("XDG_RUNTIME_DIR");
    let has_runtime = has_runtime.is_some_and(|path| Path::new(&path).is_absolute());
    let caches = std::env::var_os("XDG_CACHE_HOME");
    let has_caches =
        caches.is_none_or(|path| !Path::new(&path).exists() || Path::new(&path).is_dir());
    for (variable, value, is_needed) in [
        ("XDG_RUNTIME_DIR", "/", !has_runtime),
        ("MESA_SHADER_CACHE_DISABLE", "true", !has_caches),
    ] {
        if is_needed {
            // SAFETY: the program has only this thread yet, so none reads the environment meanwhile.
            #[allow(unsafe_code)]
            unsafe {
                std::env::set_var(variable, value);
            }
        }
    }
}
