//! The self-checks of attention to all keys, and its plain-Rust twin.

use crate::gpu::{Activation, Gpu, ProgramBuilder, WeightFormat};
use crate::kernels::select::verdict::{Check, scattered};
use crate::kernels::select::{self, Family};

use super::{Heads, attention_candidates, attention_with, self_attention_inputs};

/// Cases of the self-check: size of a head, tokens of each of two batch items, and those of them that count as keys. The
/// heads are the ViT's, whose size is no whole number of blocks, the Q-Former's, and small ones for devices with too little
/// workgroup memory for these.
const CASES: [(usize, usize, [u32; 2]); 3] =
    [(88, 37, [37, 20]), (64, 70, [70, 33]), (24, 37, [37, 20])];

/// A self-check of every variant that may serve: two heads, two batch items, of which one has masked keys. The first case that
/// suits the device; on cooperative matrices those of both models.
pub(in crate::kernels) fn checks(gpu: &Gpu) -> Vec<Check> {
    let candidates = attention_candidates(gpu.capabilities());
    let variants = select::allowed(gpu, Family::Attention, candidates);
    let mut checks = Vec::new();
    for (dim, tokens, lengths) in CASES {
        let heads = Heads { count: 2, dim };
        let width = heads.width();
        let qkv = scattered(lengths.len() * tokens * 3 * width, 3);
        let expected = self_attention_reference(&qkv, tokens, &lengths, heads);
        for variant in &variants {
            let (of_gpu, qkv, by) = (gpu.clone(), qkv.clone(), variant.clone());
            let record = Box::new(move |program: &mut ProgramBuilder| {
                let buffer = of_gpu.storage_with("qkv", &qkv)?;
                let qkv = Activation::external(&buffer, lengths.len() * tokens, 3 * width);
                let key_lengths = of_gpu.storage_with("key_lengths", &lengths)?;
                let inputs = self_attention_inputs(&qkv, &key_lengths, lengths.len(), heads);
                Ok(attention_with(program, &inputs, &by))
            });
            let (family, format) = (Family::Attention, WeightFormat::default());
            let check = Check::new(gpu, family, variant, format, expected.clone(), record);
            let is_done = (dim == 24 || !variant.kind.is_experimental)
                && checks.iter().any(|it: &Check| it.key() == check.key());
            if !is_done && variant.suits_memory(gpu.capabilities(), heads) {
                checks.push(check);
            }
        }
    }
    checks
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
