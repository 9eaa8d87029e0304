//! The query rows of the images encoded last, on the device.

use std::sync::Arc;

use crate::gpu::{Activation, Gpu, GpuError};
use crate::model::Blip2Model;

use super::programs::image::Output;
use super::request::Pixels;

/// Query rows, `[places · queries, decoder width]`.
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

    /// Records that the rows of each image in `encoded` go to its place.
    pub(super) fn copy(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        encoded: &Output,
        places: &[usize],
    ) {
        let bytes = encoded.each_bytes();
        for (index, &place) in (0_u64..).zip(places) {
            let target = place as u64 * bytes;
            let (from, to) = (&encoded.buffer, &self.buffer);
            encoder.copy_buffer_to_buffer(from, index * bytes, to, target, bytes);
        }
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

    /// Places for `count` new images: those whose image was asked for longest ago, those with the images in `wanted`
    /// last.
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
