//! `blip2-wgpu bench kernels`

use crate::Error;
use crate::bench::{KernelRow, measure_kernels, unmatched};
use crate::cli::shared::Shared;
use crate::cli::shared::output::Output;
use crate::gpu::Gpu;
use crate::kernels::check_choices;

use super::{four_digits, percent};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only lines that contain one of these, such as matvec, 257x or tile
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Rounds, whose median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
}

pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    let gpu = Gpu::open(&shared.gpu_options()?).await?;
    check_choices(&gpu)?;
    let unmatched = unmatched(&gpu, &args.filter);
    for word in &unmatched {
        output.error(&format!(
            "no line contains {word:?}; lines begin like \"matvec 1x10240x2560 f16\""
        ));
    }
    if !unmatched.is_empty() && unmatched.len() == args.filter.len() {
        return Ok(false);
    }
    if !output.json {
        let info = gpu.info();
        output.line(&format!(
            "{} · {} {}",
            info.name, info.driver, info.driver_info
        ));
        output.line(&format!(
            "{:<20}{:<18}{:<20}{:>11}{:>10}{:>9}  share of",
            "kernel", "shape", "variant", "median ms", "GFLOP/s", "GB/s"
        ));
    }
    let mut found = |row: KernelRow| {
        output.line(&if output.json {
            json(&row, &gpu).to_string()
        } else {
            line(&row)
        });
    };
    measure_kernels(&gpu, &args.filter, usize::from(args.rounds), &mut found).await?;
    gpu.save_pipelines();
    Ok(unmatched.is_empty())
}

fn json(row: &KernelRow, gpu: &Gpu) -> serde_json::Value {
    let rate = |work: f64| (work > 0.0).then(|| four_digits(work / row.seconds / 1e9));
    serde_json::json!({
        "adapter": gpu.info().name,
        "driver": gpu.info().driver_info,
        "kernel": row.kernel,
        "shape": row.shape,
        "variant": row.variant,
        "median_ms": four_digits(row.seconds * 1e3),
        "gflops": rate(row.flops),
        "gbytes_per_s": rate(row.bytes),
        "ceiling": row.ceiling.map(|ceiling| ceiling.to_string()),
        "share": row.share.and_then(four_digits),
    })
}

fn line(row: &KernelRow) -> String {
    let rate = |work: f64, digits: usize| {
        if work > 0.0 {
            format!("{:.digits$}", work / row.seconds / 1e9)
        } else {
            String::new()
        }
    };
    let ceiling = row.ceiling.map(|ceiling| ceiling.to_string());
    format!(
        "{:<20}{:<18}{:<20}{:>11.3}{:>10}{:>9}  {:>5} {}",
        row.kernel,
        row.shape,
        row.variant,
        row.seconds * 1e3,
        rate(row.flops, 1),
        rate(row.bytes, 2),
        percent(row.share),
        ceiling.unwrap_or_default(),
    )
}
