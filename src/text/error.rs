use std::path::PathBuf;

/// What can be wrong with a tokenizer's files, or with the vocabulary they hold.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The folder holds no tokenizer of the kind wanted.
    #[error(
        "{}: no tokenizer here; put {wanted} from the model's page into the folder",
        folder.display()
    )]
    NoTokenizer {
        /// Folder searched.
        folder: PathBuf,
        /// The files that would do.
        wanted: &'static str,
    },
    /// Of two files that belong together only one is there.
    #[error(
        "{}: missing, though {present} is there; copy both from the model's page",
        missing.display()
    )]
    MissingCompanion {
        /// The file that is not there.
        missing: PathBuf,
        /// The file that is.
        present: &'static str,
    },
    /// A file could not be read.
    #[error("{}: cannot be read ({source}); check that the file exists and is readable", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}; fetch the file again from the model's page", file.display())]
    Broken {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tokenizer of another model.
    #[error(
        "{}: is a tokenizer of the kind {found}, but the model needs {wanted}; put the tokenizer published with this model \
         in its place (for convert, give its folder as `tokenizer`)",
        file.display()
    )]
    OtherTokenizer {
        /// The file.
        file: PathBuf,
        /// The kind that it is.
        found: &'static str,
        /// The kind that the model was trained with.
        wanted: &'static str,
    },
    /// A special token that encoding needs is not in the vocabulary.
    #[error(
        "{}: the {role} token {wanted} is not in the vocabulary; use the tokenizer published with this model",
        folder.display()
    )]
    NoSpecialToken {
        /// The tokenizer's folder.
        folder: PathBuf,
        /// What the token is for.
        role: &'static str,
        /// Its text or id.
        wanted: String,
    },
    /// The vocabulary has ids that the model has no embedding for.
    #[error(
        "{}: the vocabulary reaches id {largest}, but the model embeds only {rows} tokens; use the tokenizer published with this model",
        folder.display()
    )]
    VocabularyTooLarge {
        /// The tokenizer's folder.
        folder: PathBuf,
        /// Largest id of the vocabulary.
        largest: u32,
        /// Rows of the model's embedding.
        rows: usize,
    },
    /// Text or ids could not be converted.
    #[error("{}: the tokenizer failed ({problem}); shorten or change the text", folder.display())]
    Failed {
        /// The tokenizer's folder.
        folder: PathBuf,
        /// The tokenizer's message.
        problem: String,
    },
}
