//! What a TIFF image's samples are: Pillow's table of the kinds it reads.

use super::Failure::{self, Damaged, Unsupported};
use crate::image::ifd::Directory;

const BITS_PER_SAMPLE: u16 = 258;
const PHOTOMETRIC: u16 = 262;
const FILL_ORDER: u16 = 266;
const SAMPLES_PER_PIXEL: u16 = 277;
const PLANAR: u16 = 284;
const EXTRA_SAMPLES: u16 = 338;
const SAMPLE_FORMAT: u16 = 339;

/// The most samples of a pixel, three or four of them colours.
const MOST_SAMPLES: u64 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Grey,
    Palette,
    Rgb,
    Cmyk,
    YCbCr,
}

impl Colour {
    /// Samples of a pixel without the extra ones.
    pub(super) fn samples(self) -> usize {
        match self {
            Self::Grey | Self::Palette => 1,
            Self::Rgb | Self::YCbCr => 3,
            Self::Cmyk => 4,
        }
    }
}

/// What the first extra sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpha {
    None,
    /// The colours are multiplied by it.
    Premultiplied,
    Straight,
}

/// How one sample is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sample {
    /// Unsigned, of 1, 2, 4, 8 or 12 bits, the first in the highest bits of a byte.
    Packed(u8),
    /// 16 bits in the machine's byte order, as are the following.
    Unsigned16,
    Signed16,
    /// 32 bits. Pillow takes unsigned ones for signed.
    Signed32,
    Float32,
}

impl Sample {
    pub(super) fn bits(self) -> usize {
        match self {
            Self::Packed(bits) => usize::from(bits),
            Self::Unsigned16 | Self::Signed16 => 16,
            Self::Signed32 | Self::Float32 => 32,
        }
    }

    /// The sample number `index` of a row in 8 bits. What is longer is clipped at 255 where it is grey
    /// (`scales` is false), and shortened to its high byte where it is a colour; what is shorter is
    /// scaled, but for indices of a palette.
    pub(super) fn value(self, row: &[u8], index: usize, scales: Scales) -> u8 {
        let two = |at: usize| [row[at], row[at + 1]];
        let four = |at: usize| [row[at], row[at + 1], row[at + 2], row[at + 3]];
        match self {
            Self::Packed(8) => row[index],
            Self::Packed(12) => {
                let first = index * 12 / 8;
                let value = match index % 2 {
                    0 => u16::from(row[first]) << 4 | u16::from(row[first + 1]) >> 4,
                    _ => u16::from(row[first] & 15) << 8 | u16::from(row[first + 1]),
                };
                value.min(255) as u8
            }
            Self::Packed(bits) => {
                let bits = usize::from(bits);
                let shift = 8 - bits - index * bits % 8;
                let largest = (1u8 << bits) - 1;
                let value = row[index * bits / 8] >> shift & largest;
                if scales.short {
                    value * (255 / largest)
                } else {
                    value
                }
            }
            Self::Unsigned16 => {
                let value = u16::from_ne_bytes(two(index * 2));
                if scales.long {
                    (value >> 8) as u8
                } else {
                    value.min(255) as u8
                }
            }
            Self::Signed16 => i16::from_ne_bytes(two(index * 2)).clamp(0, 255) as u8,
            Self::Signed32 => i32::from_ne_bytes(four(index * 4)).clamp(0, 255) as u8,
            // A float's conversion cuts off what is behind the point, and clips.
            Self::Float32 => f32::from_ne_bytes(four(index * 4)) as u8,
        }
    }
}

/// Whether samples of fewer and of more than 8 bits are scaled to 8.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    short: bool,
    long: bool,
}

/// The samples of all pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) colour: Colour,
    pub(super) alpha: Alpha,
    pub(super) sample: Sample,
    /// Samples of a pixel, the dropped ones too.
    pub(super) samples: usize,
    pub(super) is_planar: bool,
    pub(super) zero_is_white: bool,
}

impl Layout {
    pub(super) fn new(tags: &Directory<'_>) -> Result<Self, Failure> {
        let photometric = tags.number(PHOTOMETRIC).unwrap_or(0);
        let is_planar = tags.number(PLANAR) == Some(2);
        let extra = tags.numbers(EXTRA_SAMPLES);
        let samples = tags.number(SAMPLES_PER_PIXEL).unwrap_or(1);
        let bits = bits(tags, samples)?;
        let format = sample_format(tags)?;
        let sample = sample(bits, format)?;
        let colour = match (photometric, samples) {
            (0 | 1, _) => Colour::Grey,
            (2, _) => Colour::Rgb,
            (3, _) => Colour::Palette,
            (5, _) => Colour::Cmyk,
            (6, 1) => Colour::Grey, // brightness alone
            (6, _) => Colour::YCbCr,
            (4, _) => return Err(Unsupported("a transparency mask".into())),
            (8..=10, _) => return Err(Unsupported("CIELab colours".into())),
            (32803 | 34892, _) => return Err(Unsupported("a camera's raw data".into())),
            (32844 | 32845, _) => return Err(Unsupported("LogLuv colours".into())),
            (other, _) => return Err(Unsupported(format!("photometric interpretation {other}"))),
        };
        let layout = Self {
            colour,
            alpha: alpha(colour, bits, samples, &extra)?,
            sample,
            samples: samples as usize,
            is_planar,
            zero_is_white: photometric == 0 && matches!(sample, Sample::Packed(1 | 2 | 4 | 8)),
        };
        if format == 2 && bits == 8 && (photometric != 1 || samples != 1) {
            return Err(Unsupported("signed colours of 8 bits".into()));
        }
        layout.check(photometric, tags.number(FILL_ORDER) == Some(2))?;
        Ok(layout)
    }

    /// Refuses combinations that Pillow has no meaning for.
    fn check(&self, photometric: u64, bits_reversed: bool) -> Result<(), Failure> {
        let extra = self.samples - self.colour.samples();
        let bits = self.sample.bits();
        let is_read = match (self.colour, self.sample) {
            (Colour::Grey, Sample::Packed(8)) => extra == 0 || photometric == 1 && extra == 1,
            (Colour::Grey, Sample::Packed(12) | Sample::Signed16 | Sample::Signed32) => {
                extra == 0 && photometric == 1
            }
            (Colour::Grey, _) => extra == 0 && photometric <= 1,
            (Colour::Palette, Sample::Packed(8)) => extra <= 1,
            (Colour::Palette, Sample::Packed(1 | 2 | 4)) => extra == 0,
            (Colour::Rgb, Sample::Packed(8)) => true,
            (Colour::Rgb, Sample::Unsigned16) => extra <= 1,
            (Colour::Cmyk, Sample::Packed(8)) => true,
            (Colour::Cmyk, Sample::Unsigned16) => extra == 0,
            (Colour::YCbCr, Sample::Packed(8)) => extra == 0,
            _ => false,
        };
        let kind = match self.colour {
            Colour::Grey => "grey",
            Colour::Palette => "palette",
            Colour::Rgb => "RGB",
            Colour::Cmyk => "CMYK",
            Colour::YCbCr => "YCbCr",
        };
        if !is_read {
            let format = match self.sample {
                Sample::Packed(_) | Sample::Unsigned16 => "",
                Sample::Signed16 | Sample::Signed32 => "signed ",
                Sample::Float32 => "float ",
            };
            let extra = match extra {
                0 => String::new(),
                extra => format!(" with {extra} more samples a pixel"),
            };
            let zero = if photometric == 0 {
                ", zero being white"
            } else {
                ""
            };
            let reason = format!("{kind} of {format}{bits} bits{extra}{zero}");
            return Err(Unsupported(reason));
        }
        let is_reversible = matches!(
            (self.colour, bits, extra),
            (Colour::Grey | Colour::Palette, 1 | 2 | 4 | 8, 0)
                | (Colour::Rgb, 8, 0)
                | (Colour::Grey, 16, 0)
        );
        if bits_reversed && !is_reversible {
            let reason = format!("{kind} of {bits} bits, the lowest bit first");
            return Err(Unsupported(reason));
        }
        Ok(())
    }

    /// Samples of a pixel that count: colours and alpha.
    pub(super) fn kept(&self) -> usize {
        self.colour.samples() + usize::from(self.alpha != Alpha::None)
    }

    pub(super) fn scales(&self) -> Scales {
        Scales {
            short: self.colour != Colour::Palette,
            long: self.colour != Colour::Grey,
        }
    }
}

/// Bits of a sample, the same for all. One number stands for all samples; those too many are cut off.
fn bits(tags: &Directory<'_>, samples: u64) -> Result<u64, Failure> {
    if !(1..=MOST_SAMPLES).contains(&samples) {
        return Err(Unsupported(format!("{samples} samples a pixel")));
    }
    let bits = match tags.has(BITS_PER_SAMPLE) {
        true => tags.numbers(BITS_PER_SAMPLE),
        false => vec![1],
    };
    let counted = &bits[..bits.len().min(samples as usize)];
    match counted {
        [] => Err(Damaged("its samples have no bits".into())),
        [_, _, ..] if counted.len() < samples as usize => Err(Damaged(format!(
            "bits of {} samples, where a pixel has {samples}",
            counted.len()
        ))),
        &[first, ref rest @ ..] if rest.iter().all(|bits| *bits == first) => Ok(first),
        _ => Err(Unsupported(format!("samples of {counted:?} bits"))),
    }
}

/// 1 for unsigned, 2 for signed, 3 for float.
fn sample_format(tags: &Directory<'_>) -> Result<u64, Failure> {
    let formats = tags.numbers(SAMPLE_FORMAT);
    match formats.as_slice() {
        [] => Ok(1),
        [first, rest @ ..] if rest.iter().all(|format| format == first) => Ok(*first),
        _ => Err(Unsupported("samples of different formats".into())),
    }
}

fn sample(bits: u64, format: u64) -> Result<Sample, Failure> {
    Ok(match (format, bits) {
        (1, 1 | 2 | 4 | 8 | 12) | (2, 8) => Sample::Packed(bits as u8),
        (1, 16) => Sample::Unsigned16,
        (2, 16) => Sample::Signed16,
        (1 | 2, 32) => Sample::Signed32,
        (3, 32) => Sample::Float32,
        (1, _) => return Err(Unsupported(format!("samples of {bits} bits"))),
        (2, _) => return Err(Unsupported(format!("signed samples of {bits} bits"))),
        (3, _) => return Err(Unsupported(format!("floats of {bits} bits"))),
        _ => return Err(Unsupported(format!("samples of format {format}"))),
    })
}

/// What ExtraSamples makes of the samples after the colours.
fn alpha(colour: Colour, bits: u64, samples: u64, extra: &[u64]) -> Result<Alpha, Failure> {
    let found = samples.checked_sub(colour.samples() as u64);
    let Some(found) = found else {
        return Err(Damaged(format!("{samples} samples a pixel are too few")));
    };
    const COREL_DRAW: u64 = 999;
    match (extra, found) {
        ([], 0) => Ok(Alpha::None),
        // Writers that forget the tag mean alpha.
        ([], 1) if colour == Colour::Rgb => Ok(Alpha::Straight),
        (&[first, ref rest @ ..], _)
            if extra.len() as u64 == found && *rest == vec![0; rest.len()] =>
        {
            match first {
                0 => Ok(Alpha::None),
                1 if matches!(colour, Colour::Rgb | Colour::Grey) => Ok(Alpha::Premultiplied),
                2 if matches!(colour, Colour::Rgb | Colour::Grey | Colour::Palette) => {
                    Ok(Alpha::Straight)
                }
                COREL_DRAW if (colour, bits) == (Colour::Rgb, 8) && rest.is_empty() => {
                    Ok(Alpha::Straight)
                }
                _ => Err(Unsupported(format!("extra samples {extra:?}"))),
            }
        }
        _ => Err(Unsupported(format!(
            "{found} extra samples, described as {extra:?}"
        ))),
    }
}

/// The 256 colours of a colour map: all reds, then all greens, then all blues, in 16 bits. Those beyond
/// it are black.
pub(super) fn palette(map: &[u64]) -> Option<[[u8; 3]; 256]> {
    let third = map.len() / 3;
    let mut palette = [[0; 3]; 256];
    for (index, entry) in palette.iter_mut().enumerate().take(third) {
        *entry = [0, 1, 2].map(|channel| (map[channel * third + index] / 256) as u8);
    }
    (third > 0).then_some(palette)
}
