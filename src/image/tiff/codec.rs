//! Strips and tiles from their compressed bytes, and predictors undone.

use std::io::{ErrorKind, Read};

use weezl::{BitOrder, LzwStatus};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::Failure::{self, Damaged, Truncated, Unsupported};
use super::fax;
use super::layout::{Layout, Sample};
use crate::image::ifd::Directory;

const COMPRESSION: u16 = 259;
const T4_OPTIONS: u16 = 292;
const PREDICTOR: u16 = 317;
const JPEG_TABLES: u16 = 347;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression<'a> {
    None,
    Fax(fax::Kind),
    Lzw,
    /// With the tables that all chunks share.
    Jpeg(&'a [u8]),
    Deflate,
    PackBits,
    Lzma,
    Zstd,
}

/// What a chunk holds when it is unpacked.
pub(super) struct Chunk {
    pub(super) width: usize,
    pub(super) rows: usize,
    pub(super) row_bytes: usize,
    pub(super) samples: usize,
    /// Whether JPEG's colours become RGB.
    pub(super) to_rgb: bool,
}

impl<'a> Compression<'a> {
    pub(super) fn new(tags: &Directory<'a>) -> Result<Self, Failure> {
        let named = |name: &str| Err(Unsupported(format!("{name} compression")));
        Ok(match tags.number(COMPRESSION).unwrap_or(1) {
            1 => Self::None,
            2 => Self::Fax(fax::Kind::RunLengths),
            3 => Self::Fax(fax::Kind::Group3 {
                is_two_dimensional: tags.number(T4_OPTIONS).unwrap_or(0) & 1 == 1,
            }),
            4 => Self::Fax(fax::Kind::Group4),
            5 => Self::Lzw,
            6 => return named("old-style JPEG"),
            7 => Self::Jpeg(tags.bytes(JPEG_TABLES).unwrap_or_default()),
            8 | 32946 => Self::Deflate,
            32771 => return named("CCITT word-aligned"),
            32773 => Self::PackBits,
            32809 => return named("ThunderScan"),
            33003..=33005 | 34712 => return named("JPEG 2000"),
            34676 | 34677 => return named("LogLuv"),
            34887 => return named("LERC"),
            34925 => Self::Lzma,
            50000 => Self::Zstd,
            50001 => return named("WebP"),
            52546 | 50002 => return named("JPEG XL"),
            other => return Err(Unsupported(format!("compression {other}"))),
        })
    }

    pub(super) fn is_jpeg(self) -> bool {
        matches!(self, Self::Jpeg(_))
    }

    /// The bytes that `data` stands for: at most those of the chunk, fewer where it ends early.
    pub(super) fn unpack(self, data: &[u8], chunk: &Chunk) -> Result<Vec<u8>, Failure> {
        let length = chunk.rows * chunk.row_bytes;
        match self {
            Self::None => Ok(data.to_vec()),
            Self::Fax(kind) => fax::rows(kind, data, chunk),
            Self::Lzw => lzw(data, length),
            Self::Jpeg(tables) => jpeg(tables, data, chunk),
            Self::Deflate => read(flate2::read::ZlibDecoder::new(data), length),
            Self::PackBits => Ok(pack_bits(data, length)),
            Self::Lzma => {
                const MOST_KIB: u32 = 128 << 10;
                let reader = lzma_rust2::XzReader::new_mem_limit(data, false, MOST_KIB);
                read(reader, length)
            }
            Self::Zstd => match ruzstd::decoding::StreamingDecoder::new(data) {
                Ok(reader) => read(reader, length),
                Err(error) => Err(Damaged(error.to_string())),
            },
        }
    }
}

/// Reads at most `length` bytes.
fn read(reader: impl Read, length: usize) -> Result<Vec<u8>, Failure> {
    let mut data = Vec::new();
    match reader.take(length as u64).read_to_end(&mut data) {
        Ok(_) => Ok(data),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(Truncated(error.to_string())),
        Err(error) => Err(Damaged(error.to_string())),
    }
}

/// LZW with the highest bit first, or as the earliest writers had it: the lowest first, and each
/// width of code used to its end.
fn lzw(mut data: &[u8], length: usize) -> Result<Vec<u8>, Failure> {
    let is_early = matches!(data, [0, second, ..] if second & 1 == 1);
    let mut decoder = match is_early {
        true => weezl::decode::Decoder::new(BitOrder::Lsb, 8),
        false => weezl::decode::Decoder::with_tiff_size_switch(BitOrder::Msb, 8),
    };
    let mut unpacked = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while unpacked.len() < length {
        let step = decoder.decode_bytes(data, &mut buffer);
        unpacked.extend(&buffer[..step.consumed_out]);
        data = &data[step.consumed_in..];
        match step.status {
            Ok(LzwStatus::Ok) => {}
            Ok(LzwStatus::Done | LzwStatus::NoProgress) => break,
            Err(error) => return Err(Damaged(error.to_string())),
        }
    }
    Ok(unpacked)
}

fn pack_bits(mut data: &[u8], length: usize) -> Vec<u8> {
    let mut unpacked = Vec::new();
    while unpacked.len() < length
        && let Some((&head, rest)) = data.split_first()
    {
        data = rest;
        match head as i8 {
            -128 => {}
            run @ ..0 => match data.split_off_first() {
                Some(&byte) => unpacked.extend(std::iter::repeat_n(
                    byte,
                    usize::from(run.unsigned_abs()) + 1,
                )),
                None => break,
            },
            literal => {
                let count = (literal as usize + 1).min(data.len());
                unpacked.extend(&data[..count]);
                data = &data[count..];
            }
        }
    }
    unpacked
}

/// A JPEG image whose tables may be apart: those come first, without their end and its beginning.
fn jpeg(tables: &[u8], data: &[u8], chunk: &Chunk) -> Result<Vec<u8>, Failure> {
    if !matches!(chunk.samples, 1 | 3 | 4) {
        return Err(Unsupported(format!(
            "JPEG of {} samples a pixel",
            chunk.samples
        )));
    }
    let joined;
    let data = match (tables, data) {
        ([tables @ .., 0xFF, 0xD9], [0xFF, 0xD8, image @ ..]) if tables.len() >= 2 => {
            joined = [tables, image].concat();
            &joined
        }
        _ => data,
    };
    let damaged = |error: zune_jpeg::errors::DecodeErrors| Damaged(format!("{error:?}"));
    crate::image::jpeg::check_complete(data).map_err(Truncated)?;
    let mut decoder = JpegDecoder::new(ZCursor::new(data));
    decoder.decode_headers().map_err(damaged)?;
    let stored = decoder.input_colorspace().unwrap_or(ColorSpace::YCbCr);
    let wanted = match stored {
        ColorSpace::YCbCr if chunk.to_rgb => ColorSpace::RGB,
        stored => stored,
    };
    let size = decoder
        .info()
        .map(|info| (usize::from(info.width), usize::from(info.height)));
    let (width, height) = size.unwrap_or_default();
    if width != chunk.width || height < chunk.rows || wanted.num_components() != chunk.samples {
        let reason = format!("a strip or tile is a JPEG image of {width}x{height} pixels");
        return Err(Damaged(reason));
    }
    if height > 2 * chunk.rows + 64 {
        return Err(Damaged("a JPEG image is larger than its strip".into()));
    }
    decoder.set_options(DecoderOptions::default().jpeg_set_out_colorspace(wanted));
    decoder.decode().map_err(damaged)
}

/// What compressors did to samples beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Predictor {
    None,
    /// Each sample less the one before it.
    Horizontal,
    /// The bytes of floats sorted by weight, each less the one before it.
    Float,
}

impl Predictor {
    pub(super) fn new(
        tags: &Directory<'_>,
        compression: Compression<'_>,
        layout: &Layout,
    ) -> Result<Self, Failure> {
        use Compression::{Deflate, Lzma, Lzw, Zstd};
        if !matches!(compression, Deflate | Lzma | Lzw | Zstd) {
            return Ok(Self::None);
        }
        let bits = layout.sample.bits();
        match (tags.number(PREDICTOR).unwrap_or(1), layout.sample) {
            (1, _) => Ok(Self::None),
            (2, _) if bits.is_multiple_of(8) => Ok(Self::Horizontal),
            (3, Sample::Float32) => Ok(Self::Float),
            (other, _) => Err(Unsupported(format!("predictor {other} for {bits} bits"))),
        }
    }

    /// Undoes it in a row, and brings the samples into the machine's byte order.
    pub(super) fn undo(self, row: &mut [u8], sample: Sample, samples: usize, big_endian: bool) {
        if self == Self::Float {
            for index in samples..row.len() {
                row[index] = row[index].wrapping_add(row[index - samples]);
            }
            let sorted = row.to_vec();
            let count = row.len() / 4;
            for (index, float) in row.chunks_exact_mut(4).enumerate() {
                let bytes = std::array::from_fn(|weight| sorted[weight * count + index]);
                float.copy_from_slice(&u32::from_be_bytes(bytes).to_ne_bytes());
            }
            return;
        }
        let bytes = sample.bits() / 8;
        if bytes > 1 && big_endian != cfg!(target_endian = "big") {
            row.chunks_exact_mut(bytes).for_each(<[u8]>::reverse);
        }
        if self == Self::Horizontal {
            let step = samples * bytes;
            match bytes {
                2 => add(row, step, |a, b| {
                    u16::from_ne_bytes(a)
                        .wrapping_add(u16::from_ne_bytes(b))
                        .to_ne_bytes()
                }),
                4 => add(row, step, |a, b| {
                    u32::from_ne_bytes(a)
                        .wrapping_add(u32::from_ne_bytes(b))
                        .to_ne_bytes()
                }),
                _ => add(row, step, |[a]: [u8; 1], [b]| [a.wrapping_add(b)]),
            }
        }
    }
}

/// Adds to each sample the one `step` bytes before it.
fn add<const N: usize>(row: &mut [u8], step: usize, sum: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    let at = |row: &[u8], start: usize| std::array::from_fn(|index| row[start + index]);
    let mut place = step;
    while place + N <= row.len() {
        let value = sum(at(row, place), at(row, place - step));
        row[place..place + N].copy_from_slice(&value);
        place += N;
    }
}
