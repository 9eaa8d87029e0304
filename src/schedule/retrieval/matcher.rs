//! The retrieval model on a device: images and texts to features, pairs to matching logits, in batches of a few shapes.
//!
//! Every product has more rows than the matrix–vector kernels take, so a row gets the same bits alone and in a batch.

use std::collections::HashMap;

use crate::Error;
use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program, ProgramBuilder};
use crate::kernels::copy;
use crate::model::{RetrievalModel, Texts};

use crate::schedule::memory::MemoryPlan;
use crate::schedule::programs::image::{ImageProgram, ImageSide, Keep};

use super::images::{EncodedImage, ImagePrograms, ImageShapes};
use super::search::{Hit, Search, SearchDirection};

/// Texts encoded together.
const MAX_TEXTS: usize = 32;

/// Pairs matched together, texts of one image among them (more would be padded to the longest of more), and images: their
/// tokens are large.
const MAX_PAIRS: usize = 64;
const MAX_IMAGE_TEXTS: usize = 16;
const MAX_PAIR_IMAGES: usize = 16;

/// Padded tokens of one batch of texts: a long text goes alone.
const MAX_TEXT_ROWS: usize = 2048;

/// Texts are padded to a multiple of this, so that few programs serve all lengths.
const LENGTH_STEP: usize = 16;

/// Recorded programs of a kind that are kept.
const MAX_PROGRAMS: usize = 24;

/// What the model makes of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedText {
    /// The Q-Former's output at `[CLS]`, `[hidden]`.
    pub cls: Vec<f32>,
    /// That in the common space, `[embedding size]`, of length one.
    pub features: Vec<f32>,
}

/// Runs the retrieval model.
#[derive(Debug)]
pub struct Matcher {
    gpu: Gpu,
    model: RetrievalModel,
    pool: ActivationPool,
    image_programs: ImagePrograms,
    text_programs: HashMap<[usize; 2], TextProgram>,
    pair_programs: HashMap<[usize; 3], PairProgram>,
    /// Image tokens of the pairs that are matched: `[images, tokens, width]`.
    pair_tokens: Option<wgpu::Buffer>,
    images_encoded: usize,
    pairs_matched: usize,
}

#[derive(Debug)]
struct TextProgram {
    texts: Texts,
    cls: wgpu::Buffer,
    features: wgpu::Buffer,
    program: Program,
}

#[derive(Debug)]
struct PairProgram {
    texts: Texts,
    /// `[texts, 2]`
    logits: wgpu::Buffer,
    program: Program,
}

impl Matcher {
    /// Nothing is recorded before the first call.
    #[must_use]
    pub fn new(gpu: Gpu, model: RetrievalModel) -> Self {
        Self {
            gpu,
            model,
            pool: ActivationPool::default(),
            image_programs: ImagePrograms::default(),
            text_programs: HashMap::new(),
            pair_programs: HashMap::new(),
            pair_tokens: None,
            images_encoded: 0,
            pairs_matched: 0,
        }
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &RetrievalModel {
        &self.model
    }

    /// Images that went through the image encoder so far.
    #[must_use]
    pub fn images_encoded(&self) -> usize {
        self.images_encoded
    }

    /// Pairs that went through the matching head so far.
    #[must_use]
    pub fn pairs_matched(&self) -> usize {
        self.pairs_matched
    }

    /// Bytes of the activations' shared buffers so far.
    #[must_use]
    pub fn activation_bytes(&self) -> u64 {
        self.pool.bytes()
    }

    /// Rows and columns of what an image becomes.
    #[must_use]
    pub fn image_shapes(&self) -> ImageShapes {
        ImageShapes::of(self.image_side())
    }

    /// Most images that the device's limits allow at once.
    #[must_use]
    pub fn max_images(&self) -> usize {
        self.image_side().max_images(&self.gpu)
    }

    /// Encodes `images` (`[3, size, size]` each) as one batch.
    ///
    /// # Errors
    /// An image of another size, no room on the device, or a failing device.
    pub async fn encode_images(
        &mut self,
        images: &[impl AsRef<[f32]>],
    ) -> Result<Vec<EncodedImage>, Error> {
        let side = ImageSide::Retrieval(&self.model);
        let encoded = self
            .image_programs
            .encode(&self.gpu, side, &self.pool, images)
            .await?;
        self.images_encoded += images.len();
        Ok(encoded)
    }

    /// Encodes texts given as token ids, `[CLS]` first.
    ///
    /// # Errors
    /// Ids that the model does not have, too many of them, no room on the device, or a failing device.
    pub async fn encode_texts(
        &mut self,
        texts: &[impl AsRef<[u32]>],
    ) -> Result<Vec<EncodedText>, Error> {
        let texts: Vec<&[u32]> = texts.iter().map(AsRef::as_ref).collect();
        self.check_texts(&texts)?;
        // Neighbours in length share a batch, so that little of it is padding.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&index| texts[index].len());
        let mut encoded: Vec<Option<EncodedText>> = vec![None; texts.len()];
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let (batch, length) = text_batch(rest, &texts);
            let (these, others) = rest.split_at(batch.min(rest.len()));
            rest = others;
            let ids: Vec<&[u32]> = these.iter().map(|&index| texts[index]).collect();
            let results = self.encode_text_batch(&ids, batch, length).await?;
            for (&index, text) in these.iter().zip(results) {
                encoded[index] = Some(text);
            }
        }
        Ok(encoded.into_iter().flatten().collect())
    }

    async fn encode_text_batch(
        &mut self,
        texts: &[&[u32]],
        batch: usize,
        length: usize,
    ) -> Result<Vec<EncodedText>, Error> {
        let shape = [batch, length];
        if !self.text_programs.contains_key(&shape) {
            if self.text_programs.len() >= MAX_PROGRAMS {
                self.text_programs.clear();
            }
            let program = TextProgram::record(&self.gpu, &self.model, shape, &self.pool)?;
            self.text_programs.insert(shape, program);
        }
        let recorded = &self.text_programs[&shape];
        let _phase = self.gpu.phase("texts");
        recorded.texts.write(&self.gpu, texts.iter().copied());
        recorded.program.run(&self.gpu);
        let width = self.model.qformer.hidden_size();
        let embedding = self.model.embedding_size();
        let cls: Vec<f32> = self.gpu.read(&recorded.cls, texts.len() * width).await?;
        let features: Vec<f32> = self
            .gpu
            .read(&recorded.features, texts.len() * embedding)
            .await?;
        Ok(cls
            .chunks(width)
            .zip(features.chunks(embedding))
            .map(|(cls, features)| EncodedText {
                cls: cls.to_vec(),
                features: features.to_vec(),
            })
            .collect())
    }

    /// Logits of "no match" and "match" for each pair of an image (index into `images`, whose tokens are
    /// [`EncodedImage::tokens`]) and a text's token ids.
    ///
    /// # Errors
    /// As [`Matcher::encode_texts`]; a pair whose image is not there.
    pub async fn match_pairs(
        &mut self,
        images: &[impl AsRef<[f32]>],
        pairs: &[(usize, &[u32])],
    ) -> Result<Vec<[f32; 2]>, Error> {
        let texts: Vec<&[u32]> = pairs.iter().map(|(_, text)| *text).collect();
        self.check_texts(&texts)?;
        let tokens = self.model.vit.tokens() * self.model.vit.hidden_size();
        let bad = |&&(image, _): &&(usize, &[u32])| {
            images.get(image).map(|image| image.as_ref().len()) != Some(tokens)
        };
        if let Some((image, _)) = pairs.iter().find(bad) {
            let problem = format!("image {image} of a pair is none of {} images", images.len());
            return Err(Error::Request { problem });
        }
        let most_images = max_pair_images(&self.gpu, &self.model);
        let mut logits = vec![[0.0; 2]; pairs.len()];
        for block in blocks(pairs, most_images, self.image_side().least_batch()) {
            let results = self.match_block(images, pairs, &block).await?;
            for (&index, result) in block.pairs.iter().flatten().zip(results) {
                logits[index] = result;
            }
        }
        self.pairs_matched += pairs.len();
        Ok(logits)
    }

    /// Runs a block and returns the logits of its pairs in order.
    async fn match_block(
        &mut self,
        images: &[impl AsRef<[f32]>],
        pairs: &[(usize, &[u32])],
        block: &Block,
    ) -> Result<Vec<[f32; 2]>, Error> {
        let [image_count, each, _] = block.shape;
        let image_values = self.model.vit.tokens() * self.model.vit.hidden_size();
        let buffer = match &self.pair_tokens {
            Some(buffer) => buffer.clone(),
            None => {
                let bytes = (max_pair_images(&self.gpu, &self.model) * image_values * 4) as u64;
                let buffer = self.gpu.storage("image tokens of pairs", bytes)?;
                self.pair_tokens.insert(buffer).clone()
            }
        };
        if !self.pair_programs.contains_key(&block.shape) {
            if self.pair_programs.len() >= MAX_PROGRAMS {
                self.pair_programs.clear();
            }
            let program =
                PairProgram::record(&self.gpu, &self.model, block.shape, &buffer, &self.pool)?;
            self.pair_programs.insert(block.shape, program);
        }
        let recorded = &self.pair_programs[&block.shape];
        let _phase = self.gpu.phase("pairs");
        let mut texts = Vec::with_capacity(image_count * each);
        for (index, group) in block.pairs.iter().enumerate() {
            let tokens = images[pairs[group[0]].0].as_ref();
            self.gpu
                .write(&buffer, (index * image_values * 4) as u64, tokens);
            // Missing ones are repeated: every place of a block holds a text.
            texts.extend((0..each).map(|place| pairs[*group.get(place).unwrap_or(&group[0])].1));
        }
        recorded.texts.write(&self.gpu, texts);
        recorded.program.run(&self.gpu);
        let logits: Vec<[f32; 2]> = self.gpu.read(&recorded.logits, image_count * each).await?;
        Ok(block
            .pairs
            .iter()
            .zip(logits.chunks(each))
            .flat_map(|(group, logits)| logits[..group.len()].to_vec())
            .collect())
    }

    /// The `k` best of `texts` for each of `images`, or of images for each text, by the greatest cosine of a query;
    /// rows are [`EncodedImage::features`] and [`EncodedText::features`].
    ///
    /// # Errors
    /// No room on the device, or a failing device.
    pub async fn search(
        &self,
        images: &[&[f32]],
        texts: &[&[f32]],
        direction: SearchDirection,
        k: usize,
    ) -> Result<Vec<Vec<Hit>>, Error> {
        let queries = self.model.qformer.queries();
        let search = Search::new(&self.gpu, queries, self.model.embedding_size());
        let found = search.run(&self.pool, images, texts, direction, k).await?;
        Ok(found)
    }

    pub(super) fn image_side(&self) -> ImageSide<'_> {
        ImageSide::Retrieval(&self.model)
    }

    /// Whether the texts are such that the device can be trusted with them.
    pub(super) fn check_texts(&self, texts: &[&[u32]]) -> Result<(), Error> {
        let (most, vocabulary) = (
            self.model.text.max_positions(),
            self.model.text.vocabulary(),
        );
        for text in texts {
            let unknown = text.iter().find(|&&id| id as usize >= vocabulary);
            let problem = match unknown {
                Some(id) => format!("token {id} of a vocabulary of {vocabulary}"),
                None if text.is_empty() || text.len() > most => {
                    format!(
                        "a text of {} tokens, the model takes 1 to {most}",
                        text.len()
                    )
                }
                None => continue,
            };
            return Err(Error::Request { problem });
        }
        Ok(())
    }
}

/// Images whose tokens one block of pairs can hold: keys and values of all are one binding.
fn max_pair_images(gpu: &Gpu, model: &RetrievalModel) -> usize {
    let vit = &model.vit;
    let widest = vit.hidden_size().max(2 * model.qformer.hidden_size());
    let limit = gpu.capabilities().max_binding_bytes;
    let most = limit / (vit.tokens() * widest * 4) as u64;
    usize::try_from(most)
        .unwrap_or(usize::MAX)
        .clamp(1, MAX_PAIR_IMAGES)
}

/// What a retrieval model is to do at a time, as far as memory depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrievalWorkload {
    /// Images at a time.
    pub batch: usize,
    /// Texts that each image is matched with.
    pub texts: usize,
    /// Tokens of the longest text.
    pub tokens: usize,
}

impl MemoryPlan {
    /// What `work` takes beside `weights` bytes of them: images, texts, and the matching of all with all.
    ///
    /// # Errors
    /// More than a dispatch of this device can do.
    pub fn of_retrieval(
        gpu: &Gpu,
        model: &RetrievalModel,
        weights: u64,
        work: &RetrievalWorkload,
    ) -> Result<Self, GpuError> {
        let gpu = gpu.rehearsal();
        let pool = ActivationPool::default();
        let side = ImageSide::Retrieval(model);
        let text = vec![0; work.tokens.max(1)];
        let texts = vec![text.as_slice(); work.texts.max(1)];
        let mut order: Vec<usize> = (0..texts.len()).collect();
        let mut shapes = std::collections::BTreeSet::new();
        while !order.is_empty() {
            let (batch, length) = text_batch(&order, &texts);
            order.truncate(order.len().saturating_sub(batch));
            if shapes.insert([batch, length]) {
                TextProgram::record(&gpu, model, [batch, length], &pool)?;
            }
        }
        let batch = work.batch.max(side.least_batch());
        ImageProgram::record(&gpu, side, batch, Keep::Nothing, &pool)?;
        let most_images = max_pair_images(&gpu, model);
        let image_bytes = (model.vit.tokens() * model.vit.hidden_size() * 4) as u64;
        let tokens = gpu.storage("image tokens of pairs", most_images as u64 * image_bytes)?;
        let pairs: Vec<(usize, &[u32])> = (0..work.batch)
            .flat_map(|image| texts.iter().map(move |text| (image, *text)))
            .collect();
        let blocks = blocks(&pairs, most_images, side.least_batch());
        let shapes: std::collections::BTreeSet<_> =
            blocks.iter().map(|block| block.shape).collect();
        for &shape in shapes.iter().rev() {
            PairProgram::record(&gpu, model, shape, &tokens, &pool)?;
        }
        let [activations, largest_buffer] = gpu.rehearsed_bytes();
        Ok(Self {
            weights,
            activations,
            cache: 0,
            largest_buffer,
        })
    }
}

/// How many of the texts in `order` (by length, the shortest first) the next batch has places for, and their padded
/// length: that of the longest.
fn text_batch(order: &[usize], texts: &[&[u32]]) -> (usize, usize) {
    let shape = |count: usize| {
        let longest = texts[order[count - 1]].len();
        (count.next_power_of_two(), padded(longest))
    };
    let most = order.len().min(MAX_TEXTS);
    let fits = |&(batch, length): &(usize, usize)| batch * length <= MAX_TEXT_ROWS;
    let best = (1..=most).rev().map(shape).find(fits);
    best.unwrap_or_else(|| shape(1))
}

/// The length that a text is padded to.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(LENGTH_STEP)
}

/// Pairs that are matched together: so many images, each with so many texts.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// Images, texts an image, padded length of a text.
    shape: [usize; 3],
    /// The pairs of each image, by index.
    pairs: Vec<Vec<usize>>,
}

/// Sorts pairs into blocks in which an image's texts share its keys and values; each image gets places for at least
/// `least` texts.
fn blocks(pairs: &[(usize, &[u32])], most_images: usize, least: usize) -> Vec<Block> {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|&index| (pairs[index].0, pairs[index].1.len()));
    // Groups of one image's texts, by the power of two that holds them and their padded length.
    let mut groups: std::collections::BTreeMap<[usize; 2], Vec<Vec<usize>>> = Default::default();
    for of_image in order.chunk_by(|&a, &b| pairs[a].0 == pairs[b].0) {
        for group in of_image.chunks(MAX_IMAGE_TEXTS) {
            let longest = group.iter().map(|&index| pairs[index].1.len()).max();
            let key = [
                group.len().next_power_of_two().max(least),
                padded(longest.unwrap_or(0)),
            ];
            groups.entry(key).or_default().push(group.to_vec());
        }
    }
    let mut blocks = Vec::new();
    for ([each, length], groups) in groups {
        let by_rows = MAX_TEXT_ROWS / (each * length);
        let images = (MAX_PAIRS / each).min(by_rows).clamp(1, most_images);
        for groups in groups.chunks(images) {
            blocks.push(Block {
                shape: [groups.len(), each, length],
                pairs: groups.to_vec(),
            });
        }
    }
    blocks
}

impl TextProgram {
    fn record(
        gpu: &Gpu,
        model: &RetrievalModel,
        [batch, length]: [usize; 2],
        pool: &ActivationPool,
    ) -> Result<Self, GpuError> {
        let texts = Texts::new(gpu, batch, length, model.qformer.queries())?;
        let mut program = ProgramBuilder::new(gpu, "texts");
        let (cls, features) = model.text_features(&mut program, &texts);
        let mut keep = |x: &Activation, label: &str| {
            let buffer = gpu.storage(label, (x.rows * x.columns * 4) as u64)?;
            copy(&mut program, x, &buffer);
            Ok::<_, GpuError>(buffer)
        };
        Ok(Self {
            cls: keep(&cls, "text output")?,
            features: keep(&features, "text features")?,
            texts,
            program: program.finish(pool)?,
        })
    }
}

impl PairProgram {
    fn record(
        gpu: &Gpu,
        model: &RetrievalModel,
        [images, each, length]: [usize; 3],
        image_tokens: &wgpu::Buffer,
        pool: &ActivationPool,
    ) -> Result<Self, GpuError> {
        let batch = images * each;
        let texts = Texts::new(gpu, batch, length, model.qformer.queries())?;
        let rows = images * model.vit.tokens();
        let tokens = Activation::external(image_tokens, rows, model.vit.hidden_size());
        let mut program = ProgramBuilder::new(gpu, "pairs");
        let logits = model.match_logits(&mut program, &tokens, images, &texts)?;
        let buffer = gpu.storage("matching logits", (batch * 2 * 4) as u64)?;
        copy(&mut program, &logits, &buffer);
        Ok(Self {
            texts,
            logits: buffer,
            program: program.finish(pool)?,
        })
    }
}
