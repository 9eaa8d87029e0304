//! The library's error: one line that says which file or option, what is wrong and what to do.

use std::path::PathBuf;

use crate::generate::GenerateError;
use crate::gpu::GpuError;
use crate::image::ImageError;
use crate::model::config::ConfigError;
use crate::schedule::Refusal;
use crate::task::{IndexError, Shortage};
use crate::text::TextError;
use crate::weights::{UploadError, WeightsError};

/// Anything that can go wrong between a checkpoint, images and text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The checkpoint's tensors.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The checkpoint's `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An image, or how to prepare images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Generation options or scores.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A dataset, or results to measure.
    #[cfg(feature = "eval")]
    #[error(transparent)]
    Eval(#[from] crate::eval::EvalError),
    /// The index of a search.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A model that does not fit the device, with what would.
    #[error(transparent)]
    Memory(#[from] Box<Shortage>),
    /// A text in which nothing is left to compare with an image.
    #[error("text {text:?} is empty, or empty after the preset's clean-up; give words")]
    EmptyText {
        /// Its beginning.
        text: String,
    },
    /// A checkpoint of another program, or its conversion.
    #[cfg(feature = "convert")]
    #[error(transparent)]
    Convert(#[from] crate::convert::ConvertError),
    /// The Hugging Face Hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// No checkpoint was named.
    #[error("no model given: pass `model`, a BLIP-2 folder in the Hugging Face layout")]
    NoModel,
    /// The checkpoint cannot do what was asked.
    #[error("{}: this is a {is} model, which cannot {task}; use a {needed} checkpoint", model.display())]
    WrongKind {
        /// The checkpoint.
        model: PathBuf,
        /// What it is.
        is: &'static str,
        /// What was asked.
        task: &'static str,
        /// What it takes.
        needed: &'static str,
    },
    /// An image size that the model's patches do not divide.
    #[error(
        "image size {size} is not a multiple of the model's patch size {patch} between {patch} and {most}; use for example {suggestion}"
    )]
    ImageSize {
        /// Pixels asked for.
        size: usize,
        /// Pixels a patch.
        patch: usize,
        /// The largest size.
        most: usize,
        /// The nearest size that works.
        suggestion: usize,
    },
    /// Prompt and new tokens do not fit the decoder's positions.
    #[error(
        "{needed} positions ({prompt} for image and prompt, {new} new tokens) exceed the model's {most}; shorten the prompt or lower `max_new_tokens`"
    )]
    TooLong {
        /// Positions needed.
        needed: usize,
        /// Of image and prompt.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// Positions there are.
        most: usize,
    },
    /// A prompt that no question can be put into.
    #[error(
        "`prompt` {template:?}: {problem}; write a prompt with {{}} where the question goes, such as \"Question: {{}} Answer:\""
    )]
    Template {
        /// The prompt.
        template: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A question with nothing in it.
    #[error("question {question:?}: {problem}; ask something")]
    Question {
        /// Its first characters.
        question: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A request that is too large for the device, whatever else it has to do.
    #[error(
        "the {what} of the request need {bytes} bytes in one buffer, this device allows {limit}; lower {remedy}"
    )]
    TooLarge {
        /// Of what there is too much.
        what: &'static str,
        /// Bytes needed.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
        /// The parameters to lower.
        remedy: &'static str,
    },
    /// A request that was accepted and not finished.
    #[error("the request was given up: {why}; ask again")]
    GivenUp {
        /// What happened.
        why: &'static str,
    },
    /// A request that the service has not accepted.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// A request to the engine that no model could serve: a caller's mistake.
    #[error("request cannot be served: {problem}; this is a bug in the calling program")]
    Request {
        /// What is wrong with it.
        problem: String,
    },
    /// Options that do not go together.
    #[error("{problem}")]
    Usage {
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file that cannot be written.
    #[error("{}: cannot be written ({cause}); check its folder, permissions and the space there", file.display())]
    Output {
        /// The file.
        file: PathBuf,
        /// What the system answered.
        cause: std::io::Error,
    },
    /// A file that a decoder gave up on.
    #[error("{image}: the image cannot be decoded; convert it, to PNG for example")]
    Undecodable {
        /// The file.
        image: String,
    },
    /// The same error for several items, such as all questions about an image that cannot be read.
    #[error(transparent)]
    Shared(std::sync::Arc<Error>),
    /// A reference dump that cannot be compared with.
    #[error("{}: {problem}; make it with weights-tools/reference_dump.py for this model", file.display())]
    Dump {
        /// The dump.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(error) => error,
            Refusal::Lost(error) => Self::Shared(error),
            other => Self::Refused(Box::new(other)),
        }
    }
}

impl From<Shortage> for Error {
    fn from(shortage: Shortage) -> Self {
        Self::Memory(Box::new(shortage))
    }
}

impl From<UploadError> for Error {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Weights(error) => Self::Weights(error),
            UploadError::Gpu(error) => Self::Gpu(error),
        }
    }
}

impl Error {
    /// Whether it is the device that failed, or has no room.
    #[must_use]
    pub fn is_of_device(&self) -> bool {
        match self {
            Self::Gpu(_) => true,
            Self::Shared(error) => error.is_of_device(),
            _ => false,
        }
    }

    /// Whether it is about an image that cannot be read, and says which.
    #[must_use]
    pub fn names_its_image(&self) -> bool {
        match self {
            Self::Image(_) | Self::Undecodable { .. } => true,
            Self::Shared(error) => error.names_its_image(),
            _ => false,
        }
    }

    /// Whether what was asked is wrong in itself, rather than a file or the machine.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        if let Self::Shared(error) = self {
            return error.is_usage();
        }
        #[cfg(feature = "hub")]
        if let Self::Hub(crate::hub::HubError::Name { .. }) = self {
            return true;
        }
        matches!(
            self,
            Self::NoModel
                | Self::Usage { .. }
                | Self::ImageSize { .. }
                | Self::Template { .. }
                | Self::Generate(GenerateError::Option { .. })
                | Self::Gpu(
                    GpuError::UnknownDisable { .. }
                        | GpuError::UnknownKernel { .. }
                        | GpuError::UnfitKernel { .. }
                )
        )
    }
}
