//! TIFF images as Pillow reads them.
//!
//! TIFF is a box of many kinds of images. Which Pillow takes, and for what, is a table of its own
//! ([`layout`]): it drops unspecified extra samples, divides by premultiplied alpha, clips 16-bit
//! greys and inverts some images whose zero is white. The `tiff` crate has other answers and refuses
//! palettes, extra samples, Group 3 and more, so only the decompressors are other people's here.

mod codec;
mod fax;
mod layout;

use std::borrow::Cow;

use super::MAX_PIXELS;
use super::ifd::Directory;
use super::pillow::{self, Pixels};
use codec::{Compression, Predictor};
use layout::{Alpha, Colour, Layout, Sample};

const WIDTH: u16 = 256;
const HEIGHT: u16 = 257;
const FILL_ORDER: u16 = 266;
const STRIP_OFFSETS: u16 = 273;
const ROWS_PER_STRIP: u16 = 278;
const STRIP_BYTES: u16 = 279;
const COLOUR_MAP: u16 = 320;
const TILE_WIDTH: u16 = 322;
const TILE_HEIGHT: u16 = 323;
const TILE_OFFSETS: u16 = 324;
const TILE_BYTES: u16 = 325;
const YCBCR_COEFFICIENTS: u16 = 529;
const YCBCR_SUBSAMPLING: u16 = 530;
const REFERENCE_BLACK_WHITE: u16 = 532;

/// Why there are no pixels.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The bytes end too early.
    Truncated(String),
    /// The bytes contradict the format.
    Damaged(String),
    /// A kind that Pillow does not read either, or reads by a library of its own.
    Unsupported(String),
    /// More than [`MAX_PIXELS`].
    TooLarge(u32, u32),
}

use Failure::{Damaged, Truncated, Unsupported};

/// Decodes the first image of a TIFF file; its orientation is the caller's.
pub(super) fn decode(file: &[u8]) -> Result<Pixels, Failure> {
    let tags = Directory::read(file).ok_or_else(|| Truncated("it has no directory".into()))?;
    let image = Image::new(file, &tags)?;
    image.colours(image.samples()?, &tags)
}

struct Image<'a> {
    file: &'a [u8],
    width: usize,
    height: usize,
    layout: Layout,
    compression: Compression<'a>,
    predictor: Predictor,
    big_endian: bool,
    bits_reversed: bool,
    chunks: Chunks,
}

/// The strips or tiles. With planes apart, those of the first plane come first, and so on.
struct Chunks {
    width: usize,
    height: usize,
    are_tiles: bool,
    offsets: Vec<u64>,
    lengths: Vec<u64>,
}

impl<'a> Image<'a> {
    fn new(file: &'a [u8], tags: &Directory<'a>) -> Result<Self, Failure> {
        let side = |tag| match tags.number(tag).map(u32::try_from) {
            Some(Ok(side)) if side > 0 => Ok(side),
            Some(_) => Err(Damaged("its size cannot be".into())),
            // The directory is often the last thing in a file.
            None => Err(Truncated("its directory has no size".into())),
        };
        let (width, height) = (side(WIDTH)?, side(HEIGHT)?);
        if u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(Failure::TooLarge(width, height));
        }
        let (width, height) = (width as usize, height as usize);
        let compression = Compression::new(tags)?;
        let layout = Layout::new(tags)?;
        let predictor = Predictor::new(tags, compression, &layout)?;
        let chunks = Chunks::new(tags, width, height, compression, &layout)?;
        let image = Self {
            file,
            width,
            height,
            layout,
            compression,
            predictor,
            big_endian: tags.big_endian,
            bits_reversed: tags.number(FILL_ORDER) == Some(2),
            chunks,
        };
        image.check_chroma(tags)?;
        Ok(image)
    }

    /// Colours with fewer samples than brightness: JPEG brings its own, other data is not read. Nor are
    /// coefficients of other colours than television's, which libtiff would obey.
    fn check_chroma(&self, tags: &Directory<'_>) -> Result<(), Failure> {
        if self.layout.colour != Colour::YCbCr || self.compression.is_jpeg() {
            return Ok(());
        }
        let is_compressed = self.compression != Compression::None;
        let has_usual_range = !tags.has(REFERENCE_BLACK_WHITE)
            || tags.numbers(REFERENCE_BLACK_WHITE) == [0, 255, 128, 255, 128, 255];
        if is_compressed && (tags.has(YCBCR_COEFFICIENTS) || !has_usual_range) {
            return Err(Unsupported("YCbCr with coefficients of its own".into()));
        }
        let whole = self.row_bytes() as u64 * self.chunks.rows(0, self.height) as u64;
        let stored = self.chunks.lengths.first();
        let is_whole = !is_compressed && stored.is_none_or(|&length| length >= whole);
        match tags.numbers(YCBCR_SUBSAMPLING).as_slice() {
            [1, 1] => Ok(()),
            [] if is_whole => Ok(()),
            _ => Err(Unsupported("YCbCr with subsampled colours".into())),
        }
    }

    /// Samples of a pixel in one chunk.
    fn chunk_samples(&self) -> usize {
        if self.layout.is_planar {
            1
        } else {
            self.layout.samples
        }
    }

    /// Bytes of a row of a chunk, as it is stored.
    fn row_bytes(&self) -> usize {
        (self.chunks.width * self.chunk_samples() * self.layout.sample.bits()).div_ceil(8)
    }

    /// All samples that count, in 8 bits: `[height, width, samples]`.
    fn samples(&self) -> Result<Vec<u8>, Failure> {
        let kept = self.layout.kept();
        let (across, down) = self.chunks.grid(self.width, self.height);
        let planes = if self.layout.is_planar { kept } else { 1 };
        let mut samples = vec![0; self.width * self.height * kept];
        for plane in 0..planes {
            for chunk in 0..across * down {
                let (left, top) = (
                    chunk % across * self.chunks.width,
                    chunk / across * self.chunks.height,
                );
                let data = self.chunk(plane * across * down + chunk, top)?;
                let rows = self.chunks.height.min(self.height - top);
                let columns = self.chunks.width.min(self.width - left);
                for (row, data) in data.chunks(self.row_bytes()).take(rows).enumerate() {
                    let start = ((top + row) * self.width + left) * kept;
                    let target = &mut samples[start..start + columns * kept];
                    self.unpack_row(data, plane, target);
                }
            }
        }
        Ok(samples)
    }

    /// The rows of a chunk, with samples in the machine's byte order.
    fn chunk(&self, index: usize, top: usize) -> Result<Cow<'a, [u8]>, Failure> {
        let rows = self.chunks.rows(top, self.height);
        let row_bytes = self.row_bytes();
        let length = rows * row_bytes;
        let chunk = codec::Chunk {
            width: self.chunks.width,
            rows,
            row_bytes,
            samples: self.chunk_samples(),
            to_rgb: self.layout.colour == Colour::YCbCr,
        };
        let stored = self.stored(index, length)?;
        let mut data = match (self.compression, self.bits_reversed) {
            (Compression::None, false) => Cow::Borrowed(stored),
            (codec, true) if !codec.is_jpeg() => {
                let reversed: Vec<u8> = stored.iter().map(|byte| byte.reverse_bits()).collect();
                codec.unpack(&reversed, &chunk)?.into()
            }
            (codec, _) => codec.unpack(stored, &chunk)?.into(),
        };
        if data.len() < length {
            return Err(Truncated("its rows are cut off".into()));
        }
        let (sample, samples) = (self.layout.sample, self.chunk_samples());
        if self.predictor != Predictor::None || sample.bits() > 12 {
            for row in data.to_mut()[..length].chunks_exact_mut(row_bytes) {
                self.predictor.undo(row, sample, samples, self.big_endian);
            }
        }
        Ok(data)
    }

    /// A chunk's bytes in the file; of what is not compressed, `length` of them.
    fn stored(&self, index: usize, length: usize) -> Result<&'a [u8], Failure> {
        let cut = || Truncated("its pixels lie beyond its end".into());
        let offset = self.chunks.offsets.get(index).copied().ok_or_else(cut)?;
        let start = usize::try_from(offset).map_err(|_| cut())?;
        let rest = self.file.get(start..).ok_or_else(cut)?;
        if self.compression == Compression::None {
            return rest.get(..length).ok_or_else(cut);
        }
        let length = self.chunks.lengths.get(index).copied();
        let length = length.map_or(rest.len(), |length| length.try_into().unwrap_or(usize::MAX));
        match rest.get(..length) {
            Some(stored) => Ok(stored),
            // A byte count too large is common, and no fault where the data ends by itself.
            None => Ok(rest),
        }
    }

    /// Brings one row to 8 bits. `target` is `[columns, samples]`; of planes apart, only the sample
    /// `plane` of each pixel is set.
    fn unpack_row(&self, row: &[u8], plane: usize, target: &mut [u8]) {
        let kept = self.layout.kept();
        let sample = self.layout.sample;
        let stored = self.chunk_samples();
        if sample == Sample::Packed(8) && !self.layout.is_planar && stored == kept {
            return target.copy_from_slice(&row[..target.len()]);
        }
        for (column, pixel) in target.chunks_exact_mut(kept).enumerate() {
            if self.layout.is_planar {
                pixel[plane] = sample.value(row, column, self.layout.scales());
                continue;
            }
            for (index, value) in pixel.iter_mut().enumerate() {
                *value = sample.value(row, column * stored + index, self.layout.scales());
            }
        }
    }

    /// Samples `[height, width, samples]` to colours and alpha.
    fn colours(&self, mut samples: Vec<u8>, tags: &Directory<'_>) -> Result<Pixels, Failure> {
        let size = (self.width as u32, self.height as u32);
        if self.layout.zero_is_white {
            samples.iter_mut().for_each(|sample| *sample = !*sample);
        }
        let kept = self.layout.kept();
        let colours = self.layout.colour.samples();
        let alpha: Option<Vec<u8>> = (self.layout.alpha != Alpha::None).then(|| {
            samples
                .chunks_exact(kept)
                .map(|pixel| pixel[colours])
                .collect()
        });
        if self.layout.colour == Colour::Rgb && kept == 3 {
            return Ok(Pixels::new(size, samples, alpha));
        }
        let palette = layout::palette(&tags.numbers(COLOUR_MAP));
        let to_rgb: &dyn Fn(&[u8]) -> [u8; 3] = match self.layout.colour {
            Colour::Grey => &|pixel| [pixel[0]; 3],
            Colour::Palette => {
                let palette = palette.ok_or_else(|| Damaged("it has no palette".into()))?;
                &move |pixel| palette[usize::from(pixel[0])]
            }
            Colour::Cmyk => &|pixel| pillow::cmyk_to_rgb([pixel[0], pixel[1], pixel[2], pixel[3]]),
            // JPEG's own conversion was asked for.
            Colour::YCbCr if !self.compression.is_jpeg() => {
                let convert = match self.compression {
                    Compression::None => pillow::ycbcr_to_rgb,
                    _ => pillow::ycbcr_to_rgb_by_libtiff,
                };
                &move |pixel| convert([pixel[0], pixel[1], pixel[2]])
            }
            Colour::Rgb | Colour::YCbCr => &|pixel| [pixel[0], pixel[1], pixel[2]],
        };
        let pixels = samples.chunks_exact(kept).map(to_rgb);
        let mut rgb = pixels.collect::<Vec<_>>().into_flattened();
        if let (Alpha::Premultiplied, Some(alpha)) = (self.layout.alpha, &alpha) {
            pillow::divide_by_alpha(&mut rgb, alpha);
        }
        Ok(Pixels::new(size, rgb, alpha))
    }
}

impl Chunks {
    fn new(
        tags: &Directory<'_>,
        width: usize,
        height: usize,
        compression: Compression<'_>,
        layout: &Layout,
    ) -> Result<Self, Failure> {
        let are_tiles = tags.has(TILE_OFFSETS) && !tags.has(STRIP_OFFSETS);
        let number = |tag| tags.number(tag).and_then(|side| usize::try_from(side).ok());
        let mut chunks = if are_tiles {
            let side = |tag| {
                let side = number(tag).filter(|&side| side > 0);
                side.ok_or_else(|| Damaged("its tiles have no size".into()))
            };
            Self {
                width: side(TILE_WIDTH)?,
                height: side(TILE_HEIGHT)?,
                are_tiles,
                offsets: tags.numbers(TILE_OFFSETS),
                lengths: tags.numbers(TILE_BYTES),
            }
        } else {
            let rows = number(ROWS_PER_STRIP).unwrap_or(height).min(height);
            Self {
                width,
                height: if rows == 0 { height } else { rows },
                are_tiles,
                offsets: tags.numbers(STRIP_OFFSETS),
                lengths: tags.numbers(STRIP_BYTES),
            }
        };
        if chunks.offsets.is_empty() {
            return Err(Truncated(
                "its directory does not say where its pixels are".into(),
            ));
        }
        let is_one = chunks.width == width && chunks.height == height && !layout.is_planar;
        if compression == Compression::None && is_one {
            chunks.offsets.drain(..chunks.offsets.len() - 1); // of many, Pillow reads the last
        }
        // What lies in tiles beyond the image's edge is unpacked too.
        let (across, down) = chunks.grid(width, height);
        let all = [across, chunks.width, down, chunks.height]
            .iter()
            .try_fold(1u64, |product, &side| product.checked_mul(side as u64));
        if all.is_none_or(|all| all > 4 * MAX_PIXELS) {
            return Err(Damaged("its tiles are far larger than the image".into()));
        }
        Ok(chunks)
    }

    /// How many there are from left to right and from top to bottom.
    fn grid(&self, width: usize, height: usize) -> (usize, usize) {
        (width.div_ceil(self.width), height.div_ceil(self.height))
    }

    /// Rows of the chunk that begins at row `top`: the last strip is shorter, tiles are whole.
    fn rows(&self, top: usize, height: usize) -> usize {
        match self.are_tiles {
            true => self.height,
            false => self.height.min(height - top),
        }
    }
}
