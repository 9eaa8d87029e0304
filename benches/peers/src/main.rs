//! burn's wgpu matmul beside ours: the products of the model, on one adapter, in one process, in turns.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml                      # burn compiles WGSL
//! cargo run --release --manifest-path benches/peers/Cargo.toml --features spirv     # burn compiles SPIR-V, where it can
//! … -- --json  --f32  --shape 32x2560x2560  --rounds 5  --round-ms 300
//! ```
//! `BLIP2_WGPU_ADAPTER` chooses the adapter.
//!
//! Both sides compute `x · w` for the same f16 weights. Ours keeps them in f16 and multiplies by f32 rows, as the engine
//! does. burn multiplies values of one type only, so it is timed in f32 and, where the adapter has it, in f16; and with
//! the weights in either order: `[in, out]`, as burn's own linear layer keeps them, and `[out, in]` transposed by a
//! view, as checkpoints have them. A shape's ratio is that of burn's fastest f32 row, so that both compute to the same
//! precision; f16 rows are shown with theirs, and left out by `--f32`.

mod burn;
mod ours;
mod problem;

use std::process::ExitCode;
use std::time::Instant;

use blip2_wgpu::gpu::{AdapterChoice, Gpu, GpuOptions, WeightFormat};
use blip2_wgpu::kernels::self_check;
use burn::Order;
use problem::Problem;

/// Shapes `rows × out × in`: the square one that peers publish, the ViT's, prefill, decode.
const SHAPES: [[usize; 3]; 8] = [
    [256, 1024, 1024],
    [257, 6144, 1408],
    [257, 4224, 1408],
    [257, 1408, 6144],
    [32, 2560, 2560],
    [32, 10240, 2560],
    [1, 10240, 2560],
    [1, 2560, 10240],
];

/// What both sides may differ by, relative to the largest value: sums of up to 10,240 products in another order.
const TOLERANCE_F32: f64 = 2e-5;
/// The same where burn multiplies and adds in f16.
const TOLERANCE_F16: f64 = 2e-2;

type Failure = Box<dyn std::error::Error>;

struct Options {
    json: bool,
    f32_only: bool,
    shapes: Vec<[usize; 3]>,
    rounds: usize,
    round_seconds: f64,
}

/// One way to compute a product.
struct Row<'a> {
    name: String,
    f16: bool,
    ours: bool,
    run: Box<dyn FnMut(usize) -> Result<(), Failure> + 'a>,
    error: f64,
    replays: usize,
    times: Vec<f64>,
}

impl Row<'_> {
    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    fn tolerance(&self) -> f64 {
        if self.f16 {
            TOLERANCE_F16
        } else {
            TOLERANCE_F32
        }
    }

    /// Seconds a product, over `replays` of them.
    fn measure(&mut self, replays: usize) -> Result<f64, Failure> {
        let started = Instant::now();
        (self.run)(replays)?;
        Ok(started.elapsed().as_secs_f64() / replays as f64)
    }
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("results differ by more than rounding");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        json: false,
        f32_only: false,
        shapes: Vec::new(),
        rounds: 5,
        round_seconds: 0.3,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        match word.as_str() {
            "--json" => options.json = true,
            "--f32" => options.f32_only = true,
            "--rounds" => options.rounds = value()?.parse::<usize>()?.max(1),
            "--round-ms" => options.round_seconds = value()?.parse::<f64>()? / 1e3,
            "--shape" => options.shapes.push(shape(&value()?)?),
            _ => {
                return Err(format!(
                    "{word}: not an option; --json, --f32, --shape, --rounds, --round-ms are"
                )
                .into());
            }
        }
    }
    if options.shapes.is_empty() {
        options.shapes = SHAPES.to_vec();
    }
    Ok(options)
}

/// Reads `ROWSxOUTxIN`.
fn shape(text: &str) -> Result<[usize; 3], Failure> {
    let sizes: Vec<usize> = text.split('x').map(str::parse).collect::<Result<_, _>>()?;
    let shape: [usize; 3] = sizes
        .try_into()
        .map_err(|_| format!("{text}: not ROWSxOUTxIN"))?;
    if shape.contains(&0) || !shape[2].is_multiple_of(8) {
        return Err(format!("{text}: sizes are at least 1, and IN is a multiple of 8").into());
    }
    Ok(shape)
}

/// Whether all results agreed.
fn run(options: &Options) -> Result<bool, Failure> {
    let adapter = std::env::var("BLIP2_WGPU_ADAPTER").unwrap_or_default();
    let gpu = pollster::block_on(Gpu::open(&GpuOptions {
        adapter: AdapterChoice::parse(&adapter),
        ..GpuOptions::default()
    }))?;
    pollster::block_on(self_check(&gpu, &[WeightFormat::F16]))?;
    let peer = burn::Peer::open(gpu.info())?;
    let info = gpu.info();
    if !options.json {
        println!("{} · {} · {}", info.name, info.driver, info.driver_info);
        println!("burn {} · {}", burn::VERSION, peer.describe());
        println!(
            "{:<18}{:<24}{:>12}{:>12}{:>8}{:>11}",
            "rows x out x in", "", "median ms", "GFLOP/s", "ratio", "rel. error"
        );
    }
    let mut ratios = Vec::new();
    let mut shapes = Vec::new();
    let mut agree = true;
    for &sizes in &options.shapes {
        let problem = Problem::new(sizes);
        let mut rows = rows(&problem, &gpu, &peer, options)?;
        time(&mut rows, options)?;
        let ours = rows[0].median();
        let theirs = rows
            .iter()
            .filter(|row| !row.ours && !row.f16)
            .map(Row::median);
        let ratio = theirs.fold(f64::INFINITY, f64::min) / ours;
        ratios.push(ratio);
        agree &= rows.iter().all(|row| row.error <= row.tolerance());
        let name = sizes.map(|size| size.to_string()).join("x");
        for row in rows.iter().filter(|_| !options.json) {
            let median = row.median();
            println!(
                "{:<18}{:<24}{:>12.3}{:>12.2}{:>8.2}{:>11.1e}",
                name,
                row.name,
                median * 1e3,
                problem.flops() / median / 1e9,
                median / ours,
                row.error
            );
        }
        let rows: Vec<_> = rows.iter().map(|row| json_row(row, &problem)).collect();
        shapes.push(serde_json::json!({ "shape": sizes, "ratio": ratio, "rows": rows }));
    }
    let geometric_mean =
        (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    if options.json {
        println!(
            "{}",
            serde_json::json!({
                "adapter": info.name, "driver": info.driver, "driver_info": info.driver_info,
                "burn": burn::VERSION, "burn_compiler": peer.describe(),
                "rounds": options.rounds, "agree": agree, "shapes": shapes,
                "ratio_geometric_mean": geometric_mean, "ratio_least": least,
            })
        );
    } else {
        println!("burn f32 / ours: geometric mean {geometric_mean:.2}, least {least:.2}");
    }
    Ok(agree)
}

fn json_row(row: &Row, problem: &Problem) -> serde_json::Value {
    let median = row.median();
    serde_json::json!({
        "name": row.name, "median_ms": median * 1e3, "times_ms": row.times.iter().map(|t| t * 1e3).collect::<Vec<_>>(),
        "gflops": problem.flops() / median / 1e9, "relative_error": row.error,
    })
}

/// Ours, then burn's, each with its result compared with sums in f64.
fn rows<'a>(
    problem: &Problem,
    gpu: &'a Gpu,
    peer: &'a burn::Peer,
    options: &Options,
) -> Result<Vec<Row<'a>>, Failure> {
    let ours = ours::Product::new(gpu, problem)?;
    let mut rows = vec![Row {
        name: format!("ours, {}", ours.kernel),
        f16: false,
        ours: true,
        error: problem.error(&ours.result()?),
        run: Box::new(move |replays| ours.run(replays)),
        replays: 1,
        times: Vec::new(),
    }];
    for f16 in [false, true] {
        if f16 && (options.f32_only || !peer.has_f16()) {
            continue;
        }
        for order in [Order::InOut, Order::OutIn] {
            let product = peer.product(problem, f16, order);
            rows.push(Row {
                name: format!("burn {} {}", if f16 { "f16" } else { "f32" }, order.name()),
                f16,
                ours: false,
                error: problem.error(&product.result()?),
                run: Box::new(move |replays| product.run(replays)),
                replays: 1,
                times: Vec::new(),
            });
        }
    }
    Ok(rows)
}

/// Warms every row up until it gets no faster (shaders, burn's autotune, pages), then times them in turns.
fn time(rows: &mut [Row], options: &Options) -> Result<(), Failure> {
    for row in rows.iter_mut() {
        let mut best = row.measure(1)?;
        for _ in 0..8 {
            let now = row.measure(1)?;
            let settled = now > 0.8 * best;
            best = best.min(now);
            if settled {
                break;
            }
        }
        row.replays = ((options.round_seconds / best) as usize).clamp(1, 500);
    }
    for _ in 0..options.rounds {
        for row in rows.iter_mut() {
            let time = row.measure(row.replays)?;
            row.times.push(time);
        }
    }
    Ok(())
}
