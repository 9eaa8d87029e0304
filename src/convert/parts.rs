//! The files that a checkpoint is spread over, and their tensors under the names of transformers.
//!
//! LAVIS and mmpretrain save only what they trained: the vision transformer and the language model
//! come from files of their own.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::model::Blip2Config;
use crate::weights::{
    Checkpoint, Component, Family, Kind, Name, Role, Task, TensorSpec, TensorView, Weight,
    WeightsError, folder_of, names_of_language_model, names_of_vision,
};

use super::error::ConvertError;

/// Where what a checkpoint lacks comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointParts {
    /// The vision transformer, where the checkpoint has none: LAVIS's `eva_vit_g.pth`.
    pub vit: Option<PathBuf>,
    /// The language model's folder in the Hugging Face layout, where the checkpoint has none.
    /// Retrieval needs none, and nothing of it is read then.
    pub llm: Option<PathBuf>,
    /// The model's `config.json`, where the sizes are not those of a published model.
    pub config: Option<PathBuf>,
    /// A folder with the tokenizer's files, where they lie neither beside the checkpoint nor in
    /// `llm`.
    pub tokenizer: Option<PathBuf>,
}

/// A tensor of the model: the number of its role in a component.
type Place = (Component, Role, usize);

/// The class token, as wide as the vision transformer.
pub const CLASS_EMBEDDING: Place = (Component::Vision, Role::Vector, 0);
/// The positions of the image's tokens, `[1, tokens, width]`.
pub const POSITIONS: Place = (Component::Vision, Role::Vector, 1);
/// The learned queries, `[1, queries, width]`.
pub const QUERIES: Place = (Component::QueryTokens, Role::Vector, 0);
/// `[width of the language model, width of the Q-Former]`.
pub const LANGUAGE_PROJECTION: Place = (Component::LanguageProjection, Role::Layer, 0);
/// The language model's token embedding.
pub const WORDS: Place = (Component::LanguageModel, Role::Table, 0);
/// The Q-Former's token embedding, and its positions.
pub const QFORMER_WORDS: Place = (Component::TextEmbeddings, Role::Table, 0);
pub const QFORMER_POSITIONS: Place = (Component::TextEmbeddings, Role::Table, 1);

/// The class that transformers has for such a model.
pub fn architecture(task: Task) -> &'static str {
    match task {
        Task::Generation => "Blip2ForConditionalGeneration",
        Task::Retrieval => "Blip2ForImageTextRetrieval",
    }
}

/// The tensors of a model with transformers' default sizes: for their names, where the sizes are
/// not known yet.
pub fn usual_tensors(task: Task) -> Result<Vec<TensorSpec>, ConvertError> {
    let config = json!({"model_type": "blip-2", "architectures": [architecture(task)]});
    let config = Blip2Config::from_json(config.to_string().as_bytes(), Path::new("config.json"))?;
    Ok(config.tensors(None)?)
}

/// A checkpoint and what was given beside it.
#[derive(Debug)]
pub struct Gathered {
    /// What the checkpoint is.
    pub kind: Kind,
    /// The tensors of all files. Where two have one tensor, the checkpoint's own counts, as a
    /// fine-tuned one replaces what it was tuned from.
    pub checkpoint: Checkpoint,
    /// Tensors left out: name, reason.
    left_out: Vec<(String, &'static str)>,
    /// The vision transformer's file, if one was given.
    pub vit: Option<Lender>,
    /// The language model's folder, if one was given and is of use.
    pub llm: Option<Lender>,
    /// Whether the checkpoint was trained with T5.
    with_t5: bool,
}

/// A file or folder that lends a part of its tensors.
#[derive(Debug)]
pub struct Lender {
    /// What was given.
    pub path: PathBuf,
    files: Vec<PathBuf>,
}

impl Lender {
    /// Whether any of `tensors` is one of its own.
    pub fn lends(&self, tensors: &[(TensorSpec, Weight<'_>)]) -> bool {
        let mut views = tensors.iter().flat_map(|(_, weight)| weight.views());
        views.any(|view| self.files.iter().any(|file| file == view.file))
    }
}

/// Opens a checkpoint, its names without the prefix of PyTorch's data-parallel wrapper.
fn open(path: &Path) -> Result<Checkpoint, ConvertError> {
    const WRAPPER: &str = "module.";
    let checkpoint = Checkpoint::open(path).map_err(|error| match error {
        WeightsError::NoWeights { folder, .. } => no_weights(&folder),
        error => error.into(),
    })?;
    if !checkpoint.names().all(|name| name.starts_with(WRAPPER)) {
        return Ok(checkpoint);
    }
    let bare = |name: &str| Name::Tensor(name.strip_prefix(WRAPPER).unwrap_or(name).into());
    Ok(checkpoint.renamed(bare).0)
}

/// Why there is nothing to open in a folder.
fn no_weights(folder: &Path) -> ConvertError {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            [".pth", ".pt", ".bin", ".safetensors"]
                .iter()
                .any(|end| name.ends_with(end))
        })
        .collect();
    names.sort_unstable();
    let expected = "model.safetensors, pytorch_model.bin, or shards with their index";
    match names.first() {
        Some(name) => ConvertError::refused(
            folder,
            format!("has none of {expected}"),
            format!("name a file of it, such as {}", folder.join(name).display()),
        ),
        None => ConvertError::refused(
            folder,
            "has no weights",
            format!("give a .pth file, or a folder with {expected}"),
        ),
    }
}

/// What a checkpoint (a file, or a folder) is, told by its tensors' names.
///
/// # Errors
/// No weights there, damaged ones, or those of another model.
pub fn kind_of(input: &Path) -> Result<Kind, ConvertError> {
    Ok(open(input)?.kind()?)
}

impl Gathered {
    /// Gathers the tensors of `input` and of the files given beside it.
    ///
    /// # Errors
    /// Files that cannot be read or are of another model; a vision transformer or language model
    /// that none of them has.
    pub fn open(input: &Path, parts: &CheckpointParts) -> Result<Self, ConvertError> {
        let source = open(input)?;
        let kind = source.kind()?;
        let lent = |path: &Option<PathBuf>| path.as_deref().map(open).transpose();
        let vit = lent(&parts.vit)?;
        let llm = match kind.task {
            Task::Generation => lent(&parts.llm)?,
            Task::Retrieval => None,
        };
        let with_t5 = source.names().any(|name| name.starts_with("t5_proj."));
        let (checkpoint, left_out) = source.renamed(|name| kind.canonical(name));
        let mut gathered = Self {
            kind,
            checkpoint,
            left_out,
            vit: None,
            llm: None,
            with_t5,
        };
        gathered.vit = vit.map(|vit| {
            let names: Vec<&str> = vit.names().collect();
            let name_of = names_of_vision(vit.kind().ok(), &names);
            gathered.borrow(vit, name_of)
        });
        gathered.llm = llm.map(|llm| gathered.borrow(llm, names_of_language_model));
        gathered.check_parts()?;
        Ok(gathered)
    }

    /// A checkpoint whose names are canonical, and a language model's folder that is not looked
    /// into.
    #[cfg(test)]
    pub fn of(kind: Kind, checkpoint: Checkpoint, llm: Option<PathBuf>) -> Self {
        Self {
            kind,
            checkpoint,
            left_out: Vec::new(),
            vit: None,
            llm: llm.map(|path| Lender {
                path,
                files: Vec::new(),
            }),
            with_t5: false,
        }
    }

    /// Takes the tensors of `lender` that are not here yet, under the names that `name_of` has for
    /// them.
    fn borrow(&mut self, lender: Checkpoint, name_of: impl Fn(&str) -> Name) -> Lender {
        let lent = Lender {
            path: lender.path().into(),
            files: lender.files().map(Path::to_path_buf).collect(),
        };
        let (tensors, left_out) = lender.renamed(name_of);
        self.left_out.extend(left_out);
        self.checkpoint.complete(tensors);
        lent
    }

    /// The checkpoint itself.
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// The folder its small files lie in.
    pub fn folder(&self) -> PathBuf {
        folder_of(self.path())
    }

    /// The stored tensor that is number `index` of its `role` in `component` of a model with the
    /// tensors `specs`.
    pub fn find(
        &self,
        specs: &[TensorSpec],
        (component, role, index): Place,
    ) -> Option<TensorView<'_>> {
        let mut those = specs
            .iter()
            .filter(|spec| (spec.component, spec.role) == (component, role));
        self.checkpoint.find(&those.nth(index)?.name)
    }

    /// Refuses a checkpoint whose vision transformer or language model is in none of the files.
    fn check_parts(&self) -> Result<(), ConvertError> {
        let missing = |what, option: String| ConvertError::MissingPart {
            file: self.path().into(),
            what,
            family: self.kind.family.name(),
            option,
        };
        if self.kind.family == Family::HuggingFace {
            return Ok(());
        }
        let specs = usual_tensors(self.kind.task)?;
        if self.find(&specs, CLASS_EMBEDDING).is_none() {
            return Err(match &self.vit {
                Some(vit) => ConvertError::refused(
                    &vit.path,
                    "has no vision transformer in LAVIS's names",
                    "pass `vit`: LAVIS's eva_vit_g.pth",
                ),
                None => missing(
                    "the vision transformer",
                    "`vit`: LAVIS's eva_vit_g.pth".into(),
                ),
            });
        }
        let mut names = self.checkpoint.names();
        let has_llm = names.any(|name| name.starts_with("language_model."));
        if self.kind.task == Task::Generation && !has_llm {
            let option = format!("`llm`: {}", self.language_model_name(&specs));
            return Err(match &self.llm {
                Some(llm) => ConvertError::refused(
                    &llm.path,
                    "has no language model's tensors",
                    format!("pass {option}"),
                ),
                None => missing("the language model", option),
            });
        }
        Ok(())
    }

    /// The language model that a published checkpoint was trained with, for people; `specs` are the
    /// model's tensors.
    pub fn language_model_name(&self, specs: &[TensorSpec]) -> String {
        let width = self
            .find(specs, LANGUAGE_PROJECTION)
            .and_then(|view| view.shape.first().copied());
        let name = match (self.with_t5, width) {
            (false, Some(2560)) => "facebook/opt-2.7b",
            (false, Some(4096)) => "facebook/opt-6.7b",
            (true, Some(2048)) => "google/flan-t5-xl",
            (true, Some(4096)) => "google/flan-t5-xxl",
            _ => "the language model that the checkpoint was trained with",
        };
        format!("{name} in the Hugging Face layout")
    }

    /// Every tensor of the model, in the order an image passes them: those that the configuration
    /// tells, and an output matrix that only the files tell of.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or no numbers.
    pub fn tensors(
        &self,
        config: &Blip2Config,
    ) -> Result<Vec<(TensorSpec, Weight<'_>)>, ConvertError> {
        let mut tensors = Vec::new();
        let mut missing = Vec::new();
        for spec in config.tensors(None)? {
            match self.checkpoint.weight(&spec.name, &spec.shape) {
                Ok(weight) => tensors.push((spec, weight)),
                Err(WeightsError::Missing { .. }) => missing.push(spec),
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(first) = missing.first() {
            return Err(self.missing_error(first, missing.len()));
        }
        for spec in config.tensors(Some(&self.checkpoint))? {
            if !tensors.iter().any(|(known, _)| *known == spec) {
                let weight = self.checkpoint.weight(&spec.name, &spec.shape)?;
                tensors.push((spec, weight));
            }
        }
        Ok(tensors)
    }

    fn missing_error(&self, first: &TensorSpec, count: usize) -> ConvertError {
        let file = match (first.component, &self.llm, &self.vit) {
            (Component::LanguageModel, Some(llm), _) => &llm.path,
            (Component::Vision, _, Some(vit)) => &vit.path,
            _ => self.path(),
        };
        let problem = format!(
            "lacks {count} of the model's tensors, {} among them",
            first.name
        );
        ConvertError::refused(
            file,
            problem,
            "give files of one model, and its config.json as `config`",
        )
    }

    /// What is stored and no part of the result: with a reason where it is known to be of no use
    /// (name, reason), and the rest.
    pub fn unused(
        &self,
        config: &Blip2Config,
        tensors: &[(TensorSpec, Weight<'_>)],
    ) -> (Vec<(String, String)>, Vec<String>) {
        let names = || tensors.iter().map(|(spec, _)| spec.name.as_str());
        let used: HashSet<&str> = names()
            .filter_map(|name| self.checkpoint.resolve(name))
            .collect();
        let unused: HashSet<&str> = self.checkpoint.unused(names()).into_iter().collect();
        let blocks = config.vision.num_hidden_layers;
        let of_no_use = |name: &str| {
            if config.is_beyond_blocks(name) {
                Some(format!("beyond the {blocks} blocks that the model runs"))
            } else if name.ends_with("coder.embed_tokens.weight") {
                Some("a copy of the token embedding".into())
            } else {
                None
            }
        };
        let left_out = self.left_out.iter();
        let mut left_out: Vec<(String, String)> = left_out
            .map(|(name, reason)| (name.clone(), (*reason).into()))
            .collect();
        let mut unknown = Vec::new();
        for name in self.checkpoint.names().filter(|name| !used.contains(name)) {
            let Some(view) = self.checkpoint.get(name) else {
                continue;
            };
            match of_no_use(name) {
                Some(reason) => left_out.push((view.name.into(), reason)),
                None if unused.contains(name) => unknown.push(view.name.to_owned()),
                None => {}
            }
        }
        left_out.sort();
        unknown.sort();
        (left_out, unknown)
    }
}
