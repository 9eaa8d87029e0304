//! Images → image tokens → projected query rows: two recorded programs a batch size, and the store of their results.

use std::sync::Arc;

use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Program, ProgramBuilder, Tap};
use crate::model::Blip2Model;
use crate::platform::Instant;

use super::Timings;

/// The recorded image side for one batch size, with its input and output.
#[derive(Debug)]
pub(super) struct VisualEncoder {
    batch: usize,
    pixel_count: usize,
    pixels: wgpu::Buffer,
    /// Projected queries `[batch · queries, decoder width]`.
    visual: wgpu::Buffer,
    /// Bytes of one image's.
    visual_bytes: u64,
    vit: Program,
    /// Q-Former and projection.
    qformer: Program,
}

impl VisualEncoder {
    /// Records ViT, Q-Former and projection for `batch` images; `keep_stages` keeps every tapped stage.
    pub(super) fn record(
        gpu: &Gpu,
        model: &Blip2Model,
        batch: usize,
        pool: &ActivationPool,
        keep_stages: bool,
    ) -> Result<Self, GpuError> {
        let matrix = |label: &str, rows: usize, columns: usize| {
            let buffer = gpu.storage(label, (rows * columns * 4) as u64)?;
            Ok::<_, GpuError>((Activation::external(&buffer, rows, columns), buffer))
        };
        let builder = |name| {
            let program = ProgramBuilder::new(gpu, name);
            if keep_stages {
                program.with_taps()
            } else {
                program
            }
        };
        let pixel_count = 3 * model.vit.image_size() * model.vit.image_size();
        let (input, pixels) = matrix("pixels", batch, pixel_count)?;
        let mut vit = builder("vit");
        let tokens = model.vit.forward(&mut vit, &input)?;
        let (image_tokens, token_buffer) = matrix("image tokens", tokens.rows, tokens.columns)?;
        crate::kernels::copy(&mut vit, &tokens, &token_buffer);

        let mut qformer = builder("qformer");
        let projected = model.query_images(&mut qformer, &image_tokens, batch)?;
        let (_, visual) = matrix("visual", projected.rows, projected.columns)?;
        crate::kernels::copy(&mut qformer, &projected, &visual);
        Ok(Self {
            batch,
            pixel_count,
            pixels,
            visual,
            visual_bytes: (projected.rows / batch * projected.columns * 4) as u64,
            vit: vit.finish(pool)?,
            qformer: qformer.finish(pool)?,
        })
    }

    /// The stages kept, in order.
    pub(super) fn taps(&self) -> impl Iterator<Item = &Tap> {
        self.vit.taps().iter().chain(self.qformer.taps())
    }

    /// Encodes `batch` images of `[3, size, size]` values and puts each one's rows at its place in the store.
    ///
    /// # Errors
    /// An error of the device.
    pub(super) async fn run(
        &self,
        gpu: &Gpu,
        images: &[Pixels],
        store: &ImageStore,
        places: &[usize],
        timings: &mut Timings,
    ) -> Result<(), GpuError> {
        debug_assert!(images.len() == self.batch && places.len() == self.batch);
        let started = Instant::now();
        let vit_phase = gpu.phase("ViT");
        for (index, image) in images.iter().enumerate() {
            let offset = (index * self.pixel_count * 4) as u64;
            debug_assert_eq!(image.len(), self.pixel_count);
            gpu.write(&self.pixels, offset, image.as_slice());
        }
        self.vit.run(gpu);
        gpu.finish("running the image encoder").await?;
        drop(vit_phase);
        let _qformer_phase = gpu.phase("Q-Former");
        let after_vit = Instant::now();
        timings.vit += after_vit - started;
        let mut encoder = self.qformer.begin(gpu);
        let bytes = self.visual_bytes;
        for (index, &place) in (0_u64..).zip(places) {
            let target = place as u64 * bytes;
            encoder.copy_buffer_to_buffer(
                &self.visual,
                index * bytes,
                &store.buffer,
                target,
                bytes,
            );
        }
        gpu.submit([encoder.finish()]);
        gpu.finish("running the Q-Former").await?;
        timings.qformer += after_vit.elapsed();
        timings.images += self.batch;
        Ok(())
    }
}

/// An image, preprocessed: `[3, size, size]`. The same image is the same allocation.
pub type Pixels = Arc<Vec<f32>>;

/// Query rows of the images encoded last, `[places · queries, decoder width]`.
#[derive(Debug)]
pub(super) struct ImageStore {
    buffer: wgpu::Buffer,
    visual: Activation,
    queries: usize,
    /// What each place holds, and when it was last asked for.
    places: Vec<Option<(Pixels, u64)>>,
    clock: u64,
}

impl ImageStore {
    /// Room for `images` images.
    pub(super) fn new(gpu: &Gpu, model: &Blip2Model, images: usize) -> Result<Self, GpuError> {
        let queries = model.qformer.queries();
        let (rows, width) = (images * queries, model.language_model.hidden_size());
        let buffer = gpu.storage("visual rows", (rows * width * 4) as u64)?;
        Ok(Self {
            visual: Activation::external(&buffer, rows, width),
            buffer,
            queries,
            places: vec![None; images],
            clock: 0,
        })
    }

    /// All rows, as prefills read them.
    pub(super) fn visual(&self) -> &Activation {
        &self.visual
    }

    /// First row of `image`, if it is here.
    pub(super) fn row_of(&mut self, image: &Pixels) -> Option<usize> {
        self.clock += 1;
        let clock = self.clock;
        self.places
            .iter_mut()
            .enumerate()
            .find_map(|(place, held)| {
                let (pixels, used) = held.as_mut()?;
                Arc::ptr_eq(pixels, image).then(|| {
                    *used = clock;
                    place * self.queries
                })
            })
    }

    /// Places for `count` new images: those whose image was asked for longest ago, those with the images in `wanted` last.
    pub(super) fn vacant(&self, count: usize, wanted: &[Pixels]) -> Vec<usize> {
        debug_assert!(count <= self.places.len());
        let mut places: Vec<(bool, u64, usize)> = (0..self.places.len())
            .map(|place| match &self.places[place] {
                None => (false, 0, place),
                Some((held, used)) => {
                    let is_wanted = wanted.iter().any(|image| Arc::ptr_eq(image, held));
                    (is_wanted, *used, place)
                }
            })
            .collect();
        places.sort_unstable();
        places
            .into_iter()
            .take(count)
            .map(|(.., place)| place)
            .collect()
    }

    /// Notes that `place` now holds `image`.
    pub(super) fn hold(&mut self, place: usize, image: &Pixels) {
        self.clock += 1;
        self.places[place] = Some((Arc::clone(image), self.clock));
    }

    /// Forgets all images: pixels that nobody else holds are freed.
    pub(super) fn clear(&mut self) {
        self.places.fill(None);
    }
}
