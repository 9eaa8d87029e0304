//! `attention_relative.wgsl`: attention with relative position bias over the paged cache, for T5.

use crate::gpu::{Activation, Kernel, Operand, ProgramBuilder, READ, Vector, WRITE, params};

use super::{Heads, KvLayer, Pages, word};

pub(super) static ATTENTION_RELATIVE: Kernel = Kernel::new::<Params>(
    "attention/attention_relative",
    &[READ, WRITE, WRITE, READ, READ, READ, READ, WRITE],
);

/// Which positions of its sequence a row attends to. A sequence holds its prompt first, then the decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// The whole prompt, with bias: the encoder's self-attention.
    Prompt,
    /// From the prompt's end to the row itself, with bias: the decoder's self-attention. The rows, of one sequence each, put
    /// their own keys and values into the cache first.
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
    /// Queries in the first columns, `[rows, any]`; for [`Span::Text`] the fused projection `[rows, 3 · width]`.
    pub q: &'a Activation,
    /// The layer's cache, with the keys and values of the span but for those that the rows of [`Span::Text`] bring.
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

params! {
    struct Params {
        heads: u32,
        head_dim: u32,
        q_stride: u32,
        max_length: u32,
        reach: u32,
    }
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
    debug_assert!(inputs.span != Span::Text || q.columns == 3 * heads.width());
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
    use crate::gpu::Gpu;
    use crate::kernels::INACTIVE;
    use crate::kernels::store_kv::reference as store_reference;
    use crate::kernels::testing::{Random, assert_close, gpus, run, upload};

    const MAX_LENGTH: usize = 90;
    const PHYSICAL: usize = 460;
    /// Prompts below and above one tile of 32 keys.
    const PROMPT_LENGTHS: [u32; 5] = [7, 41, 7, 41, 20];

    /// What the test's kernel reads, on the host.
    struct Inputs {
        heads: Heads,
        reach: usize,
        q: Vec<f32>,
        keys: Vec<f32>,
        values: Vec<f32>,
        bias: Vec<f32>,
        row_info: Vec<[u32; 2]>,
        page_table: Vec<u32>,
    }

    impl Inputs {
        fn new(heads: Heads, reach: usize, row_info: Vec<[u32; 2]>) -> Self {
            let mut random = Random(heads.dim as u64);
            let width = heads.width();
            Self {
                heads,
                reach,
                q: random.vec(row_info.len() * 3 * width),
                keys: random.vec(PHYSICAL * width),
                values: random.vec(PHYSICAL * width),
                bias: random.vec(heads.count * (2 * reach + 1)),
                row_info,
                page_table: (0..PROMPT_LENGTHS.len() * MAX_LENGTH)
                    .map(|entry| (entry * 7 % PHYSICAL) as u32)
                    .collect(),
            }
        }

        /// The outputs, then keys and values as the cache holds them in the end.
        fn ours(&self, gpu: &Gpu, span: Span) -> Vec<f32> {
            let width = self.heads.width();
            let upload_words = |data: &[u32]| gpu.storage_with("words", data).expect("small");
            let cache = KvLayer {
                keys: gpu.storage_with("keys", &self.keys).expect("small"),
                values: gpu.storage_with("values", &self.values).expect("small"),
            };
            let pages = Pages {
                row_info: gpu.storage_with("rows", &self.row_info).expect("small"),
                page_table: upload_words(&self.page_table),
                max_length: MAX_LENGTH,
            };
            let prompt_lengths = upload_words(&PROMPT_LENGTHS);
            let bias = RelativeBias {
                values: gpu.vector("bias", &self.bias).expect("small"),
                reach: self.reach,
            };
            let q = upload(gpu, &self.q, self.row_info.len(), 3 * width);
            let inputs = RelativeAttention {
                q: &q,
                cache: &cache,
                pages: &pages,
                prompt_lengths: &prompt_lengths,
                heads: self.heads,
                span,
                bias: &bias,
            };
            let mut result = run(gpu, |program| attention_relative(program, &inputs));
            for buffer in [&cache.keys, &cache.values] {
                let held = gpu.read::<f32>(buffer, PHYSICAL * width);
                result.extend(pollster::block_on(held).expect("readable"));
            }
            result
        }

        /// Plain-Rust twin of [`Self::ours`], in f64.
        fn twin(&mut self, span: Span) -> Vec<f32> {
            let width = self.heads.width();
            if span == Span::Text {
                let (rows, table) = (&self.row_info, &self.page_table);
                for (part, cache) in [(1, &mut self.keys), (2, &mut self.values)] {
                    store_reference(&self.q, width, part, rows, table, MAX_LENGTH, cache);
                }
            }
            let mut out = self.outputs(span);
            out.extend(&self.keys);
            out.extend(&self.values);
            out
        }

        fn outputs(&self, span: Span) -> Vec<f32> {
            let mut out = Vec::new();
            for (row, &[sequence, position]) in self.row_info.iter().enumerate() {
                let prompt = PROMPT_LENGTHS[sequence as usize] as usize;
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
            let at = row * 3 * self.heads.width() + head * self.heads.dim;
            let q = &self.q[at..][..self.heads.dim];
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

    /// Texts of one, a few and many tokens; one row idle. In a step no two rows are of one sequence, in an encoder many are.
    #[test]
    fn equals_its_twin_through_a_scattered_page_table() {
        let step = [[0, 7], [1, 47], [2, 89], [3, INACTIVE], [4, 52]];
        let prompts = [[0, 6], [1, 40], [0, 0], [0, INACTIVE], [1, 3], [4, 19]];
        for gpu in gpus() {
            for (dim, count, reach) in [(64, 2, 16), (12, 3, 128), (4, 2, 3), (128, 1, 7)] {
                let heads = Heads { count, dim };
                for (span, rows) in [
                    (Span::Prompt, prompts.to_vec()),
                    (Span::Text, step.to_vec()),
                    (Span::Encoded, step.to_vec()),
                ] {
                    let mut inputs = Inputs::new(heads, reach, rows);
                    let ours = inputs.ours(gpu, span);
                    let what = format!("{heads:?} {span:?}");
                    assert_close(&ours, &inputs.twin(span), 1e-5, &what);
                }
            }
        }
    }
}
