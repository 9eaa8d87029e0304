//! `attention.wgsl`, `attention_tile.wgsl`, `attention_flash.wgsl`, `attention_cooperative.wgsl`: softmax attention over all keys of a batch item: the ViT's and the
//! Q-Former's.

use crate::gpu::{
    Activation, Capabilities, Constants, Gpu, Kernel, Operand, ProgramBuilder, READ, WRITE, params,
};

use super::self_check::{Check, finding, is_wrong, scattered};
use super::{NARROW_LANES, groups, word};

static ATTENTION: Kernel =
    Kernel::new::<Params>("attention/attention", &[READ, READ, READ, READ, WRITE]);

static ATTENTION_TILE: Kernel =
    Kernel::new::<Params>("attention/attention_tile", &[READ, READ, READ, READ, WRITE]);

static ATTENTION_FLASH: Kernel = Kernel::new::<Params>(
    "attention/attention_flash",
    &[READ, READ, READ, READ, WRITE],
);

const ATTENTION_COOPERATIVE: Kernel = Kernel::new::<Params>(
    "attention/attention_cooperative",
    &[READ, READ, READ, READ, WRITE],
);

static ATTENTION_COOPERATIVE_16: Kernel =
    ATTENTION_COOPERATIVE.named("attention_cooperative_16", &[("size", "16")]);

static ATTENTION_COOPERATIVE_8: Kernel =
    ATTENTION_COOPERATIVE.named("attention_cooperative_8", &[("size", "8")]);

/// All of them.
#[cfg(test)]
pub(super) static KERNELS: &[&Kernel] = &[
    &ATTENTION,
    &ATTENTION_TILE,
    &ATTENTION_FLASH,
    &ATTENTION_COOPERATIVE_16,
    &ATTENTION_COOPERATIVE_8,
];

/// Kernels for attention. A workgroup has 32 queries of a head, or as many as are said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionVariant {
    /// Tiles in workgroup memory: any GPU, any head.
    Shared,
    /// Outer products in the registers of one subgroup; heads and strides are multiples of 4.
    Tile,
    /// Tiles in workgroup memory and registers, for GPUs; heads and strides are multiples of 4.
    Flash {
        /// Queries of a workgroup: 32, or 64, which reads keys and values half as often.
        queries: u32,
    },
    /// Fragments on cooperative matrices, everything rounded to f16; heads and strides are multiples of 4.
    Cooperative {
        /// Rows and columns of a fragment: 16 or 8.
        size: u32,
        /// Lanes a subgroup.
        lanes: u32,
        /// Subgroups of a workgroup, each with `size` queries.
        subgroups: u32,
    },
}

/// Workgroups that fill a large GPU: with fewer, a workgroup had better have fewer queries.
const ENOUGH_WORKGROUPS: usize = 512;

impl AttentionVariant {
    fn kernel(self) -> &'static Kernel {
        match self {
            Self::Shared => &ATTENTION,
            Self::Tile => &ATTENTION_TILE,
            Self::Flash { .. } => &ATTENTION_FLASH,
            Self::Cooperative { size: 16, .. } => &ATTENTION_COOPERATIVE_16,
            Self::Cooperative { .. } => &ATTENTION_COOPERATIVE_8,
        }
    }

    /// Queries of a workgroup.
    fn queries(self) -> usize {
        match self {
            Self::Shared | Self::Tile => 32,
            Self::Flash { queries } => queries as usize,
            Self::Cooperative {
                size, subgroups, ..
            } => (size * subgroups) as usize,
        }
    }

    fn constants(self, heads: Heads) -> Constants {
        let mut constants = vec![("HEAD_DIM", heads.dim as f64)];
        match self {
            Self::Shared | Self::Tile => {}
            Self::Flash { queries } => constants.extend([
                ("QUERIES", f64::from(queries)),
                ("WORKGROUP_SIZE", f64::from(2 * queries)),
            ]),
            Self::Cooperative {
                size,
                lanes,
                subgroups,
            } => constants.extend([
                ("DEPTH", heads.dim.next_multiple_of(size as usize) as f64),
                ("LANES", f64::from(lanes)),
                ("SUBGROUPS", f64::from(subgroups)),
                ("WORKGROUP_SIZE", f64::from(lanes * subgroups)),
            ]),
        }
        constants
    }

    /// The shader, its constants and its workgroup memory: for tests that compile it.
    #[cfg(test)]
    pub(super) fn build(self, heads: Heads) -> (&'static Kernel, Constants, u32) {
        (
            self.kernel(),
            self.constants(heads),
            self.workgroup_bytes(heads),
        )
    }

    /// Bytes of workgroup memory.
    fn workgroup_bytes(self, heads: Heads) -> u32 {
        match self {
            Self::Shared | Self::Tile | Self::Flash { .. } => 16 << 10,
            Self::Cooperative {
                size,
                lanes,
                subgroups,
            } => {
                let depth = word(heads.dim).next_multiple_of(size);
                let queries = size * subgroups;
                2 * (depth + 8) * (queries + 64) + queries * (228 + 8 * lanes / size)
            }
        }
    }

    /// Whether a device has the workgroup memory for heads of this size.
    fn suits_memory(self, capabilities: &Capabilities, heads: Heads) -> bool {
        self.workgroup_bytes(heads) <= capabilities.workgroup_bytes
    }

    /// Whether that is so, and `inputs` have enough queries to fill a GPU.
    fn suits(self, capabilities: &Capabilities, inputs: &Attention) -> bool {
        if !self.suits_memory(capabilities, inputs.heads) {
            return false;
        }
        let queries = inputs.q.of.rows / inputs.batch;
        let workgroups = queries.div_ceil(self.queries()) * inputs.heads.count * inputs.batch;
        self.queries() <= 32 || workgroups >= ENOUGH_WORKGROUPS
    }
}

impl std::fmt::Display for AttentionVariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shared => f.write_str("shared"),
            Self::Tile => f.write_str("tile"),
            Self::Flash { queries } => write!(f, "flash {queries}"),
            Self::Cooperative {
                size, subgroups, ..
            } => write!(f, "cooperative {size} x {subgroups}"),
        }
    }
}

/// The attention kernels of a device, where heads and strides are multiples of four, the one to take first. A workgroup of
/// [`AttentionVariant::Tile`] has eight lanes: on a device with wider subgroups most of each would idle. Flash needs no
/// subgroups and suits every GPU; narrow subgroups are a CPU's, and so is an adapter that says nothing of them here.
#[must_use]
pub fn attention_candidates(capabilities: &Capabilities) -> Vec<AttentionVariant> {
    use AttentionVariant::{Flash, Shared, Tile};
    match capabilities.subgroups {
        Some((8, 8)) => vec![Tile, Shared],
        Some((_, ..=NARROW_LANES)) => vec![Shared],
        _ => cooperative(capabilities)
            .into_iter()
            .chain([Flash { queries: 64 }, Flash { queries: 32 }, Shared])
            .collect(),
    }
}

/// The variants on cooperative matrices that a device can run.
fn cooperative(capabilities: &Capabilities) -> Vec<AttentionVariant> {
    let (Some(size), Some(lanes)) = (
        capabilities.cooperative_size(),
        capabilities.fixed_subgroup_size(),
    ) else {
        return Vec::new();
    };
    let smallest = Heads { count: 1, dim: 4 };
    [4, 2]
        .map(|subgroups| AttentionVariant::Cooperative {
            size,
            lanes,
            subgroups,
        })
        .into_iter()
        .filter(|_| lanes.is_multiple_of(size))
        .filter(|variant| variant.workgroup_bytes(smallest) <= capabilities.workgroup_bytes)
        .collect()
}

/// The first candidate that suits and has not failed its check.
fn chosen(gpu: &Gpu, inputs: &Attention) -> AttentionVariant {
    let candidates = attention_candidates(gpu.capabilities());
    let right = |variant: &AttentionVariant| !is_wrong(gpu, &name_of(gpu, *variant));
    candidates
        .into_iter()
        .filter(|variant| variant.suits(gpu.capabilities(), inputs))
        .find(right)
        .unwrap_or(AttentionVariant::Shared)
}

fn name_of(gpu: &Gpu, variant: AttentionVariant) -> String {
    finding(
        gpu,
        variant.kernel(),
        &format!("{} queries", variant.queries()),
    )
}

/// Cases of the self-check: size of a head, tokens of each of two batch items, and those of them that count as keys. The
/// heads are the ViT's, whose size is no whole number of blocks, the Q-Former's, and small ones for devices with too little
/// workgroup memory for these.
const CASES: [(usize, usize, [u32; 2]); 3] =
    [(88, 37, [37, 20]), (64, 70, [70, 33]), (24, 37, [37, 20])];

/// A self-check of every kernel that `gpu` offers: two heads, two batch items, of which one has masked keys. The first case
/// that suits the device; on cooperative matrices those of both models.
pub(super) fn checks(gpu: &Gpu) -> Vec<Check> {
    let mut checks = Vec::new();
    for (dim, tokens, lengths) in CASES {
        let heads = Heads { count: 2, dim };
        let width = heads.width();
        let qkv = scattered(lengths.len() * tokens * 3 * width, 3);
        let expected = self_attention_reference(&qkv, tokens, &lengths, heads);
        for variant in attention_candidates(gpu.capabilities()) {
            let finding = name_of(gpu, variant);
            let is_experimental = matches!(variant, AttentionVariant::Cooperative { .. });
            let is_done = (dim == 24 || !is_experimental)
                && checks.iter().any(|it: &Check| it.finding == finding);
            if is_done || !variant.suits_memory(gpu.capabilities(), heads) {
                continue;
            }
            let (gpu, qkv) = (gpu.clone(), qkv.clone());
            checks.push(Check {
                finding,
                what: "attention",
                is_experimental,
                expected: expected.clone(),
                record: Box::new(move |program| {
                    let buffer = gpu.storage_with("qkv", &qkv)?;
                    let qkv = Activation::external(&buffer, lengths.len() * tokens, 3 * width);
                    let key_lengths = gpu.storage_with("key_lengths", &lengths)?;
                    let inputs = self_attention_inputs(&qkv, &key_lengths, lengths.len(), heads);
                    Ok(attention_with(program, &inputs, variant))
                }),
            });
        }
    }
    checks
}

/// Some columns of an activation: q, k or v within a fused projection.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The activation.
    pub of: &'a Activation,
    /// First column.
    pub column: usize,
}

/// Number and size of attention heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads.
    pub count: usize,
    /// Values a head, even and at most 128.
    pub dim: usize,
}

impl Heads {
    /// Width of all heads together.
    #[must_use]
    pub fn width(self) -> usize {
        self.count * self.dim
    }

    /// `1 / √dim`
    #[must_use]
    pub fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// One attention: `softmax(q · kᵀ · scale) · v`.
#[derive(Debug)]
pub struct Attention<'a> {
    /// `[batch · queries, width]`
    pub q: View<'a>,
    /// `[batch · keys, width]`
    pub k: View<'a>,
    /// `[batch · keys, width]`
    pub v: View<'a>,
    /// Keys that count of each batch item, u32 `[batch]`; later ones are masked.
    pub key_lengths: &'a wgpu::Buffer,
    /// Batch items.
    pub batch: usize,
    /// Heads of q, k and v.
    pub heads: Heads,
    /// Factor on the scores.
    pub scale: f32,
}

params! {
    struct Params {
        queries: u32,
        keys: u32,
        heads: u32,
        q_stride: u32,
        k_stride: u32,
        v_stride: u32,
        q_offset: u32,
        k_offset: u32,
        v_offset: u32,
        scale: f32,
    }
}

/// Records the attention; the result is `[batch · queries, heads.width()]`.
pub fn attention(program: &mut ProgramBuilder, inputs: &Attention) -> Activation {
    let variant = if is_in_fours(inputs) {
        chosen(program.gpu(), inputs)
    } else {
        AttentionVariant::Shared
    };
    attention_with(program, inputs, variant)
}

/// Whether every row and head starts at a multiple of four values.
fn is_in_fours(inputs: &Attention) -> bool {
    let views = [inputs.q, inputs.k, inputs.v];
    let aligned = |view: View| view.column.is_multiple_of(4) && view.of.columns.is_multiple_of(4);
    inputs.heads.dim.is_multiple_of(4) && views.into_iter().all(aligned)
}

/// Attention of tokens to each other: `qkv` `[batch · tokens, 3 · width]` holds queries, keys and values side by side.
pub fn self_attention(
    program: &mut ProgramBuilder,
    qkv: &Activation,
    key_lengths: &wgpu::Buffer,
    batch: usize,
    heads: Heads,
) -> Activation {
    let inputs = self_attention_inputs(qkv, key_lengths, batch, heads);
    attention(program, &inputs)
}

fn self_attention_inputs<'a>(
    qkv: &'a Activation,
    key_lengths: &'a wgpu::Buffer,
    batch: usize,
    heads: Heads,
) -> Attention<'a> {
    let part = |index: usize| View {
        of: qkv,
        column: index * heads.width(),
    };
    Attention {
        q: part(0),
        k: part(1),
        v: part(2),
        key_lengths,
        batch,
        heads,
        scale: heads.scale(),
    }
}

/// [`attention`] by a chosen kernel: for measuring one against another.
pub fn attention_with(
    program: &mut ProgramBuilder,
    inputs: &Attention,
    variant: AttentionVariant,
) -> Activation {
    let Attention {
        q,
        k,
        v,
        batch,
        heads,
        ..
    } = *inputs;
    debug_assert!(heads.dim <= 128);
    let queries = q.of.rows / batch;
    let out = program.activation(q.of.rows, heads.width());
    program.dispatch(
        variant.kernel(),
        variant.constants(heads),
        &Params {
            queries: word(queries),
            keys: word(k.of.rows / batch),
            heads: word(heads.count),
            q_stride: word(q.of.columns),
            k_stride: word(k.of.columns),
            v_stride: word(v.of.columns),
            q_offset: word(q.column),
            k_offset: word(k.column),
            v_offset: word(v.column),
            scale: inputs.scale,
        },
        vec![
            q.of.operand(),
            k.of.operand(),
            v.of.operand(),
            Operand::from(inputs.key_lengths),
            out.operand(),
        ],
        [
            groups(queries, variant.queries()),
            word(heads.count),
            word(batch),
        ],
    );
    out
}

/// Plain-Rust twin for one query row and one head: `weights · v` with `weights = softmax(q · kᵀ · scale)`.
pub(super) fn reference_row(q: &[f32], k: &[&[f32]], v: &[&[f32]], scale: f32) -> Vec<f32> {
    let scores: Vec<f64> = k
        .iter()
        .map(|k| {
            q.iter()
                .zip(*k)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum::<f64>()
                * f64::from(scale)
        })
        .collect();
    let highest = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..q.len())
        .map(|d| {
            let out: f64 = weights
                .iter()
                .zip(v)
                .map(|(w, v)| w * f64::from(v[d]))
                .sum();
            if v.is_empty() {
                0.0
            } else {
                (out / sum) as f32
            }
        })
        .collect()
}

/// Plain-Rust twin of [`self_attention`]: `qkv` `[items · tokens, 3 · width]`, of whose keys `lengths` count.
fn self_attention_reference(qkv: &[f32], tokens: usize, lengths: &[u32], heads: Heads) -> Vec<f32> {
    let width = heads.width();
    let at = |row: usize, column: usize| &qkv[row * 3 * width + column..][..heads.dim];
    let mut out = Vec::new();
    for (item, &live) in lengths.iter().enumerate() {
        let keys = item * tokens..item * tokens + live as usize;
        for query in item * tokens..(item + 1) * tokens {
            for head in (0..width).step_by(heads.dim) {
                let k: Vec<_> = keys.clone().map(|key| at(key, width + head)).collect();
                let v: Vec<_> = keys.clone().map(|key| at(key, 2 * width + head)).collect();
                out.extend(reference_row(at(query, head), &k, &v, heads.scale()));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    /// q, k, v fused in one matrix with `extra` columns between, as the ViT's qkv is.
    fn check(
        batch: usize,
        queries: usize,
        keys: usize,
        heads: Heads,
        lengths: &[u32],
        scale_up: f32,
    ) {
        for gpu in gpus() {
            let mut random = Random((queries * keys + heads.dim) as u64);
            let width = heads.width();
            let stride = 3 * width;
            let rows = batch * queries.max(keys);
            let values: Vec<f32> = random
                .vec(rows * stride)
                .iter()
                .map(|v| v * scale_up)
                .collect();
            let fused = upload(gpu, &values, rows, stride);
            let (q, kv) = (
                fused.reshaped(batch * queries, stride),
                fused.reshaped(batch * keys, stride),
            );
            let key_lengths = gpu.storage_with("key_lengths", lengths).expect("small");
            let inputs = Attention {
                q: View { of: &q, column: 0 },
                k: View {
                    of: &kv,
                    column: width,
                },
                v: View {
                    of: &kv,
                    column: 2 * width,
                },
                key_lengths: &key_lengths,
                batch,
                heads,
                scale: heads.scale(),
            };
            let variants = if is_in_fours(&inputs) {
                let mut variants = attention_candidates(gpu.capabilities());
                // Correct everywhere, if not offered to narrow subgroups.
                for queries in [32, 64] {
                    let flash = AttentionVariant::Flash { queries };
                    if !variants.contains(&flash) {
                        variants.push(flash);
                    }
                }
                // One of them: they take long where they are emulated.
                for cooperative in cooperative(gpu.capabilities()).into_iter().take(1) {
                    if !variants.contains(&cooperative) {
                        variants.push(cooperative);
                    }
                }
                variants.retain(|variant| variant.suits_memory(gpu.capabilities(), heads));
                variants
            } else {
                vec![AttentionVariant::Shared]
            };
            let at = |row: usize, column: usize| &values[row * stride + column..][..heads.dim];
            let mut twin = Vec::new();
            for (item, &live) in lengths.iter().enumerate() {
                let live = live as usize;
                for query in 0..queries {
                    for head in (0..width).step_by(heads.dim) {
                        let k: Vec<_> = (0..live)
                            .map(|key| at(item * keys + key, width + head))
                            .collect();
                        let v: Vec<_> = (0..live)
                            .map(|key| at(item * keys + key, 2 * width + head))
                            .collect();
                        twin.extend(reference_row(
                            at(item * queries + query, head),
                            &k,
                            &v,
                            heads.scale(),
                        ));
                    }
                }
            }
            for variant in variants {
                let ours = run(gpu, |program| attention_with(program, &inputs, variant));
                let what = format!("{variant:?} {batch} {queries} {keys} {heads:?}");
                let tolerance = match variant {
                    // Scores of hundreds, as one test has, are rounded to f16 before the exponential.
                    AttentionVariant::Cooperative { .. } if scale_up > 1.0 => 5e-2,
                    AttentionVariant::Cooperative { .. } => 2e-3,
                    _ => 1e-5,
                };
                assert_close(&ours, &twin, tolerance, &what);
            }
        }
    }

    #[test]
    fn self_attention_equals_its_twin() {
        for (dim, tokens) in [
            (64, 33),
            (80, 31),
            (88, 65),
            (22, 5),
            (12, 1),
            (2, 3),
            (128, 40),
            (126, 17),
        ] {
            check(
                1,
                tokens,
                tokens,
                Heads { count: 3, dim },
                &[tokens as u32],
                1.0,
            );
        }
        check(2, 257, 257, Heads { count: 2, dim: 88 }, &[257, 257], 1.0);
    }

    #[test]
    fn cross_attention_equals_its_twin() {
        check(3, 8, 50, Heads { count: 2, dim: 16 }, &[50, 50, 50], 1.0);
    }

    #[test]
    fn masked_keys_do_not_count() {
        check(3, 7, 40, Heads { count: 2, dim: 10 }, &[1, 33, 40], 1.0);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        check(1, 35, 170, Heads { count: 1, dim: 64 }, &[170], 12.0);
    }
    #[test]
    fn only_narrow_subgroups_go_without_flash() {
        let first = |subgroups| {
            let mut capabilities = gpus()[0].capabilities().clone();
            capabilities.subgroups = subgroups;
            capabilities.cooperative_matrices.clear();
            attention_candidates(&capabilities)[0]
        };
        assert_eq!(first(Some((8, 8))), AttentionVariant::Tile);
        assert_eq!(first(Some((4, 4))), AttentionVariant::Shared);
        // Intel's GPUs, AMD's, Metal's as wgpu has them, and those that have no subgroups.
        for subgroups in [Some((8, 32)), Some((32, 64)), Some((4, 64)), None] {
            assert_eq!(first(subgroups), AttentionVariant::Flash { queries: 64 });
        }
    }
}
