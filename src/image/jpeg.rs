//! The markers of a JPEG file: whether the last is there, the metadata between them, and what they say
//! of the colours.
//!
//! A JPEG decoder fills what a cut-off file lacks with grey; Pillow refuses such a file, and so do we.

use std::borrow::Cow;

use super::orientation::Metadata;

const START_OF_SCAN: u8 = 0xDA;

/// Walks the segments to the end-of-image marker.
///
/// # Errors
/// Says where the data ended when the marker is never reached.
pub(super) fn check_complete(file: &[u8]) -> Result<(), String> {
    const END_OF_IMAGE: u8 = 0xD9;
    let mut position = 2; // after the start-of-image marker
    while let Some(marker) = next_marker(file, &mut position) {
        match marker {
            END_OF_IMAGE => return Ok(()),
            0x01 | 0xD0..=0xD8 => {} // markers without a length
            _ => {
                let Some(&[high, low]) = file.get(position..position + 2) else {
                    break;
                };
                position += usize::from(u16::from_be_bytes([high, low])).max(2);
                if marker == START_OF_SCAN {
                    skip_scan(file, &mut position);
                }
            }
        }
    }
    Err("it ends before the end-of-image marker".into())
}

/// The segments that have a length: marker, where the data begins, and the data.
struct Segments<'a> {
    file: &'a [u8],
    position: usize,
}

fn segments(file: &[u8]) -> Segments<'_> {
    Segments { file, position: 2 }
}

impl<'a> Iterator for Segments<'a> {
    type Item = (u8, usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let marker = next_marker(self.file, &mut self.position)?;
            if matches!(marker, 0x00 | 0x01 | 0xC8 | 0xD0..=0xD9 | 0xF0..=0xFD) {
                continue; // without a length
            }
            let start = self.position + 2;
            let length = self.file.get(self.position..start)?;
            let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
            let data = self.file.get(start..self.position + length.max(2))?;
            self.position = start + data.len();
            if marker == START_OF_SCAN {
                skip_scan(self.file, &mut self.position);
            }
            return Some((marker, start, data));
        }
    }
}

/// The metadata before the first scan. Of several EXIF segments, the first begins the block and the
/// others go on with it, as Pillow has it for blocks of more than 64 kB; of several XMP packets, the
/// last counts.
pub(super) fn metadata(file: &[u8]) -> Metadata<'_> {
    const APPLICATION_1: u8 = 0xE1;
    let mut metadata = Metadata::default();
    let header = segments(file).take_while(|(marker, ..)| *marker != START_OF_SCAN);
    for (_, _, data) in header.filter(|(marker, ..)| *marker == APPLICATION_1) {
        if let Some(exif) = data.strip_prefix(b"Exif\0\0") {
            match &mut metadata.exif {
                Some(begun) => begun.to_mut().extend(exif),
                None => metadata.exif = Some(data.into()),
            }
        } else if let Some(packet) = data.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            metadata.xmp = Some(packet.into());
        }
    }
    metadata
}

/// What the samples of a file mean where its markers and the names of its components disagree: libjpeg
/// believes JFIF's marker first, then the last of Adobe's, then the names; zune-jpeg the names first.
/// Where that makes a difference, a copy comes back in which they all say what libjpeg would say.
pub(super) fn with_libjpeg_colours(file: &[u8]) -> Cow<'_, [u8]> {
    let mut has_jfif = false;
    let mut adobe = Vec::new(); // where Adobe's markers tell the transform
    let mut names = Vec::new(); // where the frame names its components
    let header = segments(file).take_while(|(marker, ..)| *marker != START_OF_SCAN);
    for (marker, start, data) in header {
        match marker {
            0xE0 if data.len() >= 14 && data.starts_with(b"JFIF\0") => has_jfif = true,
            0xEE if data.len() >= 12 && data.starts_with(b"Adobe") => adobe.push(start + 11),
            0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF if data.len() > 5 => {
                let components = usize::from(data[5]).min((data.len() - 6) / 3);
                names = (0..components).map(|index| start + 6 + 3 * index).collect();
            }
            _ => {}
        }
    }
    let transform = adobe.last().map(|&place| file[place]);
    let are_letters = names.iter().map(|&place| file[place]).eq(*b"RGB");
    let wanted = match (names.len(), has_jfif, transform) {
        (3, false, Some(0)) => return file.into(),
        (3, false, None) if are_letters => return file.into(),
        (3, ..) if are_letters || !matches!(transform, None | Some(1)) => 1,
        (4, _, Some(1 | 3..)) => 2,
        _ => return file.into(),
    };
    let mut copy = file.to_vec();
    adobe.iter().for_each(|&place| copy[place] = wanted);
    if are_letters {
        let number = |letter| b"RGB".iter().position(|name| *name == letter);
        let scans = segments(file).filter(|(marker, ..)| *marker == START_OF_SCAN);
        let scans = scans.flat_map(|(_, start, data)| {
            let components = data.first().map_or(0, |&count| usize::from(count));
            (0..components.min(data.len() / 2)).map(move |index| start + 1 + 2 * index)
        });
        for place in names.into_iter().chain(scans) {
            if let Some(number) = number(copy[place]) {
                copy[place] = number as u8 + 1;
            }
        }
    }
    copy.into()
}

/// Moves past the next marker and returns it; bytes before it are skipped, as libjpeg does.
fn next_marker(file: &[u8], position: &mut usize) -> Option<u8> {
    let start = *position
        + file
            .get(*position..)?
            .iter()
            .position(|&byte| byte == 0xFF)?;
    let offset = file[start..].iter().position(|&byte| byte != 0xFF)?;
    *position = start + offset + 1;
    Some(file[start + offset])
}

/// Moves to the marker that ends the entropy-coded data: one that is neither a stuffed zero nor a restart.
fn skip_scan(file: &[u8], position: &mut usize) {
    while let Some(found) = file
        .get(*position..)
        .and_then(|rest| rest.iter().position(|&byte| byte == 0xFF))
    {
        *position += found;
        match file.get(*position + 1) {
            Some(0x00 | 0xD0..=0xD7) => *position += 2,
            Some(0xFF) => *position += 1,
            _ => return,
        }
    }
    *position = file.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scan with a stuffed zero, a restart marker and a fill byte, between a comment and the end.
    const FILE: [u8; 23] = [
        0xFF, 0xD8, 0xFF, 0xFE, 0, 4, 0xFF, 0xD9, 0xFF, 0xDA, 0, 3, 1, 7, 0xFF, 0, 8, 0xFF, 0xD0,
        9, 0xFF, 0xFF, 0xD9,
    ];

    #[test]
    fn complete() {
        assert_eq!(check_complete(&FILE), Ok(()));
        assert_eq!(check_complete(&[&FILE[..], b"trailing"].concat()), Ok(()));
    }

    #[test]
    fn every_cut_is_noticed() {
        for length in 2..FILE.len() {
            assert!(check_complete(&FILE[..length]).is_err(), "{length}");
        }
    }
}
