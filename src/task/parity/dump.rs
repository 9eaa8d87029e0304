//! A reference dump: a safetensors file with what it was made of in its metadata; see weights-tools/README.md.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::files::bounded;
use crate::image::{DecodePolicy, Preprocessor, decode_file};
use crate::schedule::Pixels;

/// The most that is read of a dump: those of published widths have some megabytes.
const MAX_BYTES: u64 = 8 << 30;

/// The metadata's key in a dump of a generative checkpoint, and of a retrieval one.
pub(super) const GENERATION: &str = "blip2_reference";
pub(super) const RETRIEVAL: &str = "blip2_retrieval_reference";

/// The kind of model that a dump belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpModel {
    /// It writes texts: [`super::super::Blip2`].
    Generation,
    /// It compares images and texts: [`super::super::Retriever`].
    Retrieval,
}

/// What to open for a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DumpSummary {
    /// The kind of model.
    pub model: DumpModel,
    /// Side of its images in pixels, which the model is to be opened with.
    pub image_size: u32,
}

impl DumpSummary {
    /// Reads it from the dump `file`.
    ///
    /// # Errors
    /// [`Error::Dump`] if it is no dump.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let bytes = read_file(file)?;
        let model = match metadata(file, &bytes)?.contains_key(RETRIEVAL) {
            true => DumpModel::Retrieval,
            false => DumpModel::Generation,
        };
        let key = match model {
            DumpModel::Retrieval => RETRIEVAL,
            DumpModel::Generation => GENERATION,
        };
        let (_, pictures) = Dump::read::<Pictures>(file, &bytes, key)?;
        Ok(Self {
            model,
            image_size: pictures.image_size,
        })
    }
}

/// What every dump says of its images and stages.
#[derive(Debug, Deserialize)]
pub(super) struct Pictures {
    image_size: u32,
    #[serde(default)]
    images: Vec<Picture>,
    /// Stages of which only every n-th row is stored, counted from the last.
    #[serde(default)]
    row_steps: BTreeMap<String, usize>,
}

#[derive(Debug, Deserialize)]
struct Picture {
    file: String,
}

impl Pictures {
    /// The rows of stage `name` (`[rows, columns]`) that the dump stores.
    pub(super) fn thinned(&self, name: &str, values: &[f32], columns: usize) -> Vec<f32> {
        let step = self.row_steps.get(name).copied().unwrap_or(1).max(1);
        let rows = values.len() / columns.max(1);
        values
            .chunks(columns.max(1))
            .enumerate()
            .filter(|(row, _)| (rows - 1 - row).is_multiple_of(step))
            .flat_map(|(_, values)| values)
            .copied()
            .collect()
    }
}

/// A dump in memory.
pub(super) struct Dump<'a> {
    file: &'a Path,
    tensors: SafeTensors<'a>,
}

impl<'a> Dump<'a> {
    /// The tensors in `bytes`, read from `file`, and the metadata below `key`.
    pub(super) fn read<R: DeserializeOwned>(
        file: &'a Path,
        bytes: &'a [u8],
        key: &str,
    ) -> Result<(Self, R), Error> {
        let metadata = metadata(file, bytes)?;
        let text = metadata
            .get(key)
            .ok_or_else(|| dump_error(file, format!("it has no `{key}` metadata")))?;
        let reference = serde_json::from_str(text)
            .map_err(|error| dump_error(file, format!("its metadata: {error}")))?;
        let tensors =
            SafeTensors::deserialize(bytes).map_err(|error| dump_error(file, error.to_string()))?;
        Ok((Self { file, tensors }, reference))
    }

    pub(super) fn error(&self, problem: String) -> Error {
        dump_error(self.file, problem)
    }

    /// The dump's images, `[3, side, side]` each: as stored, or made from the pictures that lie beside it.
    pub(super) fn pixels(
        &self,
        pictures: &Pictures,
        preprocessor: &Preprocessor,
    ) -> Result<Vec<Pixels>, Error> {
        if self.tensors.tensor("pixel_values").is_err() && !pictures.images.is_empty() {
            let folder = self.file.parent().unwrap_or(Path::new(""));
            let pixels = pictures.images.iter().map(|picture| {
                let Some(name) = Path::new(&picture.file).file_name() else {
                    return Err(self.error(format!("{:?} is no picture's name", picture.file)));
                };
                let image = decode_file(&folder.join(name), DecodePolicy::hf());
                let pixels = image.and_then(|image| preprocessor.apply(&image));
                pixels.map(Pixels::new).map_err(|error| {
                    let problem =
                        "tensor \"pixel_values\" is missing, and so is a picture to make it from";
                    self.error(format!("{problem}: {error}"))
                })
            });
            return pixels.collect();
        }
        let (images, pixels) = self.batch("pixel_values")?;
        let side = pictures.image_size as usize;
        let sides = [images, 3, side, side];
        let expected = sides.iter().try_fold(1, |a: usize, &b| a.checked_mul(b));
        if expected != Some(pixels.len()) || pixels.is_empty() {
            return Err(self.error(format!(
                "tensor \"pixel_values\" does not hold {images} images of 3 × {side} × {side}"
            )));
        }
        let each = pixels.chunks(pixels.len() / images);
        Ok(each.map(|image| Pixels::new(image.to_vec())).collect())
    }

    /// A tensor of f32 and its first dimension.
    fn batch(&self, name: &str) -> Result<(usize, Vec<f32>), Error> {
        let missing = |_| self.error(format!("tensor {name:?} is missing"));
        let view = self.tensors.tensor(name).map_err(missing)?;
        let images = view.shape().first().copied().unwrap_or(0);
        if view.dtype() != safetensors::Dtype::F32 || images == 0 {
            return Err(self.error(format!("tensor {name:?} is not a batch of f32")));
        }
        let (values, _) = view.data().as_chunks::<4>();
        let values = values.iter().map(|&bytes| f32::from_le_bytes(bytes));
        Ok((images, values.collect()))
    }

    /// Whether it has a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// The names of its tensors, sorted.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names = self.tensors.names();
        names.sort_unstable();
        names
    }

    /// The values of tensor `name`, if the dump has it.
    pub(super) fn find(&self, name: &str) -> Result<Option<Vec<f32>>, Error> {
        if self.tensors.tensor(name).is_err() {
            return Ok(None);
        }
        self.batch(name).map(|(_, values)| Some(values))
    }

    /// The values of `image` among `images` in tensor `name`, if the dump has it.
    pub(super) fn of_image(
        &self,
        name: &str,
        image: usize,
        images: usize,
    ) -> Result<Option<Vec<f32>>, Error> {
        if self.tensors.tensor(name).is_err() {
            return Ok(None);
        }
        let (batch, values) = self.batch(name)?;
        if batch != images {
            return Err(self.error(format!(
                "tensor {name:?} is of {batch} images, the dump of {images}"
            )));
        }
        let each = values.len() / images;
        Ok(Some(values[image * each..][..each].to_vec()))
    }
}

fn dump_error(file: &Path, problem: String) -> Error {
    Error::Dump {
        file: file.into(),
        problem,
    }
}

pub(super) fn read_file(file: &Path) -> Result<Vec<u8>, Error> {
    bounded::read(file, MAX_BYTES).map_err(|error| dump_error(file, error.to_string()))
}

/// The header's `__metadata__`.
fn metadata(file: &Path, bytes: &[u8]) -> Result<std::collections::HashMap<String, String>, Error> {
    let (_, header) =
        SafeTensors::read_metadata(bytes).map_err(|error| dump_error(file, error.to_string()))?;
    Ok(header.metadata().clone().unwrap_or_default())
}

/// Reads the dump in `file` and its images.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(file: &Path) -> Result<(), Error> {
    DumpSummary::read(file)?;
    let bytes = read_file(file)?;
    let (dump, pictures) = Dump::read::<Pictures>(file, &bytes, GENERATION)?;
    let size = pictures.image_size.clamp(1, 8);
    let preprocessor = Preprocessor::blip2(size).map_err(|error| dump.error(error.to_string()))?;
    dump.pixels(&pictures, &preprocessor)?;
    dump.names()
        .into_iter()
        .try_for_each(|name| dump.of_image(name, 0, 2).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_that_are_no_images_are_refused() {
        let preprocessor = Preprocessor::blip2(8).unwrap();
        let read = |shape: [usize; 2], image_size: u32| {
            let data = vec![0; 4 * shape[0] * shape[1]];
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.into(), &data);
            let metadata = format!("{{\"image_size\": {image_size}}}");
            let metadata = [(GENERATION.to_owned(), metadata)].into();
            let tensors = [("pixel_values", view.unwrap())];
            let bytes = safetensors::serialize(tensors, Some(metadata)).unwrap();
            let file = Path::new("dump.safetensors");
            let (dump, pictures) = Dump::read::<Pictures>(file, &bytes, GENERATION)?;
            dump.pixels(&pictures, &preprocessor)
                .map(|pixels| pixels.len())
        };
        assert_eq!(read([2, 12], 2).unwrap(), 2);
        for (shape, image_size) in [([2, 0], 0), ([0, 12], 2), ([2, 13], 2), ([2, 12], u32::MAX)] {
            let error = read(shape, image_size).unwrap_err().to_string();
            assert!(error.contains("pixel_values"), "{error}");
        }
    }
}
