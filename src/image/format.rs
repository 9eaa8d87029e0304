//! What a file is, by its first bytes: an image that is read here, or what else, by name.

use image::ImageFormat;

use super::ImageError;

/// The first bytes of a file that are looked at.
pub(super) const HEAD_BYTES: usize = 1024;

/// The formats that are read, as users know them, and how their files begin.
const READ: [(&[u8], ImageFormat); 20] = [
    (b"\x89PNG\r\n\x1a\n", ImageFormat::Png),
    (b"\xFF\xD8\xFF", ImageFormat::Jpeg),
    (b"GIF87a", ImageFormat::Gif),
    (b"GIF89a", ImageFormat::Gif),
    (b"RIFF....WEBP", ImageFormat::WebP),
    (b"BM", ImageFormat::Bmp),
    (b"II*\0", ImageFormat::Tiff),
    (b"MM\0*", ImageFormat::Tiff),
    // Byte orders mixed up, which Pillow reads by the letters.
    (b"II\0*", ImageFormat::Tiff),
    (b"MM*\0", ImageFormat::Tiff),
    // BigTIFF.
    (b"II+\0", ImageFormat::Tiff),
    (b"MM\0+", ImageFormat::Tiff),
    (b"qoif", ImageFormat::Qoi),
    (b"P1", ImageFormat::Pnm),
    (b"P2", ImageFormat::Pnm),
    (b"P3", ImageFormat::Pnm),
    (b"P4", ImageFormat::Pnm),
    (b"P5", ImageFormat::Pnm),
    (b"P6", ImageFormat::Pnm),
    (b"P7", ImageFormat::Pnm),
];

/// What is told to do about a format that is not read.
mod remedy {
    pub const CONVERT: &str = "convert it to PNG or JPEG";
    pub const RENDER: &str = "render it as PNG";
    pub const FRAMES: &str =
        "save its frames as images, as `ffmpeg -i FILE -vf fps=1 frame%04d.png` does";
    pub const UNPACK: &str = "unpack it and give the images in it";
    pub const NO_IMAGE: &str = "give an image file";
    pub const PAGE: &str = "a server sends pages where an image is missing or wants a login; download the image itself";
    pub const LFS: &str = "run `git lfs pull`, which puts the file itself in its place";
}

/// Formats that are not read: how their files begin, name and remedy. A dot stands for any byte.
const FOREIGN: [(&[u8], &str, &str); 61] = [
    (
        b"\x28\0\0\0........\x01\0",
        "a bitmap without the file's header (DIB)",
        remedy::CONVERT,
    ),
    (b"....ftypavif", "AVIF", remedy::CONVERT),
    (b"....ftypavis", "AVIF", remedy::CONVERT),
    (b"....ftyphei", "HEIC", remedy::CONVERT),
    (b"....ftyphev", "HEIC", remedy::CONVERT),
    (b"....ftypmif1", "HEIF", remedy::CONVERT),
    (b"....ftypmsf1", "HEIF", remedy::CONVERT),
    (b"....ftypcrx", "Canon raw (CR3)", remedy::CONVERT),
    (b"....ftypqt", "QuickTime video", remedy::FRAMES),
    (b"....ftypM4A", "MPEG-4 audio", remedy::NO_IMAGE),
    (b"....ftyp", "MPEG-4 video", remedy::FRAMES),
    (b"....moov", "QuickTime video", remedy::FRAMES),
    (b"....mdat", "QuickTime video", remedy::FRAMES),
    (b"\xFF\x0A", "JPEG XL", remedy::CONVERT),
    (b"\0\0\0\x0CJXL \r\n\x87\n", "JPEG XL", remedy::CONVERT),
    (b"\0\0\0\x0CjP  \r\n\x87\n", "JPEG 2000", remedy::CONVERT),
    (b"\xFF\x4F\xFF\x51", "JPEG 2000", remedy::CONVERT),
    (b"8BPS", "Photoshop (PSD)", remedy::CONVERT),
    (b"gimp xcf", "GIMP (XCF)", remedy::CONVERT),
    (b"\0\0\x01\0", "ICO", remedy::CONVERT),
    (b"\0\0\x02\0", "CUR", remedy::CONVERT),
    (b"icns", "ICNS", remedy::CONVERT),
    (b"DDS ", "DDS", remedy::CONVERT),
    (b"\x76\x2F\x31\x01", "OpenEXR", remedy::CONVERT),
    (b"#?RADIANCE", "Radiance HDR", remedy::CONVERT),
    (b"#?RGBE", "Radiance HDR", remedy::CONVERT),
    (b"farbfeld", "farbfeld", remedy::CONVERT),
    (b"Pf\n", "PFM", remedy::CONVERT),
    (b"PF\n", "PFM", remedy::CONVERT),
    (b"SIMPLE  =", "FITS", remedy::CONVERT),
    (b"AT&TFORM", "DjVu", remedy::RENDER),
    (b"FUJIFILMCCD-RAW", "Fujifilm raw", remedy::CONVERT),
    (b"IIU\0", "Panasonic raw", remedy::CONVERT),
    (b"IIRO", "Olympus raw", remedy::CONVERT),
    (b"II\xBC\x01", "JPEG XR", remedy::CONVERT),
    (b"%PDF", "PDF", remedy::RENDER),
    (b"%!PS", "PostScript", remedy::RENDER),
    (b"\xC5\xD0\xD3\xC6", "PostScript", remedy::RENDER),
    (b"RIFF....AVI ", "AVI video", remedy::FRAMES),
    (b"RIFF....WAVE", "WAV audio", remedy::NO_IMAGE),
    (
        b"\x1A\x45\xDF\xA3",
        "Matroska or WebM video",
        remedy::FRAMES,
    ),
    (b"\0\0\x01\xBA", "MPEG video", remedy::FRAMES),
    (b"\0\0\x01\xB3", "MPEG video", remedy::FRAMES),
    (b"FLV\x01", "Flash video", remedy::FRAMES),
    (b"\x30\x26\xB2\x75", "Windows Media", remedy::FRAMES),
    (b"OggS", "Ogg", remedy::NO_IMAGE),
    (b"ID3", "MP3 audio", remedy::NO_IMAGE),
    (b"fLaC", "FLAC audio", remedy::NO_IMAGE),
    (b"PK\x03\x04", "a ZIP archive", remedy::UNPACK),
    (b"PK\x05\x06", "a ZIP archive", remedy::UNPACK),
    (b"\x1F\x8B", "a gzip file", remedy::UNPACK),
    (b"BZh", "a bzip2 file", remedy::UNPACK),
    (b"\xFD7zXZ\0", "an xz file", remedy::UNPACK),
    (b"\x28\xB5\x2F\xFD", "a zstd file", remedy::UNPACK),
    (b"7z\xBC\xAF\x27\x1C", "a 7z archive", remedy::UNPACK),
    (b"Rar!\x1A\x07", "a RAR archive", remedy::UNPACK),
    (b"\x93NUMPY", "a NumPy array", remedy::CONVERT),
    (b"\x89HDF\r\n\x1A\n", "HDF5", remedy::CONVERT),
    (b"PAR1", "Parquet", remedy::UNPACK),
    (b"\x7FELF", "a program", remedy::NO_IMAGE),
    (b"version https://git-lfs", "a Git LFS pointer", remedy::LFS),
];

/// The format of a file that begins with `head`: its first [`HEAD_BYTES`], or all of it.
///
/// # Errors
/// An empty file, and everything that is no image of a format read here.
pub(super) fn recognise(head: &[u8], name: &str) -> Result<ImageFormat, ImageError> {
    let name = || name.to_owned();
    if head.is_empty() {
        return Err(ImageError::Empty { name: name() });
    }
    if let Some((kind, remedy)) = foreign_below_a_known_start(head) {
        let name = name();
        return Err(ImageError::Foreign { name, kind, remedy });
    }
    let read = READ.iter().find(|(start, _)| starts_with(head, start));
    if let Some((_, format)) = read {
        return Ok(*format);
    }
    let foreign = FOREIGN.iter().find(|(start, ..)| starts_with(head, start));
    let foreign = foreign.map(|&(_, kind, remedy)| (kind, remedy));
    Err(match foreign.or_else(|| foreign_within(head)) {
        Some((kind, remedy)) => ImageError::Foreign {
            name: name(),
            kind,
            remedy,
        },
        None => ImageError::UnknownFormat { name: name() },
    })
}

/// Canon's older raw files begin as TIFF does; in them is a thumbnail.
fn foreign_below_a_known_start(head: &[u8]) -> Option<(&'static str, &'static str)> {
    (head.starts_with(b"II*\0") && head.get(8..10) == Some(b"CR"))
        .then_some(("Canon raw (CR2)", remedy::CONVERT))
}

/// What is known by more than its first bytes: texts, and the two formats that are marked later.
fn foreign_within(head: &[u8]) -> Option<(&'static str, &'static str)> {
    if head.get(257..262) == Some(b"ustar") {
        return Some(("a tar archive", remedy::UNPACK));
    }
    if head.get(128..132) == Some(b"DICM") {
        return Some(("DICOM", remedy::CONVERT));
    }
    let text = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head);
    let text = text.trim_ascii_start().to_ascii_lowercase();
    let has = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
    if text.starts_with(b"<!doctype html") || text.starts_with(b"<html") {
        return Some(("an HTML page", remedy::PAGE));
    }
    if text.starts_with(b"<") && has(b"<svg") {
        return Some(("SVG", remedy::RENDER));
    }
    if text.starts_with(b"<") && has(b"<html") {
        return Some(("an HTML page", remedy::PAGE));
    }
    if text.starts_with(b"<?xml") {
        return Some(("XML", remedy::PAGE));
    }
    let is_json = matches!(text.split_first(), Some((b'{' | b'[', rest))
        if matches!(rest.trim_ascii_start().first(), Some(b'"' | b'{' | b'[' | b'}' | b']')));
    is_json.then_some(("JSON", remedy::NO_IMAGE))
}

/// Whether `head` begins with `start`, in which a dot stands for any byte.
fn starts_with(head: &[u8], start: &[u8]) -> bool {
    head.len() >= start.len()
        && start
            .iter()
            .zip(head)
            .all(|(wanted, byte)| wanted == byte || *wanted == b'.')
}

/// The name users know a format by; `None` for formats that are not built in.
pub(super) fn format_name(format: ImageFormat) -> Option<&'static str> {
    Some(match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        ImageFormat::Qoi => "QOI",
        ImageFormat::Pnm => "PNM",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(head: &[u8]) -> String {
        recognise(head, "photo").unwrap_err().to_string()
    }

    #[test]
    fn what_is_read() {
        assert_eq!(recognise(b"MM\0+", "").unwrap(), ImageFormat::Tiff);
        assert_eq!(
            recognise(b"RIFF\x04\0\0\0WEBP", "").unwrap(),
            ImageFormat::WebP
        );
        for (start, format) in READ {
            assert_eq!(recognise(start, "").unwrap(), format);
            let cut = recognise(&start[..start.len() - 1], "");
            assert!(cut.is_err(), "{start:?}");
        }
    }

    #[test]
    fn what_is_not_read_is_named() {
        for (head, expected) in [
            (
                &b"\0\0\0\x1Cftypavif\0\0\0\0"[..],
                "photo: AVIF is not read; convert it to PNG or JPEG",
            ),
            (
                b"\0\0\0\x18ftypheic\0\0\0\0",
                "photo: HEIC is not read; convert it to PNG or JPEG",
            ),
            (
                b"\0\0\0\x18ftypmp42\0\0\0\0",
                "photo: MPEG-4 video is not read; save its frames",
            ),
            (b"\0\0\0\x14ftypqt  ", "photo: QuickTime video is not read"),
            (b"%PDF-1.7\n", "photo: PDF is not read; render it as PNG"),
            (
                b"\xEF\xBB\xBF \n<!DOCTYPE HTML PUBLIC",
                "photo: an HTML page is not read; a server",
            ),
            (
                b"<?xml version='1.0'?><!-- x --><svg width='1'>",
                "photo: SVG is not read; render it",
            ),
            (
                b"<?xml version='1.0'?><Error><Code>AccessDenied",
                "photo: XML is not read; a server",
            ),
            (b"{\n \"error\": 404}", "photo: JSON is not read; give"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
                "photo: a Git LFS pointer is not read; run `git lfs pull`",
            ),
            (b"II*\0\x10\0\0\0CR\x02\0", "photo: Canon raw (CR2) is not"),
            (
                &[&[0; 128][..], b"DICM"].concat(),
                "photo: DICOM is not read",
            ),
        ] {
            let message = message(head);
            assert!(message.starts_with(expected), "{message}");
        }
        for (start, kind, remedy) in FOREIGN {
            let message = message(start);
            assert!(message.contains(kind) && message.ends_with(remedy));
        }
    }

    #[test]
    fn the_rest_is_unknown() {
        for head in [
            &b"BLIP-2 reads images\n"[..],
            b"\x89PN",
            &[0; 99],
            b"<",
            b"{",
        ] {
            assert!(message(head).contains("not an image this program knows"));
        }
        assert!(message(b"").contains("the file is empty"));
    }
}
