//! The retrieval model's work: images and texts to features, pairs to matching logits, and the search over features.

mod images;
mod matcher;
mod search;
mod stages;

pub use images::{EncodedImage, ImageEncoder, ImageShapes};
pub use matcher::{EncodedText, Matcher, RetrievalWorkload};
pub use search::{Hit, Search, SearchDirection, itc_score};
