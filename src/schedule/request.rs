//! What is asked of the engine, and what it answers.

use std::sync::Arc;

use crate::Error;
use crate::generate::{Generated, GenerationOptions};

/// An image, preprocessed: `[3, size, size]`. The same image is the same allocation.
pub type Pixels = Arc<Vec<f32>>;

/// One text to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its image, preprocessed. Requests about the same image share the allocation, and the image is encoded once.
    pub image: Pixels,
    /// Prompt ids, with the special token that they begin (OPT) or end (T5) with.
    pub text: Vec<u32>,
    /// Ids that the score processors count as already said.
    pub history: Vec<u32>,
    /// How to choose tokens.
    pub options: Arc<GenerationOptions>,
}

/// What a turn of the queue brings.
#[derive(Debug)]
pub enum Event {
    /// A token was chosen, by greedy search or a draw (a beam search knows its texts only at the end).
    Token {
        /// Number of the request.
        request: usize,
        /// Number of the text, where several are drawn.
        text: usize,
        /// The token.
        token: u32,
    },
    /// A request is finished.
    Done {
        /// Number of the request.
        request: usize,
        /// Its texts, best first.
        texts: Vec<Generated>,
    },
    /// A request cannot be finished; the others can.
    Failed {
        /// Number of the request.
        request: usize,
        /// Why.
        error: Error,
    },
}
