//! Images and prompts.

use std::path::PathBuf;

use image::{ImageFormat, RgbImage};

use super::half;
use crate::cli_support::{
    BOAT, HOUSE, TINY, caption, caption_command, finish_with_stdin, plain_captions,
};

/// A folder of images, good and bad.
struct Images {
    folder: tempfile::TempDir,
}

impl Images {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn add(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }
}

/// A picture whose data is longer than its headers, in any format.
fn encoded(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let picture = RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 7 + y) as u8, (y * 5) as u8, (x ^ y) as u8])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG that says it is larger than it could be; its checksum is right.
fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = encoded(2, 2, ImageFormat::Png);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// The checksum of PNG's chunks (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1));
    !bytes
        .iter()
        .fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// One run over good and bad images in turn: the good ones are captioned in order, each bad one has its line.
#[test]
fn bad_images_are_named_and_the_others_done() {
    let tiff = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/images/files/rgb.tif"
    );
    let tiff = std::fs::read(tiff).unwrap();
    let images = Images::new();
    let picture = |format| encoded(40, 30, format);
    let mut damaged = picture(ImageFormat::Png);
    damaged[50] ^= 0xFF;
    let mut gif_bomb = picture(ImageFormat::Gif);
    gif_bomb[6..10].copy_from_slice(&[0xFF; 4]);
    let bad: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "text.jpg",
            b"I am no image.".to_vec(),
            &["not an image", "JPEG"],
        ),
        (
            "page.png",
            b"<!DOCTYPE html><html>".to_vec(),
            &["an HTML page is not read", "download the image itself"],
        ),
        ("empty.png", vec![], &["empty", "again"]),
        ("byte.png", vec![0x89], &["not an image"]),
        (
            "half.png",
            half(&picture(ImageFormat::Png)).to_vec(),
            &["PNG", "truncated", "again"],
        ),
        (
            "half.jpg",
            half(&picture(ImageFormat::Jpeg)).to_vec(),
            &["JPEG", "truncated", "again"],
        ),
        (
            "half.gif",
            half(&picture(ImageFormat::Gif)).to_vec(),
            &["GIF", "again"],
        ),
        (
            "half.bmp",
            half(&picture(ImageFormat::Bmp)).to_vec(),
            &["BMP", "truncated", "again"],
        ),
        ("half.tiff", half(&tiff).to_vec(), &["TIFF", "again"]),
        (
            "half.webp",
            half(&picture(ImageFormat::WebP)).to_vec(),
            &["WebP", "again"],
        ),
        (
            "half.qoi",
            half(&picture(ImageFormat::Qoi)).to_vec(),
            &["QOI", "again"],
        ),
        (
            "half.ppm",
            half(&picture(ImageFormat::Pnm)).to_vec(),
            &["PNM", "again"],
        ),
        (
            "head.png",
            picture(ImageFormat::Png)[..20].to_vec(),
            &["PNG", "truncated"],
        ),
        (
            "head.jpg",
            picture(ImageFormat::Jpeg)[..4].to_vec(),
            &["JPEG", "truncated"],
        ),
        ("damaged.png", damaged, &["PNG", "damaged"]),
        (
            "bomb.png",
            png_claiming(60_000, 60_000),
            &["60000x60000", "scale it down"],
        ),
        (
            "huge.png",
            png_claiming(2_000_000_000, 2_000_000_000),
            &["PNG"],
        ),
        ("bomb.gif", gif_bomb, &["65535x65535", "scale it down"]),
        (
            "bomb.ppm",
            b"P6 4000000000 4000000000 255\nxyz".to_vec(),
            &["bomb.ppm"],
        ),
        ("zero.png", png_claiming(0, 5), &["PNG"]),
    ];
    let mut arguments = vec![HOUSE.to_owned()];
    for (name, bytes, _) in &bad {
        arguments.push(images.add(name, bytes));
    }
    arguments.push(images.path("nowhere.png").display().to_string());
    arguments.push(BOAT.to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();

    let run = caption(TINY, &arguments).exits(1);
    let lines = run.json();
    for (line, expected) in lines.iter().zip(plain_captions()) {
        assert_eq!(line["image"], expected["image"]);
        assert_eq!(line["tokens"], expected["tokens"]);
    }
    assert_eq!(lines.len(), 2, "{run:#?}");
    assert_eq!(run.stderr.len(), bad.len() + 1, "{run:#?}");
    let missing = ("nowhere.png", &["no such file"][..]);
    let bad = bad.iter().map(|(name, _, parts)| (*name, *parts));
    for (name, parts) in bad.chain([missing]) {
        let start = format!("error: {}: ", images.path(name).display());
        let mut errors = run.stderr.iter().filter(|line| line.starts_with(&start));
        let error = errors.next().unwrap_or_else(|| panic!("{name}: {run:#?}"));
        assert!(errors.next().is_none(), "{name} twice: {run:#?}");
        assert!(error.contains("; "), "no remedy: {error}");
        for part in parts {
            assert!(error.contains(part), "{part:?} is missing: {error}");
        }
    }
}

#[test]
fn odd_sizes_are_captioned() {
    let images = Images::new();
    let sizes = [(1, 1), (20_000, 10), (10, 20_000), (1, 500), (43, 41)];
    let arguments: Vec<String> = sizes
        .iter()
        .map(|&(width, height)| {
            let bytes = encoded(width, height, ImageFormat::Png);
            images.add(&format!("{width}x{height}.png"), bytes)
        })
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let lines = caption(TINY, &arguments).exits(0).json();
    assert_eq!(lines.len(), sizes.len());
    for (line, name) in lines.iter().zip(&arguments) {
        assert_eq!(line["image"], *name);
        assert!(line["num_tokens"].as_u64() > Some(0));
    }
}

#[test]
fn folders_and_patterns_without_images() {
    let images = Images::new();
    images.add("notes.txt", "no image");
    let folder = images.folder.path().display().to_string();
    let pattern = images.path("*.png").display().to_string();
    let broken = images.path("[").display().to_string();
    let run = caption(TINY, &[&folder, HOUSE, &pattern, &broken]).exits(1);
    assert_eq!(run.one_json()["image"], HOUSE);
    let run = run.says(&[
        "the folder has no images (1 .txt)",
        "no image matches",
        "valid pattern",
    ]);
    assert_eq!(run.stderr.len(), 3, "{run:#?}");
    // Nothing left to do, and no model loaded for it.
    let run = caption(TINY, &[&folder]).exits(1).one_error(&[&folder]);
    assert!(run.stdout.is_empty());
}

#[cfg(unix)]
#[test]
fn folders_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let images = Images::new();
    let locked = images.path("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::read_dir(&locked).is_ok() {
        eprintln!("skipped: this user may read every folder");
        return;
    }
    let locked = locked.display().to_string();
    let run = caption(TINY, &[&locked, HOUSE]).exits(1);
    run.one_json();
    run.one_error(&[&locked, "permissions"]);
}

#[cfg(unix)]
#[test]
fn odd_names_keep_an_error_on_one_line() {
    use std::os::unix::ffi::OsStrExt;
    let images = Images::new();
    let two_lines = images.path("two\nlines\u{1b}[31m.png");
    std::fs::write(&two_lines, "no image").unwrap();
    let two_lines = two_lines.display().to_string();
    caption(TINY, &[&two_lines])
        .exits(1)
        .one_error(&["two lines", "not an image"]);
    let mut command = caption_command(TINY, &[]);
    command.arg(std::ffi::OsStr::from_bytes(b"/nowhere/\xFF.png"));
    let run = crate::cli_support::finish(command).exits(1);
    run.one_error(&["no such file"]);
}

#[test]
fn bad_standard_input() {
    let run = finish_with_stdin(caption_command(TINY, &["-", HOUSE]), b"no image");
    assert_eq!(run.one_json()["image"], HOUSE);
    run.exits(1).one_error(&["error: -: ", "not an image"]);
    caption(TINY, &["-"])
        .exits(1)
        .one_error(&["error: -: ", "empty"]);
    let image = std::fs::read(BOAT).unwrap();
    let run = finish_with_stdin(caption_command(TINY, &["-", "-"]), &image);
    assert_eq!(run.one_json()["image"], "-");
    run.exits(1).one_error(&["error: -: ", "only once"]);
}

// --- prompts ---

#[test]
fn odd_prompts() {
    for prompt in [
        "🐱 日本\u{200d}🏽 a\u{0301}\u{fffd}\n\t",
        "</s><image><pad>",
    ] {
        caption(TINY, &["--prompt", prompt, HOUSE])
            .exits(0)
            .one_json();
    }
    let long = "word ".repeat(2000);
    let run = caption(TINY, &["--prompt", &long, HOUSE]).exits(1);
    assert!(run.stdout.is_empty(), "{run:#?}");
    run.one_error(&["positions", "64", "shorten the prompt"]);
}

// --- checkpoints ---
