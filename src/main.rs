//! The command line program; see [`blip2_wgpu::cli`].

fn main() -> std::process::ExitCode {
    blip2_wgpu::cli::run()
}
