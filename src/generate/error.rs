use std::path::PathBuf;

/// What can go wrong between the options and the finished text.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// An option has a value that cannot be used, alone or beside another.
    #[error("generation option `{option}`: {problem}; {remedy}")]
    Option {
        /// Name of the option, as in `generation_config.json`.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// `generation_config.json` is no JSON object.
    #[error(
        "{}: not a JSON object ({problem}); replace the file with the one published beside the model, or remove it to use the defaults",
        file.display()
    )]
    File {
        /// The file read.
        file: PathBuf,
        /// The reader's message.
        problem: String,
    },
    /// A field of `generation_config.json` has the wrong type or range.
    #[error(
        "{}: field `{field}`: {problem}; correct or remove the field",
        file.display()
    )]
    Field {
        /// The file read.
        file: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A score from the model is NaN.
    #[error(
        "the model gave a score that is not a number for token {token}; its weights are damaged or overflow on this device: verify the files"
    )]
    NotANumber {
        /// Token the score belongs to.
        token: u32,
    },
    /// Every token of a row is banned (score −∞), so none can be chosen.
    #[error(
        "no token is left to choose: the score processors ban them all; lower `no_repeat_ngram_size` or `min_new_tokens`, or ban fewer tokens"
    )]
    NoToken,
    /// The number of rows handed over is not the number of running beams.
    #[error(
        "{rows} rows of candidates for {beams} beams; hand over one row a beam (or one alone at the first step)"
    )]
    Rows {
        /// Rows given.
        rows: usize,
        /// Running beams.
        beams: usize,
    },
    /// `step` was called on a search that is done.
    #[error("the beam search is done; call `finish`")]
    Done,
}
