//! The directory of tags in which TIFF keeps an image's layout and EXIF its orientation, read as
//! forgivingly as Pillow does: what cannot be read is as if it were not there.

use std::collections::BTreeMap;

/// Kinds of values that are no numbers, for all that their bytes could be read as some.
const ASCII: u16 = 2;
const UNDEFINED: u16 = 7;
const BYTE: u16 = 1;

/// The first directory of a TIFF file or an EXIF block.
#[derive(Debug)]
pub(super) struct Directory<'a> {
    pub(super) big_endian: bool,
    entries: BTreeMap<u16, Entry<'a>>,
}

/// A tag's values, as they are stored.
#[derive(Debug)]
struct Entry<'a> {
    kind: u16,
    data: &'a [u8],
}

/// Bytes in one of the two orders.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    all: &'a [u8],
    big_endian: bool,
}

impl<'a> Bytes<'a> {
    fn slice(self, position: u64, length: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(position).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.all.get(start..end)
    }

    /// The unsigned number of `length` bytes at `position`.
    fn number(self, position: u64, length: u64) -> Option<u64> {
        self.slice(position, length)
            .map(|bytes| unsigned(bytes, self.big_endian))
    }
}

impl<'a> Directory<'a> {
    /// Reads the first directory; `None` where the header is not TIFF's, or BigTIFF's. The letters
    /// at the beginning give the order of bytes, whatever the order of the two after them.
    pub(super) fn read(file: &'a [u8]) -> Option<Self> {
        let (big_endian, version) = match file {
            [b'I', b'I', version, 0, ..] | [b'I', b'I', 0, version, ..] => (false, *version),
            [b'M', b'M', 0, version, ..] | [b'M', b'M', version, 0, ..] => (true, *version),
            _ => return None,
        };
        let is_big = match version {
            42 => false,
            43 => true,
            _ => return None,
        };
        let bytes = Bytes {
            all: file,
            big_endian,
        };
        let mut directory = Self {
            big_endian,
            entries: BTreeMap::new(),
        };
        let start = match is_big {
            true => bytes.number(8, 8)?,
            false => bytes.number(4, 4)?,
        };
        // `None` is where the bytes end: the tags until there are kept.
        let _ = directory.read_entries(bytes, start, is_big);
        Some(directory)
    }

    fn read_entries(&mut self, bytes: Bytes<'a>, start: u64, is_big: bool) -> Option<()> {
        let (count_bytes, entry_bytes, value_bytes) = if is_big { (8, 20, 8) } else { (2, 12, 4) };
        let count = bytes.number(start, count_bytes)?;
        let mut position = start.checked_add(count_bytes)?;
        let mut apart = 0u64; // bytes of values that are not in the directory
        for _ in 0..count {
            let tag = bytes.number(position, 2)? as u16;
            let kind = bytes.number(position + 2, 2)? as u16;
            let values = bytes.number(position + 4, value_bytes)?;
            let place = position + 4 + value_bytes;
            bytes.slice(place, value_bytes)?;
            position += entry_bytes;
            let is_known = self.entries.contains_key(&tag);
            let Some(unit) = unit_bytes(kind).filter(|_| !is_known) else {
                continue;
            };
            let length = values.saturating_mul(unit);
            let data = if length <= value_bytes {
                bytes.slice(place, length)?
            } else {
                apart = apart.saturating_add(length);
                if apart > bytes.all.len() as u64 {
                    continue;
                }
                bytes.slice(bytes.number(place, value_bytes)?, length)?
            };
            if !data.is_empty() {
                self.entries.insert(tag, Entry { kind, data });
            }
        }
        Some(())
    }

    fn entry(&self, tag: u16) -> Option<&Entry<'a>> {
        self.entries.get(&tag)
    }

    pub(super) fn has(&self, tag: u16) -> bool {
        self.entry(tag).is_some()
    }

    /// The values as they are stored.
    pub(super) fn bytes(&self, tag: u16) -> Option<&'a [u8]> {
        self.entry(tag).map(|entry| entry.data)
    }

    /// The bytes of a tag of the kinds that Pillow takes for bytes.
    pub(super) fn raw(&self, tag: u16) -> Option<&'a [u8]> {
        let entry = self.entry(tag)?;
        matches!(entry.kind, BYTE | UNDEFINED).then_some(entry.data)
    }

    /// The first value, if it is a whole number at least zero. As in Pillow, bytes and texts are none,
    /// and floats and quotients are numbers.
    pub(super) fn number(&self, tag: u16) -> Option<u64> {
        let entry = self.entry(tag)?;
        match entry.kind {
            BYTE | ASCII | UNDEFINED => None,
            kind => whole(kind, self.units(entry).next()?, self.big_endian),
        }
    }

    /// All values of a tag that holds whole numbers, bytes among them; without the others.
    pub(super) fn numbers(&self, tag: u16) -> Vec<u64> {
        let Some(entry) = self.entry(tag) else {
            return Vec::new();
        };
        self.units(entry)
            .filter_map(|unit| whole(entry.kind, unit, self.big_endian))
            .collect()
    }

    fn units(&self, entry: &Entry<'a>) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let unit = unit_bytes(entry.kind).unwrap_or(1) as usize;
        entry.data.chunks_exact(unit)
    }
}

/// Bytes of one value; `None` for kinds that Pillow passes over.
fn unit_bytes(kind: u16) -> Option<u64> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 => 8,
        _ => return None,
    })
}

/// A value as a whole number at least zero, if it is one.
fn whole(kind: u16, unit: &[u8], big_endian: bool) -> Option<u64> {
    let raw = unsigned(unit, big_endian);
    let half = |part: &[u8]| unsigned(part, big_endian) as u32;
    let real = match kind {
        5 => f64::from(half(&unit[..4])) / f64::from(half(&unit[4..])),
        6 => f64::from(raw as u8 as i8),
        8 => f64::from(raw as u16 as i16),
        9 => f64::from(raw as u32 as i32),
        10 => f64::from(half(&unit[..4]) as i32) / f64::from(half(&unit[4..]) as i32),
        11 => f64::from(f32::from_bits(raw as u32)),
        12 => f64::from_bits(raw),
        _ => return Some(raw),
    };
    (real.is_finite() && real >= 0.0 && real.fract() == 0.0).then_some(real as u64)
}

fn unsigned(bytes: &[u8], big_endian: bool) -> u64 {
    let push = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    match big_endian {
        true => bytes.iter().fold(0, push),
        false => bytes.iter().rev().fold(0, push),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Width 7 as SHORT, three LONGs apart, a tag of an unknown kind, a second width.
    const FILE: [u8; 78] = *b"II*\0\x08\0\0\0\x04\0\
        \0\x01\x03\0\x01\0\0\0\x07\0\0\0\
        \x11\x01\x04\0\x03\0\0\0\x3e\0\0\0\
        \x12\x01\x63\0\x01\0\0\0\x06\0\0\0\
        \0\x01\x03\0\x01\0\0\0\x09\0\0\0\
        \0\0\0\0\
        \x01\0\0\0\x02\0\0\0\x03\0\0\0junk";

    #[test]
    fn tags() {
        let directory = Directory::read(&FILE).unwrap();
        assert_eq!(directory.number(256), Some(7));
        assert_eq!(directory.numbers(273), [1, 2, 3]);
        assert!(!directory.has(274) && !directory.big_endian);
        assert_eq!(directory.bytes(256), Some(&[7, 0][..]));
    }

    #[test]
    fn what_comes_before_a_cut_is_kept() {
        for length in 8..FILE.len() {
            let directory = Directory::read(&FILE[..length]).unwrap();
            assert_eq!(directory.has(256), length >= 22, "{length}");
            assert_eq!(directory.has(273), length >= 74, "{length}");
        }
        assert!(Directory::read(&FILE[..7]).is_none());
        assert!(Directory::read(b"Exif\0\0\0\0").is_none());
    }

    #[test]
    fn kinds_of_numbers() {
        let six = |kind, unit: &[u8]| whole(kind, unit, false);
        assert_eq!(six(5, &[12, 0, 0, 0, 2, 0, 0, 0]), Some(6));
        assert_eq!(six(5, &[12, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(six(8, &[0xFA, 0xFF]), None);
        assert_eq!(six(11, &6f32.to_le_bytes()), Some(6));
        assert_eq!(six(12, &6.5f64.to_le_bytes()), None);
        assert_eq!(whole(9, &[0, 0, 0, 6], true), Some(6));
    }
}
