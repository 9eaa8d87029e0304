//! Every kernel variant at the model's shapes, on one adapter in one run: medians of wall time.
//!
//! ```text
//! cargo bench --bench kernels            # all
//! cargo bench --bench kernels -- matvec  # rows whose name contains a word
//! ```
//! `BLIP2_WGPU_ADAPTER` chooses the adapter. Other work on the machine shows in the figures: compare rows of one run.

use std::time::{Duration, Instant};

use blip2_wgpu::gpu::{
    Activation, ActivationPool, AdapterChoice, Gpu, GpuOptions, Program, ProgramBuilder,
    WeightFormat,
};
use blip2_wgpu::kernels::{
    Attention, Heads, LayerNorm, Linear, MATVEC_ROWS, View, argmax, attention_candidates,
    attention_with, candidates, copy, layer_norm, linear_with, top_k,
};

/// Rounds whose median counts; the rows of the table take turns, so that drift hits all alike.
const ROUNDS: usize = 7;
/// Replays a round aims at this long.
const ROUND_TIME: Duration = Duration::from_millis(150);

/// Shapes `rows × out × in` of the ViT, the Q-Former and prefill, and the square one that peers publish.
const MATMUL_SHAPES: [[usize; 3]; 7] = [
    [256, 1024, 1024],
    [257, 4224, 1408],
    [257, 6144, 1408],
    [257, 1408, 6144],
    [32, 2560, 2560],
    [40, 7680, 2560],
    [40, 10240, 2560],
];

/// Weights `out × in` of a decode step.
const MATVEC_SHAPES: [[usize; 2]; 3] = [[10240, 2560], [2560, 10240], [7680, 2560]];

/// One line of the table.
struct Row {
    name: String,
    flops: f64,
    bytes: f64,
    program: Program,
    replays: usize,
    times: Vec<f64>,
}

fn main() -> Result<(), blip2_wgpu::Error> {
    // Cargo hands `--bench` to every bench target.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    pollster::block_on(run(&wanted))
}

async fn run(wanted: &[String]) -> Result<(), blip2_wgpu::Error> {
    let adapter = std::env::var("BLIP2_WGPU_ADAPTER").unwrap_or_default();
    let options = GpuOptions {
        adapter: AdapterChoice::parse(&adapter),
        ..GpuOptions::default()
    };
    let gpu = Gpu::open(&options).await?;
    let mut rows = Vec::new();
    add_copy(&gpu, &mut rows)?;
    add_matmuls(&gpu, &mut rows)?;
    add_matvecs(&gpu, &mut rows)?;
    add_attention(&gpu, &mut rows)?;
    add_row_kernels(&gpu, &mut rows)?;
    rows.retain(|row| wanted.is_empty() || wanted.iter().any(|word| row.name.contains(word)));

    for row in &mut rows {
        measure(&gpu, row).await?; // warm-up: pipelines, pages
        let once = measure(&gpu, row).await?;
        row.replays = ((ROUND_TIME.as_secs_f64() / once) as usize).clamp(1, 200);
    }
    for _ in 0..ROUNDS {
        for row in &mut rows {
            let time = measure(&gpu, row).await?;
            row.times.push(time);
        }
    }
    let info = gpu.info();
    println!("{} · {} · {}", info.name, info.driver, info.driver_info);
    println!(
        "{:<44}{:>12}{:>12}{:>10}",
        "kernel, shape, variant", "median ms", "GFLOP/s", "GB/s"
    );
    for row in &mut rows {
        row.times.sort_by(f64::total_cmp);
        let median = row.times[row.times.len() / 2];
        let (gflops, gbytes) = (row.flops / median / 1e9, row.bytes / median / 1e9);
        println!(
            "{:<44}{:>12.3}{:>12.1}{:>10.2}",
            row.name,
            median * 1e3,
            gflops,
            gbytes
        );
    }
    Ok(())
}

/// Seconds a replay, over `replays` of them in one submit.
async fn measure(gpu: &Gpu, row: &Row) -> Result<f64, blip2_wgpu::Error> {
    let replays = row.replays.max(1);
    let started = Instant::now();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    for _ in 0..replays {
        row.program.encode(&mut encoder);
    }
    gpu.submit([encoder.finish()]);
    gpu.finish("measuring").await?;
    Ok(started.elapsed().as_secs_f64() / replays as f64)
}

fn add(
    gpu: &Gpu,
    rows: &mut Vec<Row>,
    name: String,
    (flops, bytes): (usize, usize),
    record: impl FnOnce(&mut ProgramBuilder),
) -> Result<(), blip2_wgpu::Error> {
    let mut program = ProgramBuilder::new(gpu, "bench");
    record(&mut program);
    rows.push(Row {
        name,
        flops: flops as f64,
        bytes: bytes as f64,
        program: program.finish(&ActivationPool::default())?,
        replays: 1,
        times: Vec::new(),
    });
    Ok(())
}

/// Values that are neither zero nor denormal, which some processors treat specially.
fn filled(gpu: &Gpu, rows: usize, columns: usize) -> Result<Activation, blip2_wgpu::Error> {
    let values: Vec<f32> = (0..rows * columns)
        .map(|i| (i % 17) as f32 * 0.1 - 0.8)
        .collect();
    let buffer = gpu.storage_with("x", &values)?;
    Ok(Activation::external(&buffer, rows, columns))
}

/// A layer without bias; quantised values are the bits of a pattern of halves, as good as any for a timing.
fn layer(
    gpu: &Gpu,
    format: WeightFormat,
    [out_features, in_features]: [usize; 2],
) -> Result<Linear, blip2_wgpu::Error> {
    let half = |i: usize| half::f16::from_f32((i % 13) as f32 * 0.01 - 0.06);
    let halves: Vec<half::f16> = (0..out_features * in_features).map(half).collect();
    let scales: Vec<half::f16> = (0..out_features * format.row_scales(in_features))
        .map(half)
        .collect();
    let shape = [out_features, in_features];
    let values = bytemuck::cast_slice(&halves);
    Ok(Linear {
        weight: gpu.weight_matrix_with("weight", format, shape, values, &scales)?,
        bias: None,
    })
}

fn add_copy(gpu: &Gpu, rows: &mut Vec<Row>) -> Result<(), blip2_wgpu::Error> {
    let x = filled(gpu, 4096, 4096)?;
    let target = gpu.storage("copy", 4096 * 4096 * 4)?;
    add(
        gpu,
        rows,
        "copy 64 MiB".into(),
        (0, 2 * 4096 * 4096 * 4),
        |program| copy(program, &x, &target),
    )
}

fn add_matmuls(gpu: &Gpu, rows: &mut Vec<Row>) -> Result<(), blip2_wgpu::Error> {
    for format in WeightFormat::ALL {
        for [m, n, k] in MATMUL_SHAPES {
            add_products(gpu, rows, m, &layer(gpu, format, [n, k])?)?;
        }
    }
    Ok(())
}

fn add_matvecs(gpu: &Gpu, rows: &mut Vec<Row>) -> Result<(), blip2_wgpu::Error> {
    for format in WeightFormat::ALL {
        for shape in MATVEC_SHAPES {
            let layer = layer(gpu, format, shape)?;
            for m in [1, 5, MATVEC_ROWS] {
                add_products(gpu, rows, m, &layer)?;
            }
        }
    }
    Ok(())
}

/// `m` rows times `layer` by every kernel that can.
fn add_products(
    gpu: &Gpu,
    rows: &mut Vec<Row>,
    m: usize,
    layer: &Linear,
) -> Result<(), blip2_wgpu::Error> {
    let (n, k) = (layer.weight.rows, layer.weight.columns);
    let kind = if m <= MATVEC_ROWS { "matvec" } else { "matmul" };
    let x = filled(gpu, m, k)?;
    for variant in candidates(gpu.capabilities(), m) {
        let format = layer.weight.format;
        let name = format!("{kind} {format} {m}x{n}x{k} {variant}");
        let bytes = layer.weight.bytes() as usize;
        add(gpu, rows, name, (2 * m * n * k, bytes), |program| {
            linear_with(program, variant, &x, layer);
        })?;
    }
    Ok(())
}

fn add_attention(gpu: &Gpu, rows: &mut Vec<Row>) -> Result<(), blip2_wgpu::Error> {
    let heads = Heads { count: 16, dim: 88 };
    let width = heads.width();
    for variant in attention_candidates(gpu.capabilities()) {
        for tokens in [257, 677] {
            let qkv = filled(gpu, tokens, 3 * width)?;
            let key_lengths = gpu.storage_with("key_lengths", &[tokens as u32])?;
            let work = (4 * tokens * tokens * width, tokens * 4 * width * 4);
            add(
                gpu,
                rows,
                format!("attention {tokens}x16x88 {variant:?}"),
                work,
                |program| {
                    let inputs = Attention {
                        q: View {
                            of: &qkv,
                            column: 0,
                        },
                        k: View {
                            of: &qkv,
                            column: width,
                        },
                        v: View {
                            of: &qkv,
                            column: 2 * width,
                        },
                        key_lengths: &key_lengths,
                        batch: 1,
                        heads,
                        scale: heads.scale(),
                    };
                    attention_with(program, &inputs, variant);
                },
            )?;
        }
    }
    Ok(())
}

fn add_row_kernels(gpu: &Gpu, rows: &mut Vec<Row>) -> Result<(), blip2_wgpu::Error> {
    let x = filled(gpu, 257, 1408)?;
    let norm = LayerNorm {
        weight: gpu.vector("weight", &vec![1.0; 1408])?,
        bias: gpu.vector("bias", &vec![0.0; 1408])?,
        eps: 1e-6,
    };
    add(
        gpu,
        rows,
        "layer_norm 257x1408".into(),
        (0, 2 * 257 * 1408 * 4),
        |program| {
            layer_norm(program, &x, &norm);
        },
    )?;
    let logits = filled(gpu, 10, 50304)?;
    let choices = gpu.storage("choices", 160)?;
    add(
        gpu,
        rows,
        "argmax 10x50304".into(),
        (0, 10 * 50304 * 4),
        |program| argmax(program, &logits, &choices),
    )?;
    let (top, sums) = (gpu.storage("top", 10 * 20 * 8)?, gpu.storage("sums", 40)?);
    add(
        gpu,
        rows,
        "top_k 10x50304, 20".into(),
        (0, 10 * 50304 * 4),
        |program| {
            top_k(program, &logits, 20, &top, &sums);
        },
    )
}
