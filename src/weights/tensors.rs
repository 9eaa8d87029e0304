//! What a model takes its tensors from as it is put together.
//!
//! A model's `load` names each of its tensors once. It runs over a listing ([`list_tensors`]), which needs no device, and
//! over an [`Outline`](super::Outline), whose buffers are filled once everything is known.

use std::cell::RefCell;
use std::fmt::Display;

use crate::gpu::{Gpu, Matrix, Vector, WeightBuffer, WeightFormat, round_up};

use super::upload::{Change, MatrixRequest, Request, VectorRequest};
use super::{Checkpoint, Weight, WeightsError};

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

/// Every tensor that `load` asks for, in its order, which is that in which an image passes them. With a `checkpoint` each is
/// looked up in it, and the checkpoint decides whether the language model has an output matrix of its own; without one
/// the configuration does.
///
/// # Errors
/// A tensor that the checkpoint lacks, or has in another shape or type.
pub fn list_tensors<M>(
    checkpoint: Option<&Checkpoint>,
    load: impl FnOnce(&Tensors) -> Result<M, WeightsError>,
) -> Result<Vec<TensorSpec>, WeightsError> {
    let tensors = Tensors::new(checkpoint, None);
    load(&tensors)?;
    Ok(tensors.specs.into_inner())
}

/// The root of a model's tensors, which notes what is asked for.
pub struct Tensors<'a> {
    checkpoint: Option<&'a Checkpoint>,
    /// `None`: only names and shapes are wanted.
    target: Option<Target<'a>>,
    specs: RefCell<Vec<TensorSpec>>,
    requests: RefCell<Vec<Request<'a>>>,
}

/// The device that weights will lie on, and how.
pub(super) struct Target<'a> {
    pub gpu: &'a Gpu,
    /// The format asked for; `None` is the checkpoint's own.
    pub quant: Option<WeightFormat>,
    /// What stands for every buffer until it is filled.
    pub placeholder: wgpu::Buffer,
}

/// A stored tensor that was asked for; in a listing without a checkpoint its name alone.
struct Taken<'a> {
    spec: TensorSpec,
    weight: Option<Weight<'a>>,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(checkpoint: Option<&'a Checkpoint>, target: Option<Target<'a>>) -> Self {
        Self {
            checkpoint,
            target,
            specs: RefCell::default(),
            requests: RefCell::default(),
        }
    }

    /// What was asked for, to be filled in.
    pub(super) fn into_requests(self) -> Vec<Request<'a>> {
        self.requests.into_inner()
    }

    /// The tensors of `component` whose names begin with `prefix`.
    pub fn part(&self, component: Component, prefix: &str) -> Scope<'_, 'a> {
        Scope {
            tensors: self,
            component,
            path: prefix.into(),
        }
    }

    fn take(&self, spec: TensorSpec) -> Result<Taken<'a>, WeightsError> {
        let weight = self
            .checkpoint
            .map(|checkpoint| checkpoint.weight(&spec.name, &spec.shape))
            .transpose()?;
        self.specs.borrow_mut().push(spec.clone());
        Ok(Taken { spec, weight })
    }

    /// `tensors`, of equal shape, stacked by rows as one matrix.
    fn matrix(&self, tensors: Vec<Taken<'a>>) -> Result<Matrix, WeightsError> {
        let spec = tensors[0].spec.clone();
        let Some(target) = &self.target else {
            let [rows, columns] = matrix_shape(&spec.shape);
            return Ok(Matrix {
                format: WeightFormat::default(),
                parts: Vec::new(),
                rows: rows * tensors.len(),
                columns: round_up(columns, 8),
            });
        };
        let weights = tensors.into_iter().filter_map(|tensor| tensor.weight);
        let request = MatrixRequest::new(target, spec, weights.collect())?;
        let matrix = request.matrix().clone();
        self.requests.borrow_mut().push(Request::Matrix(request));
        Ok(matrix)
    }

    /// `tensors` one after another as one vector of `len` values, which `change` makes of the stored ones.
    fn vector(&self, tensors: Vec<Taken<'a>>, len: usize, change: Option<Change>) -> Vector {
        let placeholder = self.target.as_ref().map(|target| &target.placeholder);
        let vector = Vector {
            buffer: WeightBuffer::planned((len * 4) as u64, placeholder),
            len,
        };
        if self.target.is_some() {
            let label = tensors[0].spec.name.clone();
            let weights = tensors.into_iter().filter_map(|tensor| tensor.weight);
            self.requests
                .borrow_mut()
                .push(Request::Vector(VectorRequest {
                    label,
                    weights: weights.collect(),
                    change,
                    vector: vector.clone(),
                }));
        }
        vector
    }
}

/// A place in the tree of tensor names, as candle's `VarBuilder`.
#[derive(Clone)]
pub struct Scope<'s, 'a> {
    tensors: &'s Tensors<'a>,
    component: Component,
    path: String,
}

impl<'a> Scope<'_, 'a> {
    /// The place `name` below this one.
    #[must_use]
    pub fn pp(&self, name: impl Display) -> Self {
        Self {
            path: self.path_of(name),
            ..*self
        }
    }

    fn path_of(&self, name: impl Display) -> String {
        match self.path.as_str() {
            "" => name.to_string(),
            path => format!("{path}.{name}"),
        }
    }

    fn spec(&self, name: &str, shape: &[usize], role: Role) -> TensorSpec {
        TensorSpec {
            name: self.path_of(name),
            shape: shape.to_vec(),
            component: self.component,
            role,
        }
    }

    fn take(&self, name: &str, shape: &[usize], role: Role) -> Result<Taken<'a>, WeightsError> {
        self.tensors.take(self.spec(name, shape, role))
    }

    /// The tensor `name` of `shape` as f32: norms, biases and other small ones.
    ///
    /// # Errors
    /// It is missing, or of another shape or type.
    pub fn vector(&self, name: &str, shape: &[usize]) -> Result<Vector, WeightsError> {
        let tensor = self.take(name, shape, Role::Vector)?;
        Ok(self
            .tensors
            .vector(vec![tensor], shape.iter().product(), None))
    }

    /// A vector of `len` values that `change` makes of those of the tensor `name`: positions for another image size.
    ///
    /// # Errors
    /// As [`Scope::vector`].
    pub fn changed_vector(
        &self,
        name: &str,
        shape: &[usize],
        len: usize,
        change: impl Fn(Vec<f32>) -> Vec<f32> + Send + Sync + 'static,
    ) -> Result<Vector, WeightsError> {
        let tensor = self.take(name, shape, Role::Vector)?;
        Ok(self
            .tensors
            .vector(vec![tensor], len, Some(Box::new(change))))
    }

    /// The tensor `name` of `shape` (`[rows, columns]`, or `[out, channels, height, width]`) as a matrix that is f16
    /// whatever the others are stored in; its columns are padded with zeros to a multiple of 8.
    ///
    /// # Errors
    /// As [`Scope::vector`].
    pub fn table(&self, name: &str, shape: &[usize]) -> Result<Matrix, WeightsError> {
        let tensor = self.take(name, shape, Role::Table)?;
        self.tensors.matrix(vec![tensor])
    }

    /// The output matrix `name` of `shape`: `embedding`, whose name is `embedding_name`, where the two are tied. A stored one
    /// that differs from the embedding counts whatever `tied`, the configuration, says.
    ///
    /// # Errors
    /// As [`Scope::vector`]; missing although it is not tied.
    pub fn output_matrix(
        &self,
        name: &str,
        (embedding_name, embedding): (&str, &Matrix),
        shape: &[usize; 2],
        tied: bool,
    ) -> Result<Matrix, WeightsError> {
        let names = [name, embedding_name].map(|name| self.path_of(name));
        let is_own = match self.tensors.checkpoint {
            Some(checkpoint) => {
                checkpoint.has_output_matrix([&names[0], &names[1]], tied, shape)?
            }
            None => !tied,
        };
        if is_own {
            self.table(name, shape)
        } else {
            Ok(embedding.clone())
        }
    }

    /// The layers `names` from `inputs` to `outputs` values, stacked by rows: weight `[names · outputs, inputs]` and, where they
    /// are `biased`, bias `[names · outputs]`.
    ///
    /// # Errors
    /// As [`Scope::vector`].
    pub fn layers(
        &self,
        names: &[&str],
        [outputs, inputs]: [usize; 2],
        biased: bool,
    ) -> Result<(Matrix, Option<Vector>), WeightsError> {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for name in names {
            let layer = self.pp(name);
            weights.push(layer.take("weight", &[outputs, inputs], Role::Layer)?);
            if biased {
                biases.push(layer.take("bias", &[outputs], Role::Vector)?);
            }
        }
        let weight = self.tensors.matrix(weights)?;
        let bias = biased.then(|| self.tensors.vector(biases, names.len() * outputs, None));
        Ok((weight, bias))
    }
}

/// A tensor of this shape as `[rows, columns]`: a vector is one row; a convolution kernel `[out, in, height, width]` has a row
/// an output channel; all else keeps its last dimension as columns.
pub(super) fn matrix_shape(shape: &[usize]) -> [usize; 2] {
    let columns = match shape {
        [] => 1,
        [_, kernel @ ..] if kernel.len() == 3 => kernel.iter().product(),
        [.., last] => *last,
    };
    [shape.iter().product::<usize>() / columns.max(1), columns]
}
