//! The query rows of the images encoded last, on the device.

use crate::gpu::{Activation, Gpu, GpuError};
use crate::model::Blip2Model;

use super::programs::image::Output;
use super::request::ImageKey;

/// Query rows, `[places · queries, decoder width]`: the image that was asked for longest ago gives way to a new one.
#[derive(Debug)]
pub(super) struct ImageStore {
    buffer: wgpu::Buffer,
    visual: Activation,
    queries: usize,
    /// What each place holds, and when it was last asked for.
    places: Vec<Option<(ImageKey, u64)>>,
    clock: u64,
}

impl ImageStore {
    /// Room for `images` images.
    pub(super) fn new(gpu: &Gpu, model: &Blip2Model, images: usize) -> Result<Self, GpuError> {
        let queries = model.qformer.queries();
        let rows = images * queries;
        let buffer = gpu.storage("visual rows", images as u64 * image_bytes(model))?;
        Ok(Self {
            visual: Activation::external(&buffer, rows, model.language_model.hidden_size()),
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

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> u64 {
        self.buffer.size()
    }

    /// Images that it has room for.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// Images that it holds.
    pub(super) fn len(&self) -> usize {
        self.places.iter().flatten().count()
    }

    /// First row of the image `key`, if it is here; it is then the one asked for last.
    pub(super) fn row_of(&mut self, key: ImageKey) -> Option<usize> {
        self.clock += 1;
        let mut places = self.places.iter_mut().enumerate();
        places.find_map(|(place, held)| {
            let (held, used) = held.as_mut()?;
            (*held == key).then(|| {
                *used = self.clock;
                place * self.queries
            })
        })
    }

    /// Empties `count` places and gives their numbers: those whose image was asked for longest ago, those with the images
    /// in `wanted` last.
    pub(super) fn vacate(&mut self, count: usize, wanted: &[ImageKey]) -> Vec<usize> {
        debug_assert!(count <= self.places.len());
        let mut order: Vec<usize> = (0..self.places.len()).collect();
        order.sort_by_key(|&place| {
            self.places[place].map_or((false, 0), |(key, used)| (wanted.contains(&key), used))
        });
        order.truncate(count);
        for &place in &order {
            self.places[place] = None;
        }
        order
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

    /// Notes that `place` now holds the image `key`.
    pub(super) fn hold(&mut self, place: usize, key: ImageKey) {
        self.clock += 1;
        self.places[place] = Some((key, self.clock));
    }
}

/// Bytes of an image's query rows.
pub(super) fn image_bytes(model: &Blip2Model) -> u64 {
    (model.qformer.queries() * model.language_model.hidden_size() * 4) as u64
}
