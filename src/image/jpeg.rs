//! The markers of a JPEG file: whether the last is there, and the metadata between them.
//!
//! A JPEG decoder fills what a cut-off file lacks with grey; Pillow refuses such a file, and so do we.

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

/// The metadata before the first scan. Of several EXIF segments, the first begins the block and the
/// others go on with it, as Pillow has it for blocks of more than 64 kB; of several XMP packets, the
/// last counts.
pub(super) fn metadata(file: &[u8]) -> Metadata<'_> {
    const APPLICATION_1: u8 = 0xE1;
    let mut metadata = Metadata::default();
    let mut position = 2;
    while let Some(marker) = next_marker(file, &mut position) {
        match marker {
            START_OF_SCAN => break,
            0x00 | 0x01 | 0xC8 | 0xD0..=0xD9 | 0xF0..=0xFD => continue, // without a length
            _ => {}
        }
        let Some(&[high, low]) = file.get(position..position + 2) else {
            break;
        };
        let end = position + usize::from(u16::from_be_bytes([high, low])).max(2);
        let Some(data) = file.get(position + 2..end) else {
            break;
        };
        position = end;
        if marker != APPLICATION_1 {
            continue;
        }
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
