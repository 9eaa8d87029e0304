//! The command line program; see [`blip2_wgpu::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(blip2_wgpu::cli::run(std::env::args_os()))
}
