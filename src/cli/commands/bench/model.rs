//! `blip2-wgpu bench model`

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use crate::Error;
use crate::bench::{BatchRow, Ceiling, LoadRow, ModelBench, ModelReport, picture, reading_rate};
use crate::cli::shared::Shared;
use crate::cli::shared::output::Output;
use crate::gpu::{Gpu, WeightFormat};
use crate::image::{DecodePolicy, decode_file};
use crate::kernels::self_check;
use crate::task::{Blip2, MAX_BATCH, OpenOptions, Work};
use crate::weights::Checkpoint;

use super::{four_digits, percent};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image to caption; without one, a made-up picture of 640 × 480 pixels
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Tokens of each caption, neither more nor fewer
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    max_new_tokens: u16,
    /// Images at once, comma-separated
    #[arg(long, value_name = "N,…", default_value = "1,8,32", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=MAX_BATCH as i64))]
    batches: Vec<u16>,
    /// Rounds, whose median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
}

pub async fn run(shared: &Shared, args: &Args, output: &Output) -> Result<bool, Error> {
    let image = match &args.image {
        Some(file) => decode_file(file, DecodePolicy::hf())?,
        None => picture().ok_or_else(|| Error::Request {
            problem: "no picture".into(),
        })?,
    };
    let work = Work {
        batch_size: args.batches.iter().max().map(|&batch| usize::from(batch)),
        beams: Some(1),
        new_tokens: Some(usize::from(args.max_new_tokens)),
    };
    let (mut model, load) = match open(shared, work, output).await {
        // The batch of a bench is its largest.
        Err(Error::Memory(shortage)) => {
            let text = shortage.to_string().replace("`batch_size`", "`batches`");
            return Ok(output.fail(&text));
        }
        opened => opened?,
    };
    let bench = ModelBench {
        image,
        max_new_tokens: usize::from(args.max_new_tokens),
        batches: args
            .batches
            .iter()
            .map(|&batch| usize::from(batch))
            .collect(),
        rounds: usize::from(args.rounds),
    };
    let report = bench.run(&mut model).await?;
    model.gpu().save_pipelines();
    if output.json {
        for line in json_lines(&model, &load, &report) {
            output.line(&line.to_string());
        }
    } else {
        print(&model, &load, &report, output);
    }
    Ok(true)
}

/// Opens the model on a device that is open and checked already: what is timed is the checkpoint.
async fn open(shared: &Shared, work: Work, output: &Output) -> Result<(Blip2, LoadRow), Error> {
    let path = shared.checkpoint()?;
    let gpu = Gpu::open(&shared.gpu_options()?).await?;
    self_check(&gpu, &WeightFormat::ALL).await?;
    let options = OpenOptions {
        device: Some(gpu),
        ..shared.open_options(None, work)?
    };
    let started = Instant::now();
    let mut bytes = None;
    let model = match path {
        #[cfg(feature = "demo-model")]
        None => Blip2::demo(options).await?,
        #[cfg(not(feature = "demo-model"))]
        None => return Err(Error::NoModel),
        Some(path) => {
            let mut progress = |_, total| bytes = Some(total);
            Blip2::open_with_progress(path, options, &mut progress).await?
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    let mut load = LoadRow {
        seconds,
        bytes,
        read_rate: None,
    };
    if let Some(path) = path {
        match reading_rate(Checkpoint::open(path)?.files()) {
            Ok(rate) => load.read_rate = Some(rate),
            Err(error) => output.warning(&format!("{}: {error}", path.display())),
        }
    }
    Ok((model, load))
}

const CEILINGS: [Ceiling; 4] = [
    Ceiling::Copy,
    Ceiling::Read,
    Ceiling::Multiply,
    Ceiling::Cooperative,
];

fn json_lines(model: &Blip2, load: &LoadRow, report: &ModelReport) -> Vec<Value> {
    let info = model.gpu().info();
    let giga = |rate: Option<f64>| rate.and_then(|rate| four_digits(rate / 1e9));
    let rate = |ceiling| giga(report.ceilings.rate(ceiling));
    let mut lines = vec![
        json!({
            "bench": "ceilings",
            "adapter": info.name,
            "driver": info.driver_info,
            "copy_gbytes_per_s": rate(Ceiling::Copy),
            "read_gbytes_per_s": rate(Ceiling::Read),
            "multiply_gflops": rate(Ceiling::Multiply),
            "cooperative_gflops": rate(Ceiling::Cooperative),
        }),
        json!({
            "bench": "load",
            "seconds": four_digits(load.seconds),
            "bytes": load.bytes,
            "gbytes_per_s": giga(load.rate()),
            "file_gbytes_per_s": giga(load.read_rate),
            "share": load.share().and_then(four_digits),
        }),
    ];
    lines.extend(report.batches.iter().map(|row| {
        json!({
            "bench": "batch",
            "batch": row.batch,
            "images_per_s": four_digits(row.images_per_second),
            "encoder_gflops": giga(Some(row.encoder_flops * row.images_per_second)),
            "encoder_share": row.encoder_share.and_then(four_digits),
            "first_token_ms": four_digits(row.first_token_seconds * 1e3),
            "step_ms": row.step_seconds.and_then(|step| four_digits(step * 1e3)),
            "tokens_per_s": row.tokens_per_second.and_then(four_digits),
            "step_weight_bytes": row.step_bytes as u64,
            "decode_gbytes_per_s": giga(row.step_seconds.map(|step| row.step_bytes / step)),
            "decode_share": row.decode_share.and_then(four_digits),
            "captions_per_s": four_digits(row.captions_per_second),
        })
    }));
    lines
}

fn print(model: &Blip2, load: &LoadRow, report: &ModelReport, output: &Output) {
    let info = model.gpu().info();
    output.line(&format!(
        "{} · {} {}",
        info.name, info.driver, info.driver_info
    ));
    let limits: Vec<String> = CEILINGS
        .iter()
        .filter_map(|&ceiling| {
            let rate = report.ceilings.rate(ceiling)? / 1e9;
            let unit = match ceiling {
                Ceiling::Copy | Ceiling::Read => "GB/s",
                Ceiling::Multiply | Ceiling::Cooperative => "GFLOP/s",
            };
            Some(format!("{ceiling} {rate:.1} {unit}"))
        })
        .collect();
    output.line(&format!("ceilings: {}", limits.join(", ")));
    let mut text = format!("load: {:.2} s", load.seconds);
    if let Some(rate) = load.rate() {
        text += &format!(", {:.2} GB/s", rate / 1e9);
    }
    if let Some(rate) = load.read_rate {
        let share = percent(load.share());
        text += &format!(
            ", {share} of reading the files once ({:.2} GB/s)",
            rate / 1e9
        );
    }
    output.line(&text);
    output.line(
        "batch  images/s  GFLOP/s   share  first token ms   step ms  tokens/s    GB/s   share  captions/s",
    );
    for row in &report.batches {
        output.line(&line(row));
    }
}

fn line(row: &BatchRow) -> String {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
    };
    format!(
        "{:>5}{:>10.2}{:>9.1}{:>8}{:>16.1}{:>10}{:>10}{:>8}{:>8}{:>12.3}",
        row.batch,
        row.images_per_second,
        row.encoder_flops * row.images_per_second / 1e9,
        percent(row.encoder_share),
        row.first_token_seconds * 1e3,
        number(row.step_seconds.map(|step| step * 1e3), 2),
        number(row.tokens_per_second, 1),
        number(row.step_seconds.map(|step| row.step_bytes / step / 1e9), 2),
        percent(row.decode_share),
        row.captions_per_second,
    )
}
