//! The black and white images of fax machines: CCITT's run lengths, Group 3 and Group 4.
//!
//! The `fax` crate has the tables of codes; its decoders want each row of Group 3 to end in a code
//! that TIFF files often lack, and know neither its second dimension nor bare run lengths.

use std::convert::Infallible;

use fax::maps::{self, Mode};
use fax::{BitReader, ByteReader};

use super::Failure::{self, Damaged, Unsupported};
use super::codec::Chunk;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Each row begins a byte.
    RunLengths,
    /// Each row may begin with a code of its own, which says in two dimensions how it is coded.
    Group3 { is_two_dimensional: bool },
    /// Each row is coded by how it differs from the one above.
    Group4,
}

/// The rows of a chunk, 1 for black; fewer where the data ends early.
pub(super) fn rows(kind: Kind, data: &[u8], chunk: &Chunk) -> Result<Vec<u8>, Failure> {
    if chunk.samples != 1 || chunk.row_bytes != chunk.width.div_ceil(8) {
        return Err(Damaged("a fax has one bit a pixel".into()));
    }
    let width = i32::try_from(chunk.width).map_err(|_| Unsupported("a fax so wide".into()))?;
    // The tables look further than a row's last code.
    let bytes = data.iter().chain(&[0; 4]).copied();
    let bytes = bytes.map(Ok::<u8, Infallible>);
    let Ok(bits) = ByteReader::new(bytes);
    let mut reader = Reader { bits, width };
    let mut above = Vec::new();
    let mut unpacked = Vec::new();
    for _ in 0..chunk.rows {
        let Some(changes) = reader.row(kind, &above) else {
            break;
        };
        let start = unpacked.len();
        unpacked.resize(start + chunk.row_bytes, 0u8);
        let row = &mut unpacked[start..];
        for black in changes.chunks(2) {
            let end = black.get(1).copied().unwrap_or(width);
            for place in black[0] as usize..end as usize {
                row[place / 8] |= 0x80 >> (place % 8);
            }
        }
        above = changes;
    }
    Ok(unpacked)
}

struct Reader<R> {
    bits: ByteReader<R>,
    width: i32,
}

impl<R: Iterator<Item = Result<u8, Infallible>>> Reader<R> {
    /// The places where the next row changes its colour, the first from white to black.
    fn row(&mut self, kind: Kind, above: &[i32]) -> Option<Vec<i32>> {
        match kind {
            Kind::RunLengths => {
                let changes = self.run_lengths()?;
                let padding = self.bits.bits_to_byte_boundary();
                self.take(padding);
                Some(changes)
            }
            Kind::Group3 { is_two_dimensional } => {
                let mut is_alone = true;
                while self.bits.peek(11) == Some(0) {
                    self.end_of_line()?;
                    if is_two_dimensional {
                        is_alone = self.bits.peek(1)? == 1;
                        self.take(1);
                    }
                }
                match is_alone {
                    true => self.run_lengths(),
                    false => self.differences(above),
                }
            }
            Kind::Group4 => self.differences(above),
        }
    }

    fn take(&mut self, bits: u8) {
        let Ok(()) = self.bits.consume(bits);
    }

    /// Zeros and a one.
    fn end_of_line(&mut self) -> Option<()> {
        while self.bits.peek(1)? == 0 {
            self.take(1);
        }
        self.take(1);
        Some(())
    }

    /// A run of one colour, whose length may be given in several parts.
    fn run(&mut self, is_black: bool) -> Option<i32> {
        let mut length = 0i32;
        loop {
            let part = match is_black {
                true => maps::black::decode(&mut self.bits)?,
                false => maps::white::decode(&mut self.bits)?,
            };
            length = length.checked_add(i32::from(part))?;
            if part < 64 {
                return Some(length);
            }
        }
    }

    fn run_lengths(&mut self) -> Option<Vec<i32>> {
        let mut changes = Changes::default();
        let mut place = 0i32;
        while place < self.width {
            place = place.checked_add(self.run(changes.is_black)?)?;
            changes.add(place, self.width);
        }
        Some(changes.places)
    }

    fn differences(&mut self, above: &[i32]) -> Option<Vec<i32>> {
        let mut changes = Changes::default();
        let mut place = -1;
        let mut next_above = 0; // the first change above that is to the right of `place`
        while place < self.width {
            while above.get(next_above).is_some_and(|&change| change <= place) {
                next_above += 1;
            }
            // The first one that changes to the other colour than this row's.
            let first = next_above + usize::from((next_above % 2 == 1) != changes.is_black);
            let above = |index: usize| above.get(index).copied().unwrap_or(self.width);
            match maps::mode::decode(&mut self.bits)? {
                Mode::Pass => place = above(first + 1),
                Mode::Vertical(offset) => {
                    let change = above(first) + i32::from(offset);
                    if change < place.max(0) {
                        return None;
                    }
                    place = change;
                    changes.add(place, self.width);
                }
                Mode::Horizontal => {
                    for _ in 0..2 {
                        place = place.max(0).checked_add(self.run(changes.is_black)?)?;
                        changes.add(place, self.width);
                    }
                }
                Mode::Extension | Mode::EOF => return None,
            }
        }
        Some(changes.places)
    }
}

/// The changes of a row so far, without those of runs of no length.
#[derive(Default)]
struct Changes {
    places: Vec<i32>,
    is_black: bool,
}

impl Changes {
    fn add(&mut self, place: i32, width: i32) {
        self.is_black = !self.is_black;
        if self.places.last() == Some(&place) {
            self.places.pop();
        } else if place < width {
            self.places.push(place);
        }
    }
}
