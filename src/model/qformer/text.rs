//! The Q-Former's text branch: BERT's embeddings and an mlp of its own a layer; self-attention is shared.
//!
//! ```text
//! text alone:  text ─ norm ─ [ self-attention ─ norm ─ text mlp ─ norm ] × N
//! with image:  queries + text ─ norm ─ [ self-attention of all ─┬─ queries: cross-attention, mlp ─┬─ ] × N
//!                                                               └─ text: text mlp ────────────────┘
//! ```

use crate::gpu::{Activation, Gpu, GpuError, Matrix, ProgramBuilder};
use crate::kernels::{
    EmbedTokens, INACTIVE, Linear, Positions, embed_tokens, join_rows, layer_norm, linear,
    rows_of_groups, tap,
};
use crate::model::config::QFormerConfig;
use crate::model::layers::load_linear;
use crate::weights::{Component, Scope, Tensors, WeightsError};

use super::{QFormer, Residual, equal_lengths};

/// The weights that only text tokens use.
#[derive(Debug)]
pub struct TextBranch {
    /// `[vocabulary, hidden]`
    word_embeddings: Matrix,
    /// `[positions, hidden]`
    position_embeddings: Matrix,
    /// One a layer.
    feed_forward: Vec<FeedForward>,
}

#[derive(Debug)]
struct FeedForward {
    intermediate: Linear,
    output: Residual,
}

/// Texts on the device, each padded on the right to one length. Padding is masked and its values are never used.
#[derive(Debug)]
pub struct Texts {
    /// u32 `[batch · length]`
    tokens: wgpu::Buffer,
    /// `(sequence, position)` `[batch · length]`
    row_info: wgpu::Buffer,
    /// Tokens of each text, u32 `[batch]`.
    text_lengths: wgpu::Buffer,
    /// Queries and tokens of each text, u32 `[batch]`.
    joint_lengths: wgpu::Buffer,
    queries: usize,
    batch: usize,
    length: usize,
}

impl Texts {
    /// Room for `batch` texts of at most `length` tokens, to be read with `queries` queries or alone.
    ///
    /// # Errors
    /// No room on the device.
    pub fn new(gpu: &Gpu, batch: usize, length: usize, queries: usize) -> Result<Self, GpuError> {
        let words = |label: &str, count: usize| gpu.storage(label, (count * 4) as u64);
        Ok(Self {
            tokens: words("text tokens", batch * length)?,
            row_info: words("text rows", 2 * batch * length)?,
            text_lengths: words("text lengths", batch)?,
            joint_lengths: words("joint lengths", batch)?,
            queries,
            batch,
            length,
        })
    }

    /// Texts.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Most tokens of a text.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Replaces the texts; those missing from a full batch become copies of the first.
    pub fn write<'t>(&self, gpu: &Gpu, texts: impl IntoIterator<Item = &'t [u32]>) {
        let mut texts: Vec<&[u32]> = texts.into_iter().collect();
        debug_assert!(!texts.is_empty() && texts.len() <= self.batch);
        texts.resize(self.batch, texts[0]);
        let mut tokens = Vec::with_capacity(self.batch * self.length);
        let mut row_info = Vec::with_capacity(self.batch * self.length);
        for (sequence, text) in texts.iter().enumerate() {
            debug_assert!(!text.is_empty() && text.len() <= self.length);
            for position in 0..self.length {
                let token = text.get(position).copied();
                tokens.push(token.unwrap_or(0));
                let position = token.map_or(INACTIVE, |_| position as u32);
                row_info.push([sequence as u32, position]);
            }
        }
        let lengths = |more: usize| -> Vec<u32> {
            texts
                .iter()
                .map(|text| (text.len() + more) as u32)
                .collect()
        };
        gpu.write(&self.tokens, 0, &tokens);
        gpu.write(&self.row_info, 0, &row_info);
        gpu.write(&self.text_lengths, 0, &lengths(0));
        gpu.write(&self.joint_lengths, 0, &lengths(self.queries));
    }
}

impl TextBranch {
    /// Most tokens of a text.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.position_embeddings.rows
    }

    /// Number of tokens that have an embedding.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.word_embeddings.rows
    }
}

impl FeedForward {
    fn load(scope: &Scope, config: &QFormerConfig) -> Result<Self, WeightsError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            intermediate: load_linear(scope, "intermediate.dense", inner, hidden)?,
            output: Residual::load(&scope.pp("output"), config, inner)?,
        })
    }
}

impl QFormer {
    /// [`QFormer::load`] with the text mlps of its layers and the tensors below `embeddings.`
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load_with_text(
        tensors: &Tensors,
        config: &QFormerConfig,
        queries: usize,
    ) -> Result<(Self, TextBranch), WeightsError> {
        let mut feed_forward = Vec::new();
        let qformer = Self::load_layers(tensors, config, queries, |layer| {
            feed_forward.push(FeedForward::load(layer, config)?);
            Ok(())
        })?;
        let embeddings = tensors.part(Component::TextEmbeddings, "embeddings");
        let words = [config.vocab_size, config.hidden_size];
        let positions = [config.max_position_embeddings, config.hidden_size];
        let branch = TextBranch {
            word_embeddings: embeddings.table("word_embeddings.weight", &words)?,
            position_embeddings: embeddings.table("position_embeddings.weight", &positions)?,
            feed_forward,
        };
        Ok((qformer, branch))
    }

    /// Texts alone: the last hidden state `[batch · length, hidden]`.
    pub fn forward_text(
        &self,
        program: &mut ProgramBuilder,
        branch: &TextBranch,
        texts: &Texts,
    ) -> Activation {
        let mut hidden = self.text_embeddings(program, branch, texts);
        tap(program, &hidden, || "text.embeddings".into());
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = self.self_attention(program, layer, &hidden, texts.batch, &texts.text_lengths);
            hidden = self.text_mlp(program, &branch.feed_forward[index], &hidden);
            tap(program, &hidden, || format!("text.layer.{index}"));
        }
        hidden
    }

    /// Queries that read an image and a text together: `image_tokens` `[images · tokens, image width]` and a multiple
    /// of `images` texts, those of the first image first → the queries' last hidden state `[texts · queries, hidden]`.
    ///
    /// # Errors
    /// No room for the small state that the program needs.
    pub fn forward_pairs(
        &self,
        program: &mut ProgramBuilder,
        branch: &TextBranch,
        image_tokens: &Activation,
        images: usize,
        texts: &Texts,
    ) -> Result<Activation, GpuError> {
        let (batch, count) = (texts.batch, self.queries());
        debug_assert!(batch.is_multiple_of(images) && texts.queries == count);
        // All texts of an image share its keys: to the cross-attention their queries are one long sequence.
        let image_lengths = equal_lengths(program, images, image_tokens.rows / images)?;
        let mut queries = self.query_embeddings(program, batch)?;
        let mut text = self.text_embeddings(program, branch, texts);
        for (index, layer) in self.layers.iter().enumerate() {
            let both = join_rows(program, &queries, &text, batch);
            let both = self.self_attention(program, layer, &both, batch, &texts.joint_lengths);
            queries = rows_of_groups(program, &both, 0, count, batch);
            queries = self.read_image(
                program,
                layer,
                &queries,
                image_tokens,
                images,
                &image_lengths,
            );
            if index + 1 < self.layers.len() {
                text = rows_of_groups(program, &both, count, texts.length, batch);
                text = self.text_mlp(program, &branch.feed_forward[index], &text);
            }
            tap(program, &queries, || format!("pair.layer.{index}"));
        }
        Ok(queries)
    }

    /// Word and position embeddings, normed: `[batch · length, hidden]`.
    fn text_embeddings(
        &self,
        program: &mut ProgramBuilder,
        branch: &TextBranch,
        texts: &Texts,
    ) -> Activation {
        let embedded = embed_tokens(
            program,
            &EmbedTokens {
                tokens: &texts.tokens,
                row_info: &texts.row_info,
                rows: texts.batch * texts.length,
                embedding: &branch.word_embeddings,
                positions: Some(Positions {
                    table: &branch.position_embeddings,
                    offset: 0,
                }),
                // No token is a visual one: the queries have no positions and come in by themselves.
                visual: &self.query_tokens(),
            },
        );
        layer_norm(program, &embedded, &self.layernorm)
    }

    fn text_mlp(
        &self,
        program: &mut ProgramBuilder,
        mlp: &FeedForward,
        hidden: &Activation,
    ) -> Activation {
        let inner = linear(program, hidden, &mlp.intermediate, self.activate);
        mlp.output.add(program, &inner, hidden)
    }
}
