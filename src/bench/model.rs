//! A whole model: load, first token, decode, images and captions a second, as shares of the adapter's ceilings.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::Error;
use crate::gpu::Gpu;
use crate::image::Rgb8Image;
use crate::schedule::BatchWork;
use crate::task::{Ask, Blip2, CaptionOptions, ImageSource, Item, ItemEvent, RunOptions, Timings};

use super::kernels::{Ceiling, Ceilings, Measurement, median};
use super::{Inputs, ceilings};

/// What to measure of a model.
#[derive(Debug, Clone)]
pub struct ModelBench {
    /// The image; all of a batch are copies of it, each of which is prepared and encoded.
    pub image: Rgb8Image,
    /// Tokens of each caption, not fewer.
    pub max_new_tokens: usize,
    /// Images at once.
    pub batches: Vec<usize>,
    /// Rounds in which the batches and the ceilings take turns; their medians count.
    pub rounds: usize,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelReport {
    /// The adapter's ceilings, measured in turns with the model.
    pub ceilings: Ceilings,
    /// One for each batch.
    pub batches: Vec<BatchRow>,
}

/// How fast a batch of images is captioned. All seconds are the host's, waiting for the device included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchRow {
    /// Images at once.
    pub batch: usize,
    /// Images a second through ViT and Q-Former.
    pub images_per_second: f64,
    /// FLOPs of one image in them: products and the ViT's attention.
    pub encoder_flops: f64,
    /// FLOPs a second there, over the fastest multiply ceiling.
    pub encoder_share: Option<f64>,
    /// ViT, Q-Former and prefill: when the first token of every text is known, its image once prepared.
    pub first_token_seconds: f64,
    /// A decode step, of all texts; `None` where there is none.
    pub step_seconds: Option<f64>,
    /// Tokens a second of all texts, the first ones left out.
    pub tokens_per_second: Option<f64>,
    /// Bytes of weights that a step reads.
    pub step_bytes: f64,
    /// Bytes of weights a second in decode, over the read ceiling.
    pub decode_share: Option<f64>,
    /// Captions a second from decoded images to texts.
    pub captions_per_second: f64,
}

/// How fast a checkpoint was loaded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadRow {
    /// From opening its files to weights on the device.
    pub seconds: f64,
    /// Bytes of its tensors, if they were read from files.
    pub bytes: Option<u64>,
    /// Bytes a second of merely reading the files once more, from the page cache then.
    pub read_rate: Option<f64>,
}

impl LoadRow {
    /// Bytes a second.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        Some(self.bytes? as f64 / self.seconds)
    }

    /// That over the rate of merely reading.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        Some(self.rate()? / self.read_rate?)
    }
}

/// A picture to caption where none is given: 640 × 480, colours that change with every pixel. (Always there: the sizes
/// fit.)
#[must_use]
pub fn picture() -> Option<Rgb8Image> {
    let (width, height) = (640_u32, 480_u32);
    let pixel = |index: u32| {
        let (x, y) = (index % width, index / width);
        [
            (x * 255 / width) as u8,
            (y * 255 / height) as u8,
            (x ^ y) as u8,
        ]
    };
    let pixels = (0..width * height).flat_map(pixel).collect();
    Rgb8Image::new(width, height, pixels)
}

/// A copy of `image` with other colours in a corner: it is encoded anew.
fn another(image: &Rgb8Image) -> Rgb8Image {
    static COPIES: AtomicU32 = AtomicU32::new(0);
    let number = COPIES.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    let mut data = image.data().to_vec();
    for (value, byte) in data.iter_mut().zip(number) {
        *value = byte;
    }
    Rgb8Image::new(image.width(), image.height(), data).unwrap_or_else(|| image.clone())
}

/// Bytes a second of reading `files` from start to end.
///
/// # Errors
/// [`std::io::Error`] of a file that cannot be read.
pub fn reading_rate<'a>(files: impl Iterator<Item = &'a Path>) -> std::io::Result<f64> {
    let mut buffer = vec![0; 8 << 20];
    let mut bytes = 0;
    let started = Instant::now();
    for file in files {
        let mut file = std::fs::File::open(file)?;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            bytes += read;
        }
    }
    Ok(bytes as f64 / started.elapsed().as_secs_f64().max(1e-9))
}

impl ModelBench {
    /// Measures `model`.
    ///
    /// # Errors
    /// A batch that the device has no room for, more tokens than the model takes, or a failing device.
    pub async fn run(&self, model: &mut Blip2) -> Result<ModelReport, Error> {
        let gpu = model.gpu().clone();
        let mut limits = self.prepare_ceilings(&gpu).await?;
        for &batch in &self.batches {
            self.caption(model, batch).await?; // records the programs and chooses the kernels
        }
        let mut measured = vec![Vec::new(); self.batches.len()];
        for _ in 0..self.rounds.max(1) {
            for limit in &mut limits {
                limit.round(&gpu).await?;
            }
            for (&batch, measured) in self.batches.iter().zip(&mut measured) {
                measured.push(self.caption(model, batch).await?);
            }
        }
        let ceilings = Ceilings::of(&limits);
        let rows = self.batches.iter().zip(&measured);
        let batches = rows
            .map(|(&batch, rounds)| {
                let work = model.batch_work(batch)?;
                Ok(BatchRow::new(batch, rounds, work, &ceilings))
            })
            .collect::<Result<_, Error>>()?;
        Ok(ModelReport { ceilings, batches })
    }

    async fn prepare_ceilings(&self, gpu: &Gpu) -> Result<Vec<Measurement>, Error> {
        let mut inputs = Inputs::new(gpu);
        let mut limits = Vec::new();
        for case in ceilings(gpu) {
            limits.push(Measurement::new(case, &mut inputs).await?);
        }
        Ok(limits)
    }

    /// Captions `batch` copies of the image at once.
    async fn caption(&self, model: &mut Blip2, batch: usize) -> Result<(Duration, Timings), Error> {
        let mut options = CaptionOptions::default();
        options.generation.max_new_tokens = Some(self.max_new_tokens);
        options.generation.min_new_tokens = Some(self.max_new_tokens);
        options.generation.num_beams = Some(1);
        options.generation.do_sample = Some(false);
        let options = Arc::new(options);
        let items: Vec<Item> = (0..batch)
            .map(|_| Item {
                image: ImageSource::Decoded(Arc::new(another(&self.image))),
                ask: Ask::Caption(Arc::clone(&options)),
            })
            .collect();
        let started = Instant::now();
        let run = RunOptions {
            batch_size: Some(batch),
            pieces: false,
        };
        let mut events = model.run(items, run);
        while let Some(event) = events.next().await {
            if let ItemEvent::Failed { error, .. } = event? {
                return Err(Arc::try_unwrap(error).unwrap_or_else(Error::Shared));
            }
        }
        drop(events);
        Ok((started.elapsed(), model.timings()))
    }
}

impl BatchRow {
    fn new(
        batch: usize,
        rounds: &[(Duration, Timings)],
        work: BatchWork,
        ceilings: &Ceilings,
    ) -> Self {
        let of = |value: &dyn Fn(&Timings) -> f64| {
            let values: Vec<f64> = rounds.iter().map(|(_, timings)| value(timings)).collect();
            median(&values)
        };
        let wall: Vec<f64> = rounds.iter().map(|(wall, _)| wall.as_secs_f64()).collect();
        let encoder = of(&|it| (it.vit + it.qformer).as_secs_f64());
        let step = of(&|it| it.decode.as_secs_f64() / it.steps as f64); // NaN without steps
        let tokens = of(&|it| it.tokens.saturating_sub(batch) as f64 / it.decode.as_secs_f64());
        let images_per_second = batch as f64 / encoder;
        let multiply = ceilings.fastest_multiply();
        let read = ceilings.rate(Ceiling::Read);
        Self {
            batch,
            images_per_second,
            encoder_flops: work.encoder_flops,
            encoder_share: multiply.map(|(_, rate)| work.encoder_flops * images_per_second / rate),
            first_token_seconds: of(&|it| (it.vit + it.qformer + it.prefill).as_secs_f64()),
            step_seconds: Some(step).filter(|step| step.is_finite()),
            tokens_per_second: Some(tokens).filter(|_| step.is_finite()),
            step_bytes: work.step_bytes,
            decode_share: read
                .filter(|_| step.is_finite())
                .map(|rate| work.step_bytes / step / rate),
            captions_per_second: batch as f64 / median(&wall),
        }
    }
}
