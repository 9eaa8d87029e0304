//! The contrastive search: the best texts of every image, or images of every text, among any number of them, in tiles
//! of a fixed size. The whole score matrix is never stored.
//!
//! ```text
//! for each tile of what is searched for:  top = nothing
//!     for each tile of what is searched:  dots = images · textsᵀ;  scores = max over queries;  top = best of both
//! ```
//! Measured with `large_search` below (llvmpipe, Mesa 22.3.6, 2.6 GHz cores, by CPU time on a busy machine), 32 queries of
//! width 256: 2048 images × 2048 texts take 7.5 CPU seconds (18 GFLOP a CPU second) and 77 MiB on the device, either
//! way; 10,000 × 50,000 would take 910 (7.6 minutes of two cores) and the same 77 MiB.

use half::f16;

use crate::gpu::{Activation, ActivationPool, Gpu, GpuError, Matrix, Program, ProgramBuilder};
use crate::kernels::{
    Activate, Candidate, Linear, MATVEC_ROWS, MAX_KEPT, NO_CANDIDATE, linear, linear_into,
    max_over_queries, merge_top_k,
};

/// What is searched for, and among what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchDirection {
    /// Texts for each image.
    ImageToText,
    /// Images for each text.
    TextToImage,
}

/// One find.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Number of the text (or image) that was found.
    pub index: usize,
    /// The greatest cosine of a query and the text.
    pub itc: f32,
}

/// Values of one tile's dot products: 64 MiB.
const MAX_DOTS: usize = 16 << 20;

/// Most texts of a tile.
const MAX_TEXTS: usize = 2048;

/// Tiles submitted before the host waits: bounds what is queued.
const TILES_IN_FLIGHT: usize = 4;

/// Features are multiplied by this before they are split into halves, so that the lower half is no subnormal number,
/// which a device may take for zero. A power of two: it changes no digit.
const HALF_SCALE: f32 = 1024.0;

/// A search on one device, for features of one model.
#[derive(Debug)]
pub struct Search<'gpu> {
    gpu: &'gpu Gpu,
    queries: usize,
    width: usize,
}

/// The recorded step of a search: one tile of images with one tile of texts.
#[derive(Debug)]
struct Tile {
    /// `[images · queries, width]`
    image_rows: wgpu::Buffer,
    /// Upper and lower halves of the texts' features, f16 `[texts, width]` each.
    text_halves: [Matrix; 2],
    /// `[base, count]`
    counts: wgpu::Buffer,
    /// `[rows, k]`
    top: wgpu::Buffer,
    program: Program,
}

impl<'gpu> Search<'gpu> {
    /// Images have `queries` rows of `width` values, a multiple of 8; texts have one.
    #[must_use]
    pub fn new(gpu: &'gpu Gpu, queries: usize, width: usize) -> Self {
        Self {
            gpu,
            queries,
            width,
        }
    }

    /// For each image (`[queries, width]`) its `k` best texts (`[width]`), or the other way round: the best first, the
    /// first given of equals first. At most all there are, and at most [`MAX_KEPT`].
    ///
    /// # Errors
    /// No room on the device, or a failing device.
    pub async fn run(
        &self,
        pool: &ActivationPool,
        images: &[&[f32]],
        texts: &[&[f32]],
        direction: SearchDirection,
        k: usize,
    ) -> Result<Vec<Vec<Hit>>, GpuError> {
        let to_texts = direction == SearchDirection::ImageToText;
        let (sought_for, candidates) = if to_texts {
            (images, texts)
        } else {
            (texts, images)
        };
        let k = k.min(candidates.len()).min(MAX_KEPT);
        if k == 0 || sought_for.is_empty() {
            return Ok(vec![Vec::new(); sought_for.len()]);
        }
        let (image_count, text_count) = self.tile_shape(images.len(), texts.len());
        let tile = self.record(pool, image_count, text_count, direction, k)?;
        let (rows, columns) = if to_texts {
            (image_count, text_count)
        } else {
            (text_count, image_count)
        };
        let _phase = self.gpu.phase("search");
        let mut hits = Vec::with_capacity(sought_for.len());
        for sought_for in sought_for.chunks(rows) {
            self.gpu.write(&tile.top, 0, &vec![NO_CANDIDATE; rows * k]);
            self.write(&tile, sought_for, to_texts);
            for (step, candidates) in candidates.chunks(columns).enumerate() {
                self.write(&tile, candidates, !to_texts);
                let counts = [(step * columns) as u32, candidates.len() as u32];
                self.gpu.write(&tile.counts, 0, &counts);
                tile.program.run(self.gpu);
                if (step + 1).is_multiple_of(TILES_IN_FLIGHT) {
                    self.gpu.finish("searching").await?;
                }
            }
            let top: Vec<Candidate> = self.gpu.read(&tile.top, sought_for.len() * k).await?;
            hits.extend(top.chunks(k).map(hits_of));
        }
        Ok(hits)
    }

    /// Bytes on the device that a search over so many images and texts takes at any time.
    ///
    /// # Errors
    /// No room on the device.
    pub fn device_bytes(
        &self,
        images: usize,
        texts: usize,
        direction: SearchDirection,
        k: usize,
    ) -> Result<u64, GpuError> {
        let (images, texts) = self.tile_shape(images, texts);
        let pool = ActivationPool::default();
        let tile = self.record(&pool, images, texts, direction, k)?;
        let halves = tile.text_halves.iter().map(Matrix::bytes).sum::<u64>();
        let own = tile.image_rows.size() + halves + tile.counts.size() + tile.top.size();
        Ok(own + tile.program.activation_bytes())
    }

    /// Images and texts of a tile: all there are, or as many as the bounds allow.
    fn tile_shape(&self, images: usize, texts: usize) -> (usize, usize) {
        let texts = texts.clamp(1, MAX_TEXTS);
        let most = MAX_DOTS / (MAX_TEXTS * self.queries);
        // More rows than a matrix–vector kernel takes: those sum in another order.
        let least = MATVEC_ROWS / self.queries + 1;
        (images.clamp(1, most.max(1)).max(least), texts)
    }

    fn record(
        &self,
        pool: &ActivationPool,
        images: usize,
        texts: usize,
        direction: SearchDirection,
        k: usize,
    ) -> Result<Tile, GpuError> {
        let (gpu, width) = (self.gpu, self.width);
        let rows = images * self.queries;
        let image_rows = gpu.storage("image features", (rows * width * 4) as u64)?;
        let x = Activation::external(&image_rows, rows, width);
        let halves = || {
            Ok::<_, GpuError>(Linear {
                weight: gpu.matrix("text features", texts, width)?,
                bias: None,
            })
        };
        let (upper, lower) = (halves()?, halves()?);
        let counts = gpu.storage("tile", 8)?;
        let transposed = direction == SearchDirection::TextToImage;
        let top_rows = if transposed { texts } else { images };
        let top = gpu.storage("top", (top_rows * k * size_of::<Candidate>()) as u64)?;

        let mut program = ProgramBuilder::new(gpu, "search");
        let dots = linear(&mut program, &x, &upper, Activate::Identity);
        linear_into(&mut program, &x, &lower, &dots);
        let scale = 1.0 / HALF_SCALE;
        let scores = max_over_queries(&mut program, &dots, self.queries, scale, transposed);
        merge_top_k(&mut program, &scores, &counts, k, &top);
        Ok(Tile {
            image_rows,
            text_halves: [upper.weight, lower.weight],
            counts,
            top,
            program: program.finish(pool)?,
        })
    }

    /// Puts `items` into the tile: images (`are_images`) or texts.
    fn write(&self, tile: &Tile, items: &[&[f32]], are_images: bool) {
        if are_images {
            let row_bytes = (self.queries * self.width * 4) as u64;
            for (offset, image) in (0..).step_by(row_bytes as usize).zip(items) {
                self.gpu.write(&tile.image_rows, offset, image);
            }
            return;
        }
        let (upper, lower): (Vec<f16>, Vec<f16>) = items
            .iter()
            .flat_map(|text| text.iter().map(|&value| split(value)))
            .unzip();
        for (matrix, halves) in tile.text_halves.iter().zip([upper, lower]) {
            for part in &matrix.parts {
                let first = part.first_row * self.width;
                let last = (first + part.rows * self.width).min(halves.len());
                if first < last {
                    self.gpu.write(&part.buffer, 0, &halves[first..last]);
                }
            }
        }
    }
}

/// `value · HALF_SCALE` as the sum of two f16: 22 bits of it.
fn split(value: f32) -> (f16, f16) {
    let scaled = value * HALF_SCALE;
    let upper = f16::from_f32(scaled);
    (upper, f16::from_f32(scaled - upper.to_f32()))
}

fn hits_of(top: &[Candidate]) -> Vec<Hit> {
    top.iter()
        .map(|candidate| Hit {
            index: candidate.index as usize,
            itc: candidate.score,
        })
        .collect()
}

/// The score that a search gives a pair, computed on the host: the greatest dot product of a row of `image`
/// (`[queries, width]`) and `text` (`[width]`).
#[must_use]
pub fn itc_score(image: &[f32], text: &[f32]) -> f32 {
    let dot = |row: &[f32]| -> f64 {
        let products = row.iter().zip(text);
        products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    image.chunks(text.len()).map(dot).fold(f64::MIN, f64::max) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{Random, gpus};

    fn features(random: &mut Random, rows: usize, width: usize) -> Vec<f32> {
        let values = random.vec(rows * width);
        let normed = |row: &[f32]| {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter().map(|v| v / length).collect::<Vec<_>>()
        };
        values.chunks(width).flat_map(normed).collect()
    }

    fn check(gpu: &Gpu, images: usize, texts: usize, queries: usize, width: usize, k: usize) {
        let mut random = Random((images * texts) as u64);
        let image_features: Vec<_> = (0..images)
            .map(|_| features(&mut random, queries, width))
            .collect();
        let text_features: Vec<_> = (0..texts)
            .map(|_| features(&mut random, 1, width))
            .collect();
        let image_rows: Vec<&[f32]> = image_features.iter().map(Vec::as_slice).collect();
        let text_rows: Vec<&[f32]> = text_features.iter().map(Vec::as_slice).collect();
        let score = |image: usize, text: usize| itc_score(image_rows[image], text_rows[text]);
        for direction in [SearchDirection::ImageToText, SearchDirection::TextToImage] {
            let run = |k| {
                let search = Search::new(gpu, queries, width);
                let pool = ActivationPool::default();
                let found = search.run(&pool, &image_rows, &text_rows, direction, k);
                pollster::block_on(found).expect("a search")
            };
            let found = run(k);
            let (count, candidates) = match direction {
                SearchDirection::ImageToText => (images, texts),
                SearchDirection::TextToImage => (texts, images),
            };
            assert_eq!(found.len(), count);
            for (query, hits) in found.iter().enumerate() {
                let exact = |candidate: usize| match direction {
                    SearchDirection::ImageToText => score(query, candidate),
                    SearchDirection::TextToImage => score(candidate, query),
                };
                let mut all: Vec<f32> = (0..candidates).map(exact).collect();
                assert_eq!(hits.len(), k.min(candidates));
                for hit in hits {
                    assert!((hit.itc - all[hit.index]).abs() < 5e-7, "{hit:?}");
                }
                // Their order is that of their scores, and nothing better was left out.
                assert!(hits.is_sorted_by(|a, b| a.itc >= b.itc));
                all.sort_by(|a, b| b.total_cmp(a));
                let worst = hits[hits.len() - 1].itc;
                assert!((worst - all[hits.len() - 1]).abs() < 5e-7);
            }
        }
    }

    #[test]
    fn finds_the_best_both_ways() {
        for gpu in gpus() {
            check(gpu, 1, 1, 8, 24, 3);
            check(gpu, 7, 5, 3, 8, 4);
            // More than one tile of texts.
            check(gpu, 5, 2500, 8, 24, 20);
            // More than one tile of images: 16 Mi / (2048 · 512) = 16.
            check(gpu, 37, 9, 512, 8, 30);
        }
    }

    #[test]
    fn memory_does_not_grow_with_what_is_searched() {
        let gpu = gpus()[0];
        let search = Search::new(gpu, 32, 256);
        let bytes = |images, texts| {
            let direction = SearchDirection::TextToImage;
            search
                .device_bytes(images, texts, direction, 128)
                .expect("room")
        };
        let most = bytes(10_000, 50_000);
        assert_eq!(most, bytes(1_000_000, 5_000_000));
        assert!(most < 100 << 20, "{most}");
    }

    /// Prints seconds and bytes of a search, `IMAGES` × `TEXTS` of 32 queries and width 256:
    /// `IMAGES=10000 TEXTS=2048 cargo test --release --lib large_search -- --ignored --nocapture`.
    #[test]
    #[ignore = "takes minutes; prints what it measured"]
    fn large_search() {
        let size = |name: &str, default: usize| {
            let given = std::env::var(name).ok();
            given.and_then(|text| text.parse().ok()).unwrap_or(default)
        };
        let (images, texts) = (size("IMAGES", 1024), size("TEXTS", 2048));
        let (queries, width, k) = (32, 256, 128);
        let gpu = gpus()[0];
        let mut random = Random(1);
        let image_values = random.vec(images * queries * width);
        let text_values = random.vec(texts * width);
        let image_rows: Vec<&[f32]> = image_values.chunks(queries * width).collect();
        let text_rows: Vec<&[f32]> = text_values.chunks(width).collect();
        for direction in [SearchDirection::ImageToText, SearchDirection::TextToImage] {
            let search = Search::new(gpu, queries, width);
            let pool = ActivationPool::default();
            let started = std::time::Instant::now();
            let found = search.run(&pool, &image_rows, &text_rows, direction, k);
            let found = pollster::block_on(found).expect("a search");
            let seconds = started.elapsed().as_secs_f64();
            // Two products of f16 halves make one of f32.
            let flop = 4.0 * (images * queries * texts * width) as f64;
            let bytes = search
                .device_bytes(images, texts, direction, k)
                .expect("room");
            eprintln!(
                "{direction:?}: {images} images x {texts} texts in {seconds:.2} s, {:.1} GFLOP/s, {} finds, \
                 {:.1} MiB on the device",
                flop / seconds / 1e9,
                found.iter().map(Vec::len).sum::<usize>(),
                bytes as f64 / (1 << 20) as f64,
            );
        }
    }
}
