//! Checkpoints to read from, whatever their format: safetensors or PyTorch, one file, shards or a folder.

use std::path::{Path, PathBuf};

use crate::weights::{Checkpoint, PytorchFile, StridedView};

use super::ConvertError;

const PYTORCH: &str = "pytorch_model.bin";
const PYTORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// An opened checkpoint.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    files: Files,
    /// Before every name: PyTorch's data-parallel wrapper.
    prefix: &'static str,
}

#[derive(Debug)]
enum Files {
    Safetensors(Checkpoint),
    Pytorch(Vec<PytorchFile>),
}

impl Source {
    /// Opens a file or folder.
    ///
    /// # Errors
    /// No weights there, or damaged ones.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let has = |name: &str| path.join(name).is_file();
        let files = if path.is_dir()
            && !has("model.safetensors")
            && !has("model.safetensors.index.json")
        {
            match () {
                () if has(PYTORCH_INDEX) => Files::Pytorch(open_shards(path)?),
                () if has(PYTORCH) => Files::Pytorch(vec![PytorchFile::open(path.join(PYTORCH))?]),
                () => return Err(no_weights(path)),
            }
        } else if path.is_dir()
            || name.ends_with(".safetensors")
            || name.ends_with(".safetensors.index.json")
        {
            Files::Safetensors(Checkpoint::open(path)?)
        } else {
            Files::Pytorch(vec![PytorchFile::open(path)?])
        };
        let mut source = Self {
            path: path.into(),
            files,
            prefix: "",
        };
        if source.names().all(|name| name.starts_with("module.")) {
            source.prefix = "module.";
        }
        Ok(source)
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder its small files lie in.
    pub fn folder(&self) -> &Path {
        if self.path.is_dir() {
            return &self.path;
        }
        match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        }
    }

    /// All tensors.
    pub fn tensors(&self) -> impl Iterator<Item = StridedView<'_>> {
        let (safetensors, pytorch) = match &self.files {
            Files::Safetensors(checkpoint) => (Some(checkpoint), None),
            Files::Pytorch(files) => (None, Some(files)),
        };
        let safetensors = safetensors.into_iter().flat_map(Checkpoint::tensors);
        let pytorch = pytorch.into_iter().flatten().flat_map(PytorchFile::tensors);
        safetensors.map(StridedView::from).chain(pytorch)
    }

    /// All tensors' names, without the wrapper's prefix.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors().map(|view| self.bare(view.name))
    }

    /// A tensor's name without the wrapper's prefix.
    pub fn bare<'n>(&self, name: &'n str) -> &'n str {
        name.strip_prefix(self.prefix).unwrap_or(name)
    }
}

/// The shards of a folder in transformers' older format.
fn open_shards(folder: &Path) -> Result<Vec<PytorchFile>, ConvertError> {
    let index = folder.join(PYTORCH_INDEX);
    let json = super::files::read_object(&index)?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let mut shards: Vec<&str> = map
        .into_iter()
        .flat_map(|map| map.values())
        .filter_map(|shard| shard.as_str())
        .collect();
    shards.sort_unstable();
    shards.dedup();
    if shards.is_empty() {
        return Err(ConvertError::refused(
            &index,
            "names no shards",
            "download it again",
        ));
    }
    if let Some(shard) = shards
        .iter()
        .find(|shard| Path::new(shard).file_name() != Some(shard.as_ref()))
    {
        let problem = format!("names a shard {shard:?}, which is not a plain file name");
        return Err(ConvertError::refused(&index, problem, "download it again"));
    }
    let open = |shard: &&str| PytorchFile::open(folder.join(shard)).map_err(ConvertError::from);
    shards.iter().map(open).collect()
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
