//! Images that are searched or searched for: their features in memory, their tokens where there is room.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::files::checksum::Checksum;
use crate::image::{DecodePolicy, decode, read_file};

use super::index::{Index, IndexWriter, Shapes, known_path};
use super::{ImageFeatures, Retriever};

/// Most values of image tokens kept in memory: 1 GiB. Those of further images come from the index, or the images are
/// encoded again when they are matched.
const MAX_KEPT_VALUES: usize = 1 << 28;

/// An image by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GalleryImage {
    /// What results and errors call it.
    pub name: String,
    /// Where its bytes are.
    pub source: GallerySource,
}

/// Where an image's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GallerySource {
    /// In a file.
    Path(PathBuf),
    /// In memory.
    Bytes(Vec<u8>),
}

/// What happens while a gallery is made.
#[derive(Debug)]
pub enum GalleryEvent<'a> {
    /// So many images came from the index.
    Known(usize),
    /// So many more were encoded.
    Encoded(usize),
    /// An image cannot be read and is passed over.
    Bad(&'a Error),
}

/// Encoded images.
#[derive(Debug)]
pub struct Gallery {
    policy: DecodePolicy,
    entries: Vec<Entry>,
    index: Option<Index>,
    kept_values: usize,
}

#[derive(Debug)]
struct Entry {
    image: GalleryImage,
    features: Vec<f32>,
    tokens: Tokens,
}

/// Where an image's tokens are.
#[derive(Debug)]
enum Tokens {
    Kept(Vec<f32>),
    Indexed(usize),
    /// Nowhere: the image is encoded again.
    Again,
}

impl Gallery {
    /// Encodes `images`, `batch_size` at a time, or takes them from the index file `index`, which is made where there is
    /// none and extended where it lacks some of them. Images that cannot be read are passed over.
    ///
    /// # Errors
    /// An index that is damaged or belongs to another model, or an image changed since; no room on the device or for the
    /// index, or a failing device.
    pub async fn encode(
        model: &mut Retriever,
        images: Vec<GalleryImage>,
        policy: DecodePolicy,
        index: Option<&Path>,
        batch_size: usize,
        on_event: &mut (dyn FnMut(GalleryEvent<'_>) + Send),
    ) -> Result<Self, Error> {
        let mut gallery = Self {
            policy,
            entries: Vec::new(),
            index: None,
            kept_values: 0,
        };
        let mut order: Vec<Option<usize>> = vec![None; images.len()];
        let mut missing: Vec<(usize, GalleryImage)> = images.into_iter().enumerate().collect();
        let mut writer = None;
        if let Some(path) = index {
            let mut hash = Checksum::default();
            hash.add(&model.image_fingerprint()?.to_le_bytes());
            hash.add(format!("{policy:?}").as_bytes());
            let (fingerprint, shapes) = (hash.value(), indexed_shapes(model));
            gallery.index = Index::open(path, fingerprint, shapes)?;
            missing = gallery.take_known(missing, &mut order)?;
            let known = gallery.entries.len();
            if known > 0 {
                on_event(GalleryEvent::Known(known));
            }
            let new_paths: Vec<String> = missing
                .iter()
                .filter_map(|(_, image)| image.path().map(known_path))
                .collect();
            if !new_paths.is_empty() {
                let old = gallery.index.iter().flat_map(|index| &index.images);
                let paths = old.map(|image| image.path.as_str());
                let paths = paths.chain(new_paths.iter().map(String::as_str));
                let mut new = IndexWriter::new(path, fingerprint, shapes, paths)?;
                gallery.copy_index(&mut new)?;
                // Not every system can rename over an open file.
                gallery.index = None;
                writer = Some((path, fingerprint, new));
            }
        }
        for batch in missing.chunks(batch_size.max(1)) {
            let sink = writer.as_mut().map(|(_, _, writer)| writer);
            gallery
                .encode_batch(model, batch, &mut order, sink, on_event)
                .await?;
        }
        if let Some((path, fingerprint, writer)) = writer {
            writer.finish()?;
            gallery.index = Index::open(path, fingerprint, indexed_shapes(model))?;
            gallery.find_rows();
        }
        // Images from the index and new ones, in the order they were given.
        let mut entries: Vec<Option<Entry>> = gallery.entries.into_iter().map(Some).collect();
        gallery.entries = order
            .into_iter()
            .flatten()
            .filter_map(|place| entries[place].take())
            .collect();
        Ok(gallery)
    }

    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What an image is called.
    #[must_use]
    pub fn name(&self, image: usize) -> &str {
        &self.entries[image].image.name
    }

    /// An image's queries in the common space, `[queries, embedding size]`.
    #[must_use]
    pub fn features(&self, image: usize) -> &[f32] {
        &self.entries[image].features
    }

    /// Takes the images that the index knows; returns the others.
    fn take_known(
        &mut self,
        images: Vec<(usize, GalleryImage)>,
        order: &mut [Option<usize>],
    ) -> Result<Vec<(usize, GalleryImage)>, Error> {
        let Some(index) = &mut self.index else {
            return Ok(images);
        };
        let rows: HashMap<String, usize> = index
            .images
            .iter()
            .enumerate()
            .map(|(row, image)| (image.path.clone(), row))
            .collect();
        let mut missing = Vec::new();
        for (place, image) in images {
            let row = image.path().and_then(|path| rows.get(&known_path(path)));
            let Some(&row) = row else {
                missing.push((place, image));
                continue;
            };
            index.check_unchanged(&index.images[row])?;
            let features = index.features(row)?;
            order[place] = Some(self.entries.len());
            self.entries.push(Entry {
                image,
                features,
                tokens: Tokens::Indexed(row),
            });
        }
        Ok(missing)
    }

    /// Copies what the index holds into a new one. Images whose files are gone are left out.
    fn copy_index(&mut self, writer: &mut IndexWriter) -> Result<(), Error> {
        let Some(index) = &mut self.index else {
            return Ok(());
        };
        for row in 0..index.images.len() {
            let image = index.images[row].clone();
            if Path::new(&image.path).exists() {
                let (tokens, features) = (index.tokens(row)?, index.features(row)?);
                writer.add_known(image, &tokens, &features)?;
            }
        }
        Ok(())
    }

    /// Finds the rows of all images in an index that was written anew.
    fn find_rows(&mut self) {
        let Some(index) = &self.index else { return };
        let rows: HashMap<&str, usize> = index
            .images
            .iter()
            .enumerate()
            .map(|(row, image)| (image.path.as_str(), row))
            .collect();
        for entry in &mut self.entries {
            let row = entry
                .image
                .path()
                .and_then(|path| rows.get(known_path(path).as_str()));
            if let Some(&row) = row {
                entry.tokens = Tokens::Indexed(row);
            }
        }
    }

    async fn encode_batch(
        &mut self,
        model: &mut Retriever,
        batch: &[(usize, GalleryImage)],
        order: &mut [Option<usize>],
        mut writer: Option<&mut IndexWriter>,
        on_event: &mut (dyn FnMut(GalleryEvent<'_>) + Send),
    ) -> Result<(), Error> {
        let mut readable = Vec::new();
        let mut pixels = Vec::new();
        for (place, image) in batch {
            let prepared = image.read().and_then(|bytes| {
                let decoded = decode(&bytes, &image.name, self.policy)?;
                Ok((bytes, model.pixels(&decoded)?))
            });
            match prepared {
                Ok((bytes, values)) => {
                    readable.push((*place, image, bytes));
                    pixels.push(values);
                }
                Err(error) => on_event(GalleryEvent::Bad(&error)),
            }
        }
        let encoded = model.encode_pixels(&pixels).await?;
        for ((place, image, bytes), encoded) in readable.into_iter().zip(encoded) {
            let ImageFeatures {
                tokens, features, ..
            } = encoded;
            let indexed = writer.as_mut().zip(image.path());
            let tokens = if let Some((writer, path)) = indexed {
                writer.add(path, &bytes, &tokens, &features)?;
                Tokens::Again // until the index is read
            } else if self.kept_values + tokens.len() <= MAX_KEPT_VALUES {
                self.kept_values += tokens.len();
                Tokens::Kept(tokens)
            } else {
                Tokens::Again
            };
            order[place] = Some(self.entries.len());
            self.entries.push(Entry {
                image: image.clone(),
                features,
                tokens,
            });
        }
        on_event(GalleryEvent::Encoded(pixels.len()));
        Ok(())
    }

    /// The image encoder's tokens of some images.
    ///
    /// # Errors
    /// A damaged index, an image that can no longer be read, or a failing device.
    pub(super) async fn tokens(
        &mut self,
        model: &mut Retriever,
        images: &[usize],
    ) -> Result<Vec<Vec<f32>>, Error> {
        let mut tokens = Vec::with_capacity(images.len());
        let mut again = Vec::new();
        for (place, &image) in images.iter().enumerate() {
            let entry = &self.entries[image];
            tokens.push(match (&entry.tokens, &mut self.index) {
                (Tokens::Kept(tokens), _) => tokens.clone(),
                (Tokens::Indexed(row), Some(index)) => index.tokens(*row)?,
                _ => {
                    let bytes = entry.image.read()?;
                    let decoded = decode(&bytes, &entry.image.name, self.policy)?;
                    again.push((place, model.pixels(&decoded)?));
                    Vec::new()
                }
            });
        }
        let pixels: Vec<&[f32]> = again.iter().map(|(_, pixels)| pixels.as_slice()).collect();
        let encoded = model.encode_pixels(&pixels).await?;
        for ((place, _), encoded) in again.iter().zip(encoded) {
            tokens[*place] = encoded.tokens;
        }
        Ok(tokens)
    }
}

/// Tokens and features: what an index holds.
fn indexed_shapes(model: &Retriever) -> Shapes {
    let shapes = model.image_shapes();
    [shapes.tokens, shapes.features]
}

impl GalleryImage {
    fn path(&self) -> Option<&Path> {
        match &self.source {
            GallerySource::Path(path) => Some(path),
            GallerySource::Bytes(_) => None,
        }
    }

    fn read(&self) -> Result<Vec<u8>, Error> {
        match &self.source {
            GallerySource::Bytes(bytes) => Ok(bytes.clone()),
            GallerySource::Path(path) => Ok(read_file(path, &self.name)?),
        }
    }
}
