//! `attention_relative.wgsl`: attention with relative position bias over the paged cache, for T5.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, Vector, WRITE};

use super::{Heads, KvLayer, Pages, word};

pub(super) static ATTENTION_RELATIVE: Kernel = Kernel {
    name: "attention_relative",
    wgsl: &[include_str!("../../shaders/attention_relative.wgsl")],
    bindings: &[READ, READ, READ, READ, READ, READ, READ, WRITE],
};

/// Which positions of its sequence a row attends to. A sequence holds its prompt first, then the decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// The whole prompt, with bias: the encoder's self-attention.
    Prompt,
    /// From the prompt's end to the row itself, with bias: the decoder's self-attention.
    Text,
    /// The whole prompt, without bias: the decoder's cross-attention.
    Encoded,
}

impl Span {
    /// The value of the shader's `SPAN` constant.
    fn constant(self) -> f64 {
        match self {
            Self::Prompt => 0.0,
            Self::Text => 1.0,
            Self::Encoded => 2.0,
        }
    }
}

/// What is added to the scores for each distance between key and query.
#[derive(Debug, Clone)]
pub struct RelativeBias {
    /// `[heads, 2 · reach + 1]`: for key − query from −reach to reach.
    pub values: Vector,
    /// Distance beyond which all have the same bias.
    pub reach: usize,
}

/// One attention of T5: without scale.
#[derive(Debug)]
pub struct RelativeAttention<'a> {
    /// Queries in the first columns, `[rows, any]`.
    pub q: &'a Activation,
    /// The layer's cache, with the keys and values of the span.
    pub cache: &'a KvLayer,
    /// Rows, sequences and cache rows.
    pub pages: &'a Pages,
    /// Positions of each sequence's prompt, u32.
    pub prompt_lengths: &'a wgpu::Buffer,
    /// Heads, their size a multiple of 4.
    pub heads: Heads,
    /// Which positions.
    pub span: Span,
    /// The stack's bias, not used by [`Span::Encoded`].
    pub bias: &'a RelativeBias,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    heads: u32,
    head_dim: u32,
    q_stride: u32,
    max_length: u32,
    reach: u32,
    pad: [u32; 3],
}

/// Records the attention; the result is `[rows, heads.width()]`, zero for inactive rows.
pub fn attention_relative(program: &mut ProgramBuilder, inputs: &RelativeAttention) -> Activation {
    let RelativeAttention {
        q,
        cache,
        pages,
        heads,
        bias,
        ..
    } = *inputs;
    debug_assert!(heads.dim <= 128 && heads.dim.is_multiple_of(4));
    debug_assert!(q.columns.is_multiple_of(4) && q.columns >= heads.width());
    debug_assert_eq!(bias.values.len, heads.count * (2 * bias.reach + 1));
    let out = program.activation(q.rows, heads.width());
    program.dispatch(
        &ATTENTION_RELATIVE,
        vec![("SPAN", inputs.span.constant())],
        &Params {
            heads: word(heads.count),
            head_dim: word(heads.dim),
            q_stride: word(q.columns),
            max_length: word(pages.max_length),
            reach: word(bias.reach),
            pad: [0; 3],
        },
        vec![
            q.operand(),
            Operand::from(&cache.keys),
            Operand::from(&cache.values),
            Operand::from(&pages.row_info),
            Operand::from(&pages.page_table),
            Operand::from(inputs.prompt_lengths),
            Operand::from(&bias.values.buffer),
            out.operand(),
        ],
        [word(q.rows), word(heads.count), 1],
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::INACTIVE;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    const MAX_LENGTH: usize = 90;
    const PHYSICAL: usize = 200;

    /// What the test's kernel reads, on the host.
    struct Inputs {
        heads: Heads,
        reach: usize,
        q_stride: usize,
        q: Vec<f32>,
        keys: Vec<f32>,
        values: Vec<f32>,
        bias: Vec<f32>,
        row_info: Vec<[u32; 2]>,
        page_table: Vec<u32>,
        prompt_lengths: Vec<u32>,
    }

    impl Inputs {
        /// Plain-Rust twin of [`attention_relative`], in f64.
        fn reference(&self, span: Span) -> Vec<f32> {
            let mut out = Vec::new();
            for (row, &[sequence, position]) in self.row_info.iter().enumerate() {
                let prompt = self.prompt_lengths[sequence as usize] as usize;
                let range = match span {
                    _ if position == INACTIVE => 0..0,
                    Span::Prompt | Span::Encoded => 0..prompt,
                    Span::Text => prompt..position as usize + 1,
                };
                for head in 0..self.heads.count {
                    let scores: Vec<f64> = range
                        .clone()
                        .map(|key| self.score(row, head, key, span))
                        .collect();
                    let highest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let sum: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
                    out.extend((0..self.heads.dim).map(|d| {
                        let weighted = range.clone().zip(&scores).map(|(key, score)| {
                            let at = self.at(sequence, key, head) + d;
                            (score - highest).exp() / sum * f64::from(self.values[at])
                        });
                        weighted.sum::<f64>() as f32
                    }));
                }
            }
            out
        }

        fn score(&self, row: usize, head: usize, key: usize, span: Span) -> f64 {
            let [sequence, position] = self.row_info[row];
            let q = &self.q[row * self.q_stride + head * self.heads.dim..][..self.heads.dim];
            let k = &self.keys[self.at(sequence, key, head)..][..self.heads.dim];
            let dot = q.iter().zip(k).map(|(&a, &b)| f64::from(a) * f64::from(b));
            let distance = key as isize - position as isize;
            let reach = self.reach as isize;
            let column = distance.clamp(-reach, reach) + reach;
            let bias = match span {
                Span::Encoded => 0.0,
                _ => self.bias[head * (2 * self.reach + 1) + column as usize],
            };
            dot.sum::<f64>() + f64::from(bias)
        }

        /// Where a position's numbers of a head start in the cache.
        fn at(&self, sequence: u32, position: usize, head: usize) -> usize {
            let physical = self.page_table[sequence as usize * MAX_LENGTH + position] as usize;
            physical * self.heads.width() + head * self.heads.dim
        }
    }

    #[test]
    fn equals_its_twin_through_a_scattered_page_table() {
        for gpu in gpus() {
            for (dim, count, reach) in [(64, 2, 16), (12, 3, 128), (4, 2, 3), (128, 1, 7)] {
                let heads = Heads { count, dim };
                let width = heads.width();
                let mut random = Random(dim as u64);
                // Prompts below and above one tile of 32 keys; texts of one, a few and many tokens; one row idle.
                let row_info = vec![
                    [0, 7],
                    [1, 41],
                    [0, 20],
                    [0, INACTIVE],
                    [1, 47],
                    [0, 89],
                    [1, 80],
                ];
                let inputs = Inputs {
                    heads,
                    reach,
                    q_stride: 3 * width,
                    q: random.vec(row_info.len() * 3 * width),
                    keys: random.vec(PHYSICAL * width),
                    values: random.vec(PHYSICAL * width),
                    bias: random.vec(count * (2 * reach + 1)),
                    row_info,
                    page_table: (0..2 * MAX_LENGTH)
                        .map(|entry| (entry * 7 % PHYSICAL) as u32)
                        .collect(),
                    prompt_lengths: vec![7, 41],
                };
                let upload_words = |data: &[u32]| gpu.storage_with("words", data).expect("small");
                let cache = KvLayer {
                    keys: gpu.storage_with("keys", &inputs.keys).expect("small"),
                    values: gpu.storage_with("values", &inputs.values).expect("small"),
                };
                let pages = Pages {
                    row_info: gpu.storage_with("rows", &inputs.row_info).expect("small"),
                    page_table: upload_words(&inputs.page_table),
                    max_length: MAX_LENGTH,
                };
                let prompt_lengths = upload_words(&inputs.prompt_lengths);
                let bias = RelativeBias {
                    values: gpu.vector("bias", &inputs.bias).expect("small"),
                    reach,
                };
                let q = upload(gpu, &inputs.q, inputs.row_info.len(), inputs.q_stride);
                for span in [Span::Prompt, Span::Text, Span::Encoded] {
                    let ours = run(gpu, |program| {
                        let inputs = RelativeAttention {
                            q: &q,
                            cache: &cache,
                            pages: &pages,
                            prompt_lengths: &prompt_lengths,
                            heads,
                            span,
                            bias: &bias,
                        };
                        attention_relative(program, &inputs)
                    });
                    let what = format!("{heads:?} {span:?}");
                    assert_close(&ours, &inputs.reference(span), 1e-5, &what);
                }
            }
        }
    }
}
