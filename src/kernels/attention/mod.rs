//! Softmax attention. Over all keys of a batch item, the ViT's and the Q-Former's, one file a kernel: `tile`, `flash`,
//! `cooperative`. Over the paged cache: `cached` and `relative`. For looking at it: `weights`.

pub(super) mod cached;
mod check;
mod cooperative;
mod flash;
mod relative;
mod store_kv;
mod tile;
mod weights;

use crate::gpu::{
    Access, Activation, Capabilities, Constants, Gpu, Kernel, Operand, ProgramBuilder, READ, WRITE,
    WeightFormat, params,
};

use super::select::table::Table;
use super::select::{self, Family, Variant};
use super::{NARROW_LANES, groups, word};

pub use cached::{CachedAttention, attention_cached};
pub(super) use check::checks;
pub use relative::{RelativeAttention, RelativeBias, Span, attention_relative};
pub use store_kv::{KvLayer, Pages, store_cross_kv, store_kv};
pub use weights::{AttentionWeights, attention_weights, tap_attention, tap_attention_cached};

/// The kernels, those to take first in front.
pub(super) static KINDS: [&Kind; 3] = [&tile::KIND, &cooperative::KIND, &flash::KIND];

/// A kernel of attention to all keys: what a file of this folder declares.
#[derive(Debug)]
pub(super) struct Kind {
    pub kind: select::Kind,
    /// The sizes on a device that it fits, the one to take first in front.
    pub variants: fn(&Capabilities) -> Vec<AttentionVariant>,
}

/// One way to do attention to all keys: a kernel at one size. [`attention_candidates`] lists those that serve.
#[derive(Debug, Clone)]
pub struct AttentionVariant {
    kind: select::Kind,
    /// The rest of its name.
    size: String,
    kernel: &'static Kernel,
    constants: Constants,
    /// Queries of a workgroup.
    queries: usize,
    workgroup_bytes: WorkgroupBytes,
}

/// Bytes of workgroup memory that a variant takes.
#[derive(Debug, Clone, Copy)]
struct WorkgroupBytes {
    fixed: u32,
    /// For each value of a head, which is padded to a multiple of `padded_to`.
    per_value: u32,
    padded_to: u32,
}

impl WorkgroupBytes {
    /// What every device has, whatever the head.
    const LEAST: Self = Self {
        fixed: 16 << 10,
        per_value: 0,
        padded_to: 4,
    };
}

/// Workgroups that fill a large GPU: with fewer, a workgroup had better have fewer queries.
const ENOUGH_WORKGROUPS: usize = 512;

impl AttentionVariant {
    /// Whether a device has the workgroup memory for heads of this size.
    fn suits_memory(&self, capabilities: &Capabilities, heads: Heads) -> bool {
        self.workgroup_bytes(heads) <= capabilities.workgroup_bytes
    }

    /// Bytes of workgroup memory.
    pub(super) fn workgroup_bytes(&self, heads: Heads) -> u32 {
        let bytes = self.workgroup_bytes;
        bytes.fixed + bytes.per_value * word(heads.dim).next_multiple_of(bytes.padded_to)
    }

    /// Whether that is so, and `inputs` have enough queries to fill a GPU.
    fn suits(&self, capabilities: &Capabilities, inputs: &Attention) -> bool {
        if !self.suits_memory(capabilities, inputs.heads) {
            return false;
        }
        let queries = inputs.q.of.rows / inputs.batch;
        let workgroups = queries.div_ceil(self.queries) * inputs.heads.count * inputs.batch;
        self.queries <= 32 || workgroups >= ENOUGH_WORKGROUPS
    }

    /// The kernel's constants for heads of a size.
    pub(super) fn constants(&self, heads: Heads) -> Constants {
        let mut constants = self.constants.clone();
        constants.push(("HEAD_DIM", heads.dim as f64));
        constants
    }

    /// The kernel: for tests that compile it.
    #[cfg(test)]
    pub(super) fn kernel(&self) -> &'static Kernel {
        self.kernel
    }
}

impl std::fmt::Display for AttentionVariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(format!("{} {}", self.kind.name, self.size).trim_end())
    }
}

impl Variant for AttentionVariant {
    fn kind(&self) -> select::Kind {
        self.kind
    }

    fn kernels(&self, _: WeightFormat) -> Vec<&'static Kernel> {
        vec![self.kernel]
    }

    fn size(&self) -> &Constants {
        &self.constants
    }
}

/// The attention variants of a device, the one to take first in front.
#[must_use]
pub fn attention_candidates(capabilities: &Capabilities) -> Vec<AttentionVariant> {
    let fitting = KINDS
        .iter()
        .filter(|it| (it.kind.fits)(capabilities).is_ok());
    fitting.flat_map(|it| (it.variants)(capabilities)).collect()
}

/// The first usable variant that suits.
fn chosen(gpu: &Gpu, inputs: &Attention) -> AttentionVariant {
    let candidates = attention_candidates(gpu.capabilities());
    let format = WeightFormat::default(); // no kernel of attention reads weights
    let mut usable = select::usable(gpu, Family::Attention, candidates, format);
    let suits = |it: &AttentionVariant| it.suits(gpu.capabilities(), inputs);
    let suiting = usable.iter().position(suits);
    usable.swap_remove(suiting.unwrap_or(usable.len() - 1))
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
    /// Values a head, a multiple of 4 and at most 128.
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

/// The bindings of all kernels: q, k, v, lengths of keys, out.
const BINDINGS: &[Access] = &[READ, READ, READ, READ, WRITE];

/// Records the attention; the result is `[batch · queries, heads.width()]`.
pub fn attention(program: &mut ProgramBuilder, inputs: &Attention) -> Activation {
    let variant = chosen(program.gpu(), inputs);
    if program.will_run() {
        let Heads { count, dim } = inputs.heads;
        let queries = inputs.q.of.rows / inputs.batch;
        let keys = inputs.k.of.rows / inputs.batch;
        let what = format!("attention {}x{queries}x{keys}x{count}x{dim}", inputs.batch);
        Table::of(program.gpu()).tell(what, variant.kernel.name, &variant.to_string());
    }
    attention_with(program, inputs, &variant)
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

/// [`attention`] by a variant of one's choice: for measuring one against another.
pub fn attention_with(
    program: &mut ProgramBuilder,
    inputs: &Attention,
    variant: &AttentionVariant,
) -> Activation {
    let Attention {
        q,
        k,
        v,
        batch,
        heads,
        ..
    } = *inputs;
    debug_assert!(heads.dim <= 128 && heads.dim.is_multiple_of(4));
    // Rows are read in fours.
    let is_in_fours = |it: View| it.column.is_multiple_of(4) && it.of.columns.is_multiple_of(4);
    debug_assert!([q, k, v].into_iter().all(is_in_fours));
    let queries = q.of.rows / batch;
    let out = program.activation(q.of.rows, heads.width());
    program.dispatch(
        variant.kernel,
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
            groups(queries, variant.queries),
            word(heads.count),
            word(batch),
        ],
    );
    out
}

#[cfg(test)]
mod tests {
    use super::check::reference_row;
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
            let mut variants = attention_candidates(gpu.capabilities());
            // Correct everywhere, if not offered to narrow subgroups; and one on cooperative matrices: they take long
            // where they are emulated.
            let more = [32, 64].map(flash::variant).into_iter();
            for more in more.chain(cooperative::sizes(gpu.capabilities()).into_iter().take(1)) {
                if !variants.iter().any(|it| it.to_string() == more.to_string()) {
                    variants.push(more);
                }
            }
            variants.retain(|variant| variant.suits_memory(gpu.capabilities(), heads));
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
                let ours = run(gpu, |program| attention_with(program, &inputs, &variant));
                let what = format!("{variant} {batch} {queries} {keys} {heads:?}");
                let tolerance = match variant.kind.is_experimental {
                    // Scores of hundreds, as one test has, are rounded to f16 before the exponential.
                    true if scale_up > 1.0 => 5e-2,
                    true => 2e-3,
                    false => 1e-5,
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
            (20, 5),
            (12, 1),
            (4, 3),
            (128, 40),
            (124, 17),
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
        check(3, 7, 40, Heads { count: 2, dim: 12 }, &[1, 33, 40], 1.0);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        check(1, 35, 170, Heads { count: 1, dim: 64 }, &[170], 12.0);
    }

    #[test]
    fn each_width_of_subgroups_has_its_kernels() {
        let names = |subgroups| {
            let mut capabilities = gpus()[0].capabilities().clone();
            capabilities.subgroups = subgroups;
            capabilities.cooperative_matrices.clear();
            let candidates = attention_candidates(&capabilities);
            candidates
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(Some((8, 8)))[0], "tile");
        // Another CPU's, Intel's GPUs, AMD's, Metal's as wgpu has them, and those that have no subgroups.
        for subgroups in [
            Some((4, 4)),
            Some((8, 32)),
            Some((32, 64)),
            Some((4, 64)),
            None,
        ] {
            assert_eq!(names(subgroups), ["flash 64", "flash 32"]);
        }
    }
}
