//! What can be wrong with files to measure.

use std::path::{Path, PathBuf};

/// A file that cannot be measured with, or the two that do not fit each other. Names the file and
/// the item in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The file cannot be read.
    #[error("{}: cannot be read ({cause}); check the path and its permissions", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system answered.
        cause: std::io::Error,
    },
    /// The file cannot be written.
    #[error("{}: cannot be written ({cause}); check the folder and the space there", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// What the system answered.
        cause: std::io::Error,
    },
    /// The file is no JSON.
    #[error("{}: not valid JSON ({cause}); it may be damaged or half downloaded", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and why.
        cause: serde_json::Error,
    },
    /// The file is no UTF-8 text.
    #[error("{}: not UTF-8 text ({found}); save it as UTF-8", file.display())]
    Encoding {
        /// The file.
        file: PathBuf,
        /// What it has instead.
        found: String,
    },
    /// The file is JSON of another layout.
    #[error("{}: {problem}; expected {expected}", file.display())]
    Layout {
        /// The file.
        file: PathBuf,
        /// What is there.
        problem: String,
        /// What should be.
        expected: &'static str,
    },
    /// A field of an item is missing or of a wrong type.
    #[error("{}: {item}: {field} {problem}; correct the file or get it anew", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The item, by its id where it has one.
        item: String,
        /// The field's name.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An item is wrong as a whole: an id given twice, an id that the other file does not know.
    #[error("{}: {item} {problem}", file.display())]
    Item {
        /// The file.
        file: PathBuf,
        /// The item, by its id.
        item: String,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// A score matrix that cannot be read.
    #[error("{}: {problem}; save it with numpy.save as a two-dimensional float32 or float64 array", file.display())]
    Npy {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Nothing to compute a mean of.
    #[error("{}: {problem}", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
        /// What is missing.
        problem: String,
    },
}

impl EvalError {
    /// An [`EvalError::Read`].
    pub fn read(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.into();
        move |cause| Self::Read { file, cause }
    }

    /// An [`EvalError::Write`].
    pub fn write(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.into();
        move |cause| Self::Write { file, cause }
    }

    /// An [`EvalError::Item`].
    pub fn item(file: &Path, item: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Item {
            file: file.into(),
            item: item.into(),
            problem: problem.into(),
        }
    }
}
