//! Measuring: caption, question and retrieval metrics as the reference systems compute them, and
//! the files they come in. No printing, no model.

mod caption;
mod contractions;
mod datasets;
mod error;
mod images;
mod json;
mod predictions;
mod ptb;
mod questions;
mod recall;
mod report;
mod results;
mod scenes;
mod score_matrix;
mod vqa;

pub use caption::{CaptionPair, CaptionScores, ImageScores, score_captions, score_tokens};
pub use datasets::{CaptionData, ListedImage, ListedText, id_in_name, read_image_of_text};
pub use error::EvalError;
pub use images::ImageFolder;
pub use json::Id;
pub use predictions::{Predictions, ResultFields, Shard, write_whole};
pub use ptb::tokenize;
pub use questions::{ListedQuestion, QuestionData};
pub use recall::{DirectionRecall, RECALL_AT, RetrievalScores, retrieval_ceiling, score_retrieval};
pub use report::{Figure, Report, ReportItem, thumbnail};
pub use results::{Joined, Results};
pub use scenes::{Object, Scene, read_scenes};
pub use score_matrix::ScoreMatrix;
pub use vqa::{GroundTruth, VqaRules, VqaScores, normalize_answer, score_gqa, score_vqa};
