//! The kernels to measure, at the shapes of blip2-opt-2.7b (ViT-g: 1408 wide, 16 heads, MLP 6144; OPT: 2560 wide, MLP 10240,
//! 50272 tokens), each by every variant that the adapter offers.

use crate::gpu::{Gpu, GpuError, ProgramBuilder, WeightFormat};
use crate::kernels::{
    Attention, AttentionVariant, CooperativeLoop, Heads, LayerNorm, LinearVariant, MATVEC_ROWS,
    MULTIPLY_STEP_FLOPS, READ_BYTES, View, argmax, attention_candidates, attention_with,
    bench_cooperative, bench_copy, bench_multiply, bench_read, candidates, layer_norm, linear_with,
    sums_bytes, top_k,
};

use super::Inputs;
use super::kernels::Ceiling;

/// Rows of the ViT: one image at 224 and at 364 pixels, eight at 224.
const VIT_ROWS: [usize; 3] = [257, 677, 8 * 257];
/// Weights `out × in` of a block of it.
const VIT_WEIGHTS: [[usize; 2]; 4] = [[4224, 1408], [1408, 1408], [6144, 1408], [1408, 6144]];
/// Rows of a prefill: the queries, and a few words.
const PREFILL_ROWS: [usize; 2] = [32, 40];
/// Rows of a decode step: texts or beams.
const DECODE_ROWS: [usize; 4] = [1, 2, 5, MATVEC_ROWS];
/// Weights of a layer of OPT.
const OPT_WEIGHTS: [[usize; 2]; 4] = [[7680, 2560], [2560, 2560], [10240, 2560], [2560, 10240]];
/// Its tokens.
const VOCABULARY: usize = 50272;
/// The square product that others publish.
const SQUARE: [usize; 3] = [256, 1024, 1024];

const MIB: u64 = 1 << 20;
/// Bytes that no cache holds.
const NO_CACHE: usize = 256 << 20;

/// How a kernel's bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Read, with little written: [`Ceiling::Read`].
    Read,
    /// Read and written alike: [`Ceiling::Copy`].
    Copy,
}

type Record = dyn Fn(&mut Inputs, &mut ProgramBuilder) -> Result<(), GpuError>;

/// One kernel at one shape by one variant.
pub struct Case {
    /// What is computed.
    pub kernel: &'static str,
    /// Its sizes.
    pub shape: String,
    /// By which kernel; empty where there is only one.
    pub variant: String,
    /// Multiplications and additions.
    pub flops: f64,
    /// Bytes that must move: of products the weights only.
    pub bytes: f64,
    /// How they move.
    pub traffic: Traffic,
    /// Whether products run on cooperative matrices.
    pub cooperative: bool,
    /// What it is the ceiling of, if it is one.
    pub ceiling: Option<Ceiling>,
    /// How often it is recorded: products of few rows once for each of several weights, so that none comes from a cache.
    pub repeats: usize,
    record: Box<Record>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Case").field(&self.name()).finish()
    }
}

impl Case {
    fn new(
        kernel: &'static str,
        shape: String,
        (flops, bytes): (usize, usize),
        record: impl Fn(&mut Inputs, &mut ProgramBuilder) -> Result<(), GpuError> + 'static,
    ) -> Self {
        Self {
            kernel,
            shape,
            variant: String::new(),
            flops: flops as f64,
            bytes: bytes as f64,
            traffic: Traffic::Read,
            cooperative: false,
            ceiling: None,
            repeats: 1,
            record: Box::new(record),
        }
    }

    fn ceiling(self, ceiling: Ceiling) -> Self {
        Self {
            ceiling: Some(ceiling),
            ..self
        }
    }

    fn copying(self) -> Self {
        Self {
            traffic: Traffic::Copy,
            ..self
        }
    }

    fn variant(self, variant: String) -> Self {
        Self { variant, ..self }
    }

    /// Kernel, shape and variant: what filters look at.
    #[must_use]
    pub fn name(&self) -> String {
        let name = format!("{} {} {}", self.kernel, self.shape, self.variant);
        name.trim_end().to_owned()
    }

    /// Whether it is another variant of the same: what is measured in turns.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        (self.kernel, &self.shape) == (other.kernel, &other.shape)
    }

    /// Records it, `repeats` times.
    ///
    /// # Errors
    /// No room on the device.
    pub fn record(
        &self,
        inputs: &mut Inputs,
        program: &mut ProgramBuilder,
    ) -> Result<(), GpuError> {
        (self.record)(inputs, program)
    }
}

/// What the adapter reaches where a kernel does one thing only.
#[must_use]
pub fn ceilings(gpu: &Gpu) -> Vec<Case> {
    let largest = gpu.capabilities().max_binding_bytes;
    let copied = (64 * MIB).min(largest / 16 * 16);
    let read = (NO_CACHE as u64).min(largest) / READ_BYTES * READ_BYTES;
    let is_cpu = gpu.info().device_type == wgpu::DeviceType::Cpu;
    let threads = 1 << 20;
    let steps: u32 = if is_cpu { 16 } else { 256 };
    let mut all = vec![
        Case::new(
            "bench_copy",
            format!("{} MiB", copied / MIB),
            (0, 2 * copied as usize),
            move |inputs, program| {
                let (x, y) = (inputs.buffer(copied)?, inputs.buffer(copied)?);
                bench_copy(program, &x, &y);
                Ok(())
            },
        )
        .copying()
        .ceiling(Ceiling::Copy),
        Case::new(
            "bench_read",
            format!("{} MiB", read / MIB),
            (0, read as usize),
            move |inputs, program| {
                let sums = inputs.gpu().storage("sums", sums_bytes(read))?;
                bench_read(program, &inputs.buffer(read)?, &sums);
                Ok(())
            },
        )
        .ceiling(Ceiling::Read),
        Case::new(
            "bench_multiply",
            format!("{threads} threads"),
            (
                threads * (u64::from(steps) * MULTIPLY_STEP_FLOPS) as usize,
                0,
            ),
            move |inputs, program| {
                let y = inputs.gpu().storage("y", 4 * threads as u64)?;
                bench_multiply(program, steps, &y);
                Ok(())
            },
        )
        .ceiling(Ceiling::Multiply),
    ];
    if let Some(kind) = CooperativeLoop::of(gpu) {
        let (workgroups, steps) = (4096, 256);
        all.push(
            Case::new(
                "bench_cooperative",
                format!("{0}x{0}x{0}", kind.side),
                (kind.flops(workgroups, steps) as usize, 0),
                move |inputs, program| {
                    let x = inputs.buffer(kind.input_bytes())?;
                    let y = inputs.gpu().storage("y", kind.result_bytes(workgroups))?;
                    bench_cooperative(program, kind, (workgroups, steps), &x, &y);
                    Ok(())
                },
            )
            .ceiling(Ceiling::Cooperative),
        );
    }
    all
}

/// Every case but the ceilings.
#[must_use]
pub fn cases(gpu: &Gpu) -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(products(
        gpu,
        SQUARE[0],
        WeightFormat::F16,
        [SQUARE[1], SQUARE[2]],
    ));
    // The most telling ones first, should the time run out; the shapes of one weight together, which is made once.
    for weight in OPT_WEIGHTS.into_iter().chain([[VOCABULARY, 2560]]) {
        for format in WeightFormat::ALL {
            for rows in DECODE_ROWS {
                all.extend(products(gpu, rows, format, weight));
            }
        }
    }
    for weight in VIT_WEIGHTS {
        for rows in VIT_ROWS {
            all.extend(products(gpu, rows, WeightFormat::F16, weight));
        }
    }
    for weight in OPT_WEIGHTS {
        for (format, rows) in [
            (WeightFormat::F16, PREFILL_ROWS.as_slice()),
            // Quantised weights are for what waits for its weights; more rows wait for arithmetic.
            (WeightFormat::Q8, &PREFILL_ROWS[..1]),
            (WeightFormat::Q4, &PREFILL_ROWS[..1]),
        ] {
            for &rows in rows {
                all.extend(products(gpu, rows, format, weight));
            }
        }
    }
    for (tokens, batch) in [(257, 1), (257, 8), (677, 1)] {
        all.extend(attentions(gpu, tokens, batch));
    }
    for [rows, width] in [[257, 1408], [8 * 257, 1408], [1, 2560]] {
        all.push(norm(rows, width));
    }
    for rows in [1, 10] {
        all.push(best(rows));
        all.push(several_best(rows, 20));
    }
    all
}

/// A product by every kernel that can do it.
fn products(
    gpu: &Gpu,
    rows: usize,
    format: WeightFormat,
    [out_features, in_features]: [usize; 2],
) -> Vec<Case> {
    let kernel = if rows <= MATVEC_ROWS {
        "matvec"
    } else {
        "matmul"
    };
    let work = (
        2 * rows * out_features * in_features,
        format.part_bytes(out_features, in_features) as usize,
    );
    // A model's next layer has another weight: what waits for its weights must not find the last one's in a cache.
    let layers = if rows <= PREFILL_ROWS[1] {
        NO_CACHE.div_ceil(work.1)
    } else {
        1
    };
    let case = |variant: LinearVariant| {
        let shape = format!("{rows}x{out_features}x{in_features} {format}");
        let (cooperative, name) = (variant.is_cooperative(), variant.to_string());
        let case = Case::new(kernel, shape, work, move |inputs, program| {
            let x = inputs.activation(rows, in_features)?;
            for layer in inputs.layers(format, [out_features, in_features], layers)? {
                linear_with(program, &variant, &x, &layer);
            }
            Ok(())
        });
        Case {
            cooperative,
            repeats: layers,
            ..case.variant(name)
        }
    };
    candidates(gpu.capabilities(), rows)
        .into_iter()
        .map(case)
        .collect()
}

/// The ViT's attention.
fn attentions(gpu: &Gpu, tokens: usize, batch: usize) -> Vec<Case> {
    let heads = Heads { count: 16, dim: 88 };
    let width = heads.width();
    let (rows, shape) = match batch {
        1 => (tokens, format!("{tokens}x16x88")),
        _ => (batch * tokens, format!("{batch}x{tokens}x16x88")),
    };
    let work = (4 * rows * tokens * width, rows * 4 * width * 4);
    let case = |variant: AttentionVariant| {
        let name = variant.to_string();
        let record = move |inputs: &mut Inputs, program: &mut ProgramBuilder| {
            let qkv = inputs.activation(rows, 3 * width)?;
            let lengths = vec![tokens as u32; batch];
            let key_lengths = inputs.gpu().storage_with("key_lengths", &lengths)?;
            let part = |index: usize| View {
                of: &qkv,
                column: index * width,
            };
            let inputs = Attention {
                q: part(0),
                k: part(1),
                v: part(2),
                key_lengths: &key_lengths,
                batch,
                heads,
                scale: heads.scale(),
            };
            attention_with(program, &inputs, &variant);
            Ok(())
        };
        Case::new("attention", shape.clone(), work, record)
            .copying()
            .variant(name)
    };
    attention_candidates(gpu.capabilities())
        .into_iter()
        .map(case)
        .collect()
}

fn norm(rows: usize, width: usize) -> Case {
    let shape = format!("{rows}x{width}");
    let work = (0, 2 * rows * width * 4);
    Case::new("layer_norm", shape, work, move |inputs, program| {
        let norm = LayerNorm {
            weight: inputs.gpu().vector("weight", &vec![1.0; width])?,
            bias: inputs.gpu().vector("bias", &vec![0.0; width])?,
            eps: 1e-6,
        };
        layer_norm(program, &inputs.activation(rows, width)?, &norm);
        Ok(())
    })
    .copying()
}

fn best(rows: usize) -> Case {
    let shape = format!("{rows}x{VOCABULARY}");
    let work = (0, rows * VOCABULARY * 4);
    Case::new("argmax", shape, work, move |inputs, program| {
        argmax(program, &inputs.activation(rows, VOCABULARY)?);
        Ok(())
    })
}

fn several_best(rows: usize, k: usize) -> Case {
    let shape = format!("{rows}x{VOCABULARY}, {k}");
    let work = (0, rows * VOCABULARY * 4);
    Case::new("top_k", shape, work, move |inputs, program| {
        let top = inputs.gpu().storage("top", (rows * k * 8) as u64)?;
        let sums = inputs.gpu().storage("sums", rows as u64 * 4)?;
        let logits = inputs.activation(rows, VOCABULARY)?;
        top_k(program, &logits, k, &top, &sums);
        Ok(())
    })
}
