//! Every tensor a model is made of: canonical name, shape, component. From it come the parameter counts, and the
//! loader's list of what to look for.

use super::config::{
    Blip2Config, Head, LanguageConfig, OptConfig, QFormerConfig, T5Config, VisionConfig,
};
use crate::weights::{Checkpoint, WeightsError};

/// OPT's token embedding; its output matrix, too, where that is tied.
pub(super) const OPT_EMBEDDING: &str = "language_model.model.decoder.embed_tokens.weight";
/// The token embedding of both stacks of T5, and of the output where it has none of its own.
pub(super) const T5_EMBEDDING: &str = "language_model.shared.weight";

/// A part of the model, as `inspect` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Vision transformer, its final norm included.
    Vision,
    /// The learned queries.
    QueryTokens,
    /// Querying transformer.
    QFormer,
    /// Word and position embeddings of the Q-Former's text branch (retrieval models).
    TextEmbeddings,
    /// From the Q-Former to the language model's width.
    LanguageProjection,
    /// Language model; a tied output matrix is counted once.
    LanguageModel,
    /// Projections to the common space, and the matching head (retrieval models).
    RetrievalHeads,
}

impl Component {
    /// All of them, in the order an image passes them.
    pub const ALL: [Self; 7] = [
        Self::Vision,
        Self::QueryTokens,
        Self::QFormer,
        Self::TextEmbeddings,
        Self::LanguageProjection,
        Self::LanguageModel,
        Self::RetrievalHeads,
    ];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision transformer",
            Self::QueryTokens => "query tokens",
            Self::QFormer => "Q-Former",
            Self::TextEmbeddings => "text embeddings",
            Self::LanguageProjection => "language projection",
            Self::LanguageModel => "language model",
            Self::RetrievalHeads => "retrieval heads",
        }
    }
}

/// A tensor the model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Canonical name: what transformers 5 writes.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The part of the model it belongs to.
    pub component: Component,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}

impl Blip2Config {
    /// Every tensor of the model, in the order an image passes them. A tied `lm_head` is not among them; an
    /// untied one is.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut list = List(Vec::new());
        let qformer = &self.qformer;
        list.vision(&self.vision);
        list.push(
            Component::QueryTokens,
            "query_tokens",
            &[1, self.num_query_tokens, qformer.hidden_size],
        );
        list.qformer(qformer, matches!(self.head, Head::Retrieval { .. }));
        match &self.head {
            Head::Generation(language) => {
                let component = Component::LanguageProjection;
                list.linear(
                    component,
                    "language_projection",
                    language.hidden_size(),
                    qformer.hidden_size,
                );
                match language {
                    LanguageConfig::Opt(opt) => list.opt(opt),
                    LanguageConfig::T5(t5) => list.t5(t5),
                }
            }
            Head::Retrieval { embedding_size } => {
                let (text, heads) = (Component::TextEmbeddings, Component::RetrievalHeads);
                let words = [qformer.vocab_size, qformer.hidden_size];
                let positions = [qformer.max_position_embeddings, qformer.hidden_size];
                list.push(text, "embeddings.word_embeddings.weight", &words);
                list.push(text, "embeddings.position_embeddings.weight", &positions);
                list.linear(
                    heads,
                    "vision_projection",
                    *embedding_size,
                    qformer.hidden_size,
                );
                list.linear(
                    heads,
                    "text_projection",
                    *embedding_size,
                    qformer.hidden_size,
                );
                list.linear(heads, "itm_head", 2, qformer.hidden_size);
            }
        }
        list.0
    }

    /// With an output matrix of its own where the checkpoint has one: transformers 5 writes every T5 as tied, whatever its
    /// file holds.
    ///
    /// # Errors
    /// The stored output matrix or the token embedding is damaged or of another shape.
    pub fn as_stored(mut self, checkpoint: &Checkpoint) -> Result<Self, WeightsError> {
        let (tied, embedding, shape) = match &mut self.head {
            Head::Generation(LanguageConfig::Opt(opt)) => {
                let shape = [opt.vocab_size, opt.hidden_size];
                (&mut opt.tie_word_embeddings, OPT_EMBEDDING, shape)
            }
            Head::Generation(LanguageConfig::T5(t5)) => {
                let shape = [t5.vocab_size, t5.d_model];
                (&mut t5.tie_word_embeddings, T5_EMBEDDING, shape)
            }
            Head::Retrieval { .. } => return Ok(self),
        };
        *tied = checkpoint.lm_head(embedding, *tied, &shape)?.is_none();
        Ok(self)
    }

    /// Parameters of one component.
    pub fn parameters_of(&self, component: Component) -> u64 {
        self.tensors()
            .iter()
            .filter(|tensor| tensor.component == component)
            .map(TensorSpec::elements)
            .sum()
    }

    /// Parameters of the whole model.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(TensorSpec::elements).sum()
    }

    /// Bytes of all weights in f16, without padding.
    pub fn f16_bytes(&self) -> u64 {
        2 * self.parameters()
    }
}

struct List(Vec<TensorSpec>);

impl List {
    fn push(&mut self, component: Component, name: impl Into<String>, shape: &[usize]) {
        self.0.push(TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            component,
        });
    }

    /// Weight `[outputs, inputs]` and bias `[outputs]`.
    fn linear(&mut self, component: Component, name: &str, outputs: usize, inputs: usize) {
        self.push(component, format!("{name}.weight"), &[outputs, inputs]);
        self.push(component, format!("{name}.bias"), &[outputs]);
    }

    /// Weight and bias `[width]`.
    fn norm(&mut self, component: Component, name: &str, width: usize) {
        self.push(component, format!("{name}.weight"), &[width]);
        self.push(component, format!("{name}.bias"), &[width]);
    }

    fn vision(&mut self, config: &VisionConfig) {
        let (c, width, inner) = (
            Component::Vision,
            config.hidden_size,
            config.intermediate_size,
        );
        let patch = config.patch_size;
        self.push(c, "vision_model.embeddings.class_embedding", &[1, 1, width]);
        self.push(
            c,
            "vision_model.embeddings.position_embedding",
            &[1, config.tokens(), width],
        );
        self.push(
            c,
            "vision_model.embeddings.patch_embedding.weight",
            &[width, 3, patch, patch],
        );
        self.push(c, "vision_model.embeddings.patch_embedding.bias", &[width]);
        for layer in 0..config.num_hidden_layers {
            let layer = format!("vision_model.encoder.layers.{layer}");
            self.norm(c, &format!("{layer}.layer_norm1"), width);
            self.push(
                c,
                format!("{layer}.self_attn.qkv.weight"),
                &[3 * width, width],
            );
            if config.qkv_bias {
                self.push(c, format!("{layer}.self_attn.qkv.bias"), &[3 * width]);
            }
            self.linear(c, &format!("{layer}.self_attn.projection"), width, width);
            self.norm(c, &format!("{layer}.layer_norm2"), width);
            self.linear(c, &format!("{layer}.mlp.fc1"), inner, width);
            self.linear(c, &format!("{layer}.mlp.fc2"), width, inner);
        }
        self.norm(c, "vision_model.post_layernorm", width);
    }

    /// `text_branch`: with the feed-forward blocks that text tokens pass.
    fn qformer(&mut self, config: &QFormerConfig, text_branch: bool) {
        self.norm(Component::QFormer, "qformer.layernorm", config.hidden_size);
        for layer in 0..config.num_hidden_layers {
            let name = format!("qformer.encoder.layer.{layer}");
            self.qformer_attention(
                &format!("{name}.attention"),
                config.hidden_size,
                config.hidden_size,
            );
            if config.has_cross_attention(layer) {
                let attention = format!("{name}.crossattention");
                self.qformer_attention(&attention, config.hidden_size, config.encoder_hidden_size);
            }
            self.qformer_feed_forward(&name, "_query", config);
            if text_branch {
                self.qformer_feed_forward(&name, "", config);
            }
        }
    }

    /// Attention whose keys and values come from tokens of width `source`, with its output norm.
    fn qformer_attention(&mut self, name: &str, width: usize, source: usize) {
        let c = Component::QFormer;
        self.linear(c, &format!("{name}.attention.query"), width, width);
        self.linear(c, &format!("{name}.attention.key"), width, source);
        self.linear(c, &format!("{name}.attention.value"), width, source);
        self.linear(c, &format!("{name}.output.dense"), width, width);
        self.norm(c, &format!("{name}.output.LayerNorm"), width);
    }

    /// The feed-forward block of the queries (`branch` `_query`) or of the text (empty).
    fn qformer_feed_forward(&mut self, layer: &str, branch: &str, config: &QFormerConfig) {
        let (c, width, inner) = (
            Component::QFormer,
            config.hidden_size,
            config.intermediate_size,
        );
        self.linear(
            c,
            &format!("{layer}.intermediate{branch}.dense"),
            inner,
            width,
        );
        self.linear(c, &format!("{layer}.output{branch}.dense"), width, inner);
        self.norm(c, &format!("{layer}.output{branch}.LayerNorm"), width);
    }

    fn opt(&mut self, config: &OptConfig) {
        let (c, width) = (Component::LanguageModel, config.hidden_size);
        let decoder = "language_model.model.decoder";
        self.push(c, OPT_EMBEDDING, &[config.vocab_size, width]);
        self.push(
            c,
            format!("{decoder}.embed_positions.weight"),
            &[config.position_rows(), width],
        );
        for layer in 0..config.num_hidden_layers {
            let layer = format!("{decoder}.layers.{layer}");
            self.norm(c, &format!("{layer}.self_attn_layer_norm"), width);
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.linear(c, &format!("{layer}.self_attn.{projection}"), width, width);
            }
            self.norm(c, &format!("{layer}.final_layer_norm"), width);
            self.linear(c, &format!("{layer}.fc1"), config.ffn_dim, width);
            self.linear(c, &format!("{layer}.fc2"), width, config.ffn_dim);
        }
        self.norm(c, &format!("{decoder}.final_layer_norm"), width);
        if !config.tie_word_embeddings {
            self.push(
                c,
                "language_model.lm_head.weight",
                &[config.vocab_size, width],
            );
        }
    }
}

impl List {
    fn t5(&mut self, config: &T5Config) {
        let c = Component::LanguageModel;
        let vocabulary = [config.vocab_size, config.d_model];
        self.push(c, T5_EMBEDDING, &vocabulary);
        for (stack, layers) in [
            ("encoder", config.num_layers),
            ("decoder", config.num_decoder_layers),
        ] {
            let stack = format!("language_model.{stack}");
            let is_decoder = stack.ends_with("decoder");
            for index in 0..layers {
                let block = format!("{stack}.block.{index}.layer");
                self.t5_attention(&format!("{block}.0"), "SelfAttention", config);
                if index == 0 {
                    // The other blocks use the first one's.
                    self.push(
                        c,
                        format!("{block}.0.SelfAttention.relative_attention_bias.weight"),
                        &[config.relative_attention_num_buckets, config.num_heads],
                    );
                }
                if is_decoder {
                    self.t5_attention(&format!("{block}.1"), "EncDecAttention", config);
                }
                self.t5_feed_forward(&format!("{block}.{}", 1 + usize::from(is_decoder)), config);
            }
            self.push(
                c,
                format!("{stack}.final_layer_norm.weight"),
                &[config.d_model],
            );
        }
        if !config.tie_word_embeddings {
            self.push(c, "language_model.lm_head.weight", &vocabulary);
        }
    }

    /// Attention without biases, and the norm in front of it.
    fn t5_attention(&mut self, layer: &str, kind: &str, config: &T5Config) {
        let (c, width, inner) = (
            Component::LanguageModel,
            config.d_model,
            config.inner_size(),
        );
        for projection in ["q", "k", "v"] {
            self.push(
                c,
                format!("{layer}.{kind}.{projection}.weight"),
                &[inner, width],
            );
        }
        self.push(c, format!("{layer}.{kind}.o.weight"), &[width, inner]);
        self.push(c, format!("{layer}.layer_norm.weight"), &[width]);
    }

    /// Gated feed-forward block, and the norm in front of it.
    fn t5_feed_forward(&mut self, layer: &str, config: &T5Config) {
        let (c, width, inner) = (Component::LanguageModel, config.d_model, config.d_ff);
        let name = format!("{layer}.DenseReluDense");
        self.push(c, format!("{name}.wi_0.weight"), &[inner, width]);
        self.push(c, format!("{name}.wi_1.weight"), &[inner, width]);
        self.push(c, format!("{name}.wo.weight"), &[width, inner]);
        self.push(c, format!("{layer}.layer_norm.weight"), &[width]);
    }
}

#[cfg(test)]
mod tests;
