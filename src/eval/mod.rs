//! Measuring: caption, question and retrieval metrics as the reference systems compute them, and
//! the files they come in. No printing, no model.

mod caption;
mod contractions;
mod datasets;
mod error;
mod json;
mod ptb;
mod questions;
mod recall;
mod results;
mod score_matrix;
mod tables;
mod vqa;

pub use caption::{CaptionPair, CaptionScores, ImageScores, score_captions, score_tokens};
pub use datasets::{CaptionData, ListedImage, ListedText, read_image_of_text};
pub use error::EvalError;
pub use json::Id;
pub use ptb::tokenize;
pub use questions::{Benchmark, ListedQuestion, QuestionData};
pub use recall::{DirectionRecall, RECALL_AT, RetrievalScores, retrieval_ceiling, score_retrieval};
pub use results::{Joined, Results};
pub use score_matrix::ScoreMatrix;
pub use vqa::{GroundTruth, VqaRules, VqaScores, normalize_answer, score_answers};
