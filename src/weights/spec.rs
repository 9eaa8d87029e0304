//! What a tensor is to the model: name, shape, component, role.

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

/// What a tensor is to the model; with its component it says how the tensor may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The weight of a layer within a transformer block or between two networks.
    Layer,
    /// A table that is looked up in, the output matrix, the first layer: always f16.
    Table,
    /// A bias, a norm, learned queries: f32.
    Vector,
}

/// A tensor that the model is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Canonical name: what transformers 5 writes.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The part of the model it belongs to.
    pub component: Component,
    /// What it is there.
    pub role: Role,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}

/// A tensor of this shape as `[rows, columns]`: a vector is one row; a convolution kernel `[out,
/// in, height, width]` has a row an output channel; all else keeps its last dimension as columns.
pub(super) fn matrix_shape(shape: &[usize]) -> [usize; 2] {
    let columns = match shape {
        [] => 1,
        [_, kernel @ ..] if kernel.len() == 3 => kernel.iter().product(),
        [.., last] => *last,
    };
    [shape.iter().product::<usize>() / columns.max(1), columns]
}
