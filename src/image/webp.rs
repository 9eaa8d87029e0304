//! Points in which libwebp, and so Pillow, differs from the `image` crate.

use std::borrow::Cow;

use super::orientation::Metadata;

const RIFF_HEADER: usize = 12;

const CHUNK_HEADER: usize = 8;

/// libwebp refuses a file that ends before the end which its RIFF header announces, even if the first
/// frame is there.
///
/// # Errors
/// Says how much is missing.
pub(super) fn check_complete(file: &[u8]) -> Result<(), String> {
    let Some((_, size)) = chunk_header(file, 0) else {
        return Err("it ends within its header".into());
    };
    match size.saturating_add(CHUNK_HEADER).checked_sub(file.len()) {
        Some(missing) if missing > 0 => Err(format!("{missing} bytes are missing")),
        _ => Ok(()),
    }
}

/// libwebp writes the first frame onto the empty canvas as it is, whatever its blending flag says; the
/// `image` crate would blend, which loses the colours under transparent pixels and rounds the others.
/// Sets the "do not blend" bit of the first frame, in a copy; a still image comes back untouched.
pub(super) fn without_first_blend(file: &[u8]) -> Cow<'_, [u8]> {
    const FRAME_FLAGS: usize = 15; // after five 3-byte numbers: x, y, width, height, duration
    const DO_NOT_BLEND: u8 = 0b10;
    let mut position = RIFF_HEADER;
    while let Some((kind, size)) = chunk_header(file, position) {
        let flags = position + CHUNK_HEADER + FRAME_FLAGS;
        if kind == *b"ANMF" && flags < file.len() {
            let mut copy = file.to_vec();
            copy[flags] |= DO_NOT_BLEND;
            return Cow::Owned(copy);
        }
        let padded = size.saturating_add(size & 1);
        position = position.saturating_add(CHUNK_HEADER).saturating_add(padded);
    }
    Cow::Borrowed(file)
}

/// The first EXIF and the first XMP chunk of an extended file, where its header announces them.
pub(super) fn metadata(file: &[u8]) -> Metadata<'_> {
    const XMP_FLAG: u8 = 0b100;
    const EXIF_FLAG: u8 = 0b1000;
    let mut metadata = Metadata::default();
    let Some(&flags) = file.get(RIFF_HEADER + CHUNK_HEADER) else {
        return metadata;
    };
    let end = chunk_header(file, 0).map_or(0, |(_, size)| size.saturating_add(CHUNK_HEADER));
    let file = file.get(..end).unwrap_or(file);
    if file.get(RIFF_HEADER..RIFF_HEADER + 4) != Some(b"VP8X") {
        return metadata;
    }
    let mut position = RIFF_HEADER;
    while let Some((kind, size)) = chunk_header(file, position) {
        let start = position + CHUNK_HEADER;
        let data = file.get(start..start.saturating_add(size));
        let place = match &kind {
            b"EXIF" if flags & EXIF_FLAG != 0 => Some(&mut metadata.exif),
            b"XMP " if flags & XMP_FLAG != 0 => Some(&mut metadata.xmp),
            _ => None,
        };
        if let (Some(place @ None), Some(data)) = (place, data) {
            *place = Some(data.into());
        }
        position = start.saturating_add(size.saturating_add(size & 1));
    }
    metadata
}

fn chunk_header(file: &[u8], position: usize) -> Option<([u8; 4], usize)> {
    let (kind, rest) = file.get(position..)?.split_first_chunk::<4>()?;
    let (size, _) = rest.split_first_chunk::<4>()?;
    Some((*kind, u32::from_le_bytes(*size) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announced_end_counts() {
        assert_eq!(check_complete(b"RIFF\x04\0\0\0WEBP"), Ok(()));
        assert_eq!(check_complete(b"RIFF\x04\0\0\0WEBP trailing"), Ok(()));
        assert!(check_complete(b"RIFF\x06\0\0\0WEBP").is_err());
        assert!(check_complete(b"RIFF\xFF\xFF\xFF\xFFWEBP").is_err());
        assert!(check_complete(b"RIFF").is_err());
    }

    #[test]
    fn only_the_first_frame_changes() {
        let frame = [b"ANMF\x10\0\0\0", &[0; 16][..]].concat();
        let file = [b"RIFF\0\0\0\0WEBPVP8X\x01\0\0\0\x02\0", &frame[..], &frame].concat();
        let changed = without_first_blend(&file);
        let differing: Vec<usize> = (0..file.len()).filter(|&i| file[i] != changed[i]).collect();
        assert_eq!(differing, [22 + 8 + 15]);
        for length in 0..file.len() {
            assert_eq!(without_first_blend(&file[..length]).len(), length);
        }
    }
}
