//! A checkpoint: the tensors of its files by name.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use crate::gpu::WeightFormat;

use super::adapter::{is_of_adapter, refuse_adapter};
use super::error::WeightsError;
use super::files::{DOWNLOAD_AGAIN, File, Found, INDEX, find, folder_of};
use super::formats::{self, Entry};
use super::names::{self, Kind, Name};
use super::quantised::{QuantisedTensor, SCALES, quantised_format};
use super::view::TensorView;
use super::weight::{Part, Weight, stored};

/// The tensors of one model in all of its files, which are mapped, with their headers checked.
///
/// Opening reads headers only; weights are paged in when they are converted or uploaded.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<File>,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor in a file.
#[derive(Debug)]
struct Stored {
    /// Index of the file.
    file: usize,
    /// Its name there.
    name: String,
    entry: Entry,
}

impl Checkpoint {
    /// Opens a folder in the Hugging Face layout (`model.safetensors` or `pytorch_model.bin`, or
    /// shards and their index), an index of safetensors files, a safetensors file, or a file that
    /// `torch.save` wrote. Nothing in such a file is executed.
    ///
    /// # Errors
    /// No weights there, shards or tensors missing, files truncated, damaged or of another kind;
    /// never a panic, whatever the files hold.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        refuse_adapter(path)?;
        let Found { files, weight_map } = find(path)?;
        let mut checkpoint = Self::empty(path);
        for file in files {
            checkpoint.add(File::map(&file)?, &weight_map)?;
        }
        for (tensor, shard) in weight_map {
            if !checkpoint.tensors.contains_key(&tensor) {
                return Err(WeightsError::NotInShard {
                    shard: folder_of(path).join(shard),
                    tensor,
                    index: INDEX,
                });
            }
        }
        checkpoint.not_empty()
    }

    /// A safetensors file that is part of the program; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        let mut checkpoint = Self::empty(Path::new(name));
        checkpoint.add(File::embedded(name, bytes), &BTreeMap::new())?;
        checkpoint.not_empty()
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.into(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        }
    }

    /// Reads a file's header and gathers its tensors. Where `weight_map` names a tensor's file,
    /// that file's copy counts if several have one of that name.
    fn add(
        &mut self,
        file: File,
        weight_map: &BTreeMap<String, String>,
    ) -> Result<(), WeightsError> {
        let shard = file.name();
        for (name, entry) in formats::read(&file)? {
            if is_of_adapter(&name) {
                return Err(WeightsError::NotMerged {
                    file: file.path,
                    tensor: name,
                });
            }
            let elsewhere = weight_map.get(&name).is_some_and(|holder| *holder != shard);
            if !elsewhere {
                let stored = Stored {
                    file: self.files.len(),
                    name: name.clone(),
                    entry,
                };
                self.tensors.entry(name).or_insert(stored);
            }
        }
        self.files.push(file);
        Ok(())
    }

    fn not_empty(self) -> Result<Self, WeightsError> {
        if self.tensors.is_empty() {
            return Err(WeightsError::BadFile {
                file: self.path,
                problem: "holds no tensors".into(),
                remedy: DOWNLOAD_AGAIN,
            });
        }
        Ok(self)
    }

    /// The same tensors under the names that `name_of` has for them, and those that it leaves out,
    /// each with the reason.
    #[must_use]
    pub fn renamed(self, name_of: impl Fn(&str) -> Name) -> (Self, Vec<(String, &'static str)>) {
        let mut left_out = Vec::new();
        let mut tensors = BTreeMap::new();
        for (name, stored) in self.tensors {
            match name_of(&name) {
                Name::Tensor(name) => {
                    tensors.entry(name).or_insert(stored);
                }
                Name::LeftOut(reason) => left_out.push((stored.name, reason)),
            }
        }
        (Self { tensors, ..self }, left_out)
    }

    /// Adds the tensors of `other` that are not here.
    pub fn complete(&mut self, other: Self) {
        for (name, mut stored) in other.tensors {
            stored.file += self.files.len();
            self.tensors.entry(name).or_insert(stored);
        }
        self.files.extend(other.files);
    }

    /// What it is, if its names are those of its files.
    ///
    /// # Errors
    /// Not a BLIP-2 checkpoint; what it is where that is known.
    pub fn kind(&self) -> Result<Kind, WeightsError> {
        Kind::of(&self.path, &self.names().collect::<Vec<_>>())
    }

    /// The formats that its matrices have on a device where they are stored as `asked`.
    pub fn formats(&self, asked: WeightFormat) -> Vec<WeightFormat> {
        let has = |dtype| self.tensors().any(|tensor| tensor.dtype == dtype);
        let q4 = asked == WeightFormat::Q4 || has(Dtype::U8);
        let q8 = asked.is_quantised() || has(Dtype::I8);
        let found = [
            (true, WeightFormat::F16),
            (q8, WeightFormat::Q8),
            (q4, WeightFormat::Q4),
        ];
        found
            .into_iter()
            .filter_map(|(used, format)| used.then_some(format))
            .collect()
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mapped files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Views of all tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.tensors.values().map(|stored| self.view(stored))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor (never so for an opened checkpoint).
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Bytes of all tensors as stored.
    pub fn total_bytes(&self) -> u64 {
        self.tensors().map(|view| view.stored_bytes() as u64).sum()
    }

    /// The tensor of exactly this name, if there is one; [`Checkpoint::weight`] knows other
    /// revisions' names too.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.get(name).map(|stored| self.view(stored))
    }

    /// The tensor of exactly this name.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightsError> {
        self.get(name).ok_or_else(|| WeightsError::Missing {
            checkpoint: self.path.clone(),
            tensor: name.into(),
            tried: "this name alone".into(),
        })
    }

    fn view<'a>(&'a self, stored: &'a Stored) -> TensorView<'a> {
        let file = &self.files[stored.file];
        TensorView {
            name: &stored.name,
            dtype: stored.entry.dtype,
            shape: &stored.entry.shape,
            strides: stored.entry.strides.as_deref(),
            // The range was checked against the file's length when its header was read.
            bytes: file.range(&stored.entry.bytes),
            file: &file.path,
        }
    }

    /// The name under which a canonical tensor is here, if it is.
    pub fn resolve(&self, canonical: &str) -> Option<&str> {
        let known = |name: &str| {
            let (name, _) = self.tensors.get_key_value(name)?;
            Some(name.as_str())
        };
        // Most files use canonical names: look that up before making the others.
        known(canonical).or_else(|| {
            names::aliases(canonical)
                .iter()
                .find_map(|name| known(name))
        })
    }

    /// The tensor of a canonical name, whichever revision wrote the file.
    pub fn find(&self, canonical: &str) -> Option<TensorView<'_>> {
        self.get(self.resolve(canonical)?)
    }

    /// The tensor of a canonical name in the given shape, whichever revision wrote the file.
    ///
    /// A `….self_attn.qkv.bias` of the ViT may be stored as `q_bias` and `v_bias`, the key's bias
    /// being zero.
    ///
    /// # Errors
    /// Missing (the names tried are listed), another shape, or an element type that is no weight's.
    pub fn weight(&self, canonical: &str, shape: &[usize]) -> Result<Weight<'_>, WeightsError> {
        let parts = if let Some(name) = self.resolve(canonical) {
            let view = self.tensor(name)?;
            vec![match quantised_format(view.dtype) {
                Some(format) => {
                    let scales = self.get(&format!("{name}{SCALES}"));
                    Part::Quantised(QuantisedTensor::new(format, view, scales, shape)?)
                }
                None => stored(view, shape)?,
            }]
        } else if let Some([q, v]) = self.split_qkv_bias(canonical) {
            let width = shape.iter().product::<usize>() / 3;
            vec![
                stored(q, &[width])?,
                Part::Zeros(width),
                stored(v, &[width])?,
            ]
        } else {
            return Err(WeightsError::Missing {
                checkpoint: self.path.clone(),
                tensor: canonical.into(),
                tried: names::names_tried(canonical),
            });
        };
        Ok(Weight::new(canonical, shape, parts))
    }

    /// The separately stored q and v biases behind a fused `qkv.bias`.
    fn split_qkv_bias(&self, canonical: &str) -> Option<[TensorView<'_>; 2]> {
        let [q, v] = names::split_qkv_names(canonical)?;
        Some([self.find(&q)?, self.find(&v)?])
    }

    /// Whether the language model has an output matrix of its own: of the two names the first, of
    /// `shape`, where it is not the second, the token embedding. `tied` is what the configuration
    /// says; as in transformers 5, a stored matrix that differs from the embedding counts whatever
    /// it says.
    ///
    /// # Errors
    /// As [`Checkpoint::weight`]; missing although the configuration says that it is not tied.
    pub(super) fn has_output_matrix(
        &self,
        [output, embedding]: [&str; 2],
        tied: bool,
        shape: &[usize],
    ) -> Result<bool, WeightsError> {
        if tied && self.resolve(output).is_none() {
            return Ok(false);
        }
        let output = self.weight(output, shape)?;
        let embedding = self.weight(embedding, shape)?;
        let mut both = output.views().zip(embedding.views());
        Ok(!both.all(|(a, b)| a.equals(&b)))
    }

    /// The tensors that none of the `canonical` names stands for, sorted; ignored buffers and
    /// `lm_head` left out. For `inspect`: a long list means weights of another model.
    pub fn unused<'n>(&self, canonical: impl IntoIterator<Item = &'n str>) -> Vec<&str> {
        let canonical = canonical.into_iter().chain([names::LM_HEAD]);
        let stored = canonical.flat_map(names::stored_names);
        let used: HashSet<&str> = stored.filter_map(|name| self.resolve(&name)).collect();
        let is_used = |name: &str| {
            let tensor = name.strip_suffix(SCALES).unwrap_or(name);
            used.contains(name) || used.contains(tensor)
        };
        self.names()
            .filter(|name| !is_used(name) && !names::is_ignored_buffer(name))
            .collect()
    }
}

#[cfg(test)]
mod tests;
