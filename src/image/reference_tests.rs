//! Compares with what Pillow and transformers gave: always with the tiny files of `tests/data/images`,
//! and with the folder that the environment variable `BLIP2_WGPU_IMAGE_REFERENCE` names, if it is set.
//! `tests/data/images/reference.py` makes such folders.

use std::path::{Path, PathBuf};

use super::*;

/// One line of the index.
struct Line {
    path: PathBuf,
    kind: String,
    width: u32,
    height: u32,
    offset: usize,
    mode: String,
    error: String,
}

struct Reference {
    lines: Vec<Line>,
    bytes: Vec<u8>,
}

impl Reference {
    fn read(folder: &Path) -> Self {
        let index = std::fs::read_to_string(folder.join("index.tsv")).unwrap();
        let line = |line: &str| {
            let fields: Vec<&str> = line.split('\t').collect();
            Line {
                path: folder.join(fields[0]),
                kind: fields[1].into(),
                width: fields[2].parse().unwrap(),
                height: fields[3].parse().unwrap(),
                offset: fields[4].parse().unwrap(),
                mode: fields[5].into(),
                error: fields[6].into(),
            }
        };
        Self {
            lines: index.lines().map(line).collect(),
            bytes: std::fs::read(folder.join("reference.bin")).unwrap(),
        }
    }

    fn all() -> Vec<Self> {
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
        let mut all = vec![Self::read(&committed)];
        match std::env::var_os("BLIP2_WGPU_IMAGE_REFERENCE") {
            Some(folder) => all.push(Self::read(Path::new(&folder))),
            None => println!("only the committed files: BLIP2_WGPU_IMAGE_REFERENCE is not set"),
        }
        all
    }

    fn data(&self, line: &Line, bytes_per_sample: usize) -> &[u8] {
        let length = (line.width * line.height * 3) as usize * bytes_per_sample;
        &self.bytes[line.offset..line.offset + length]
    }

    /// Pillow's own "hf" pixels of the file that `line` is about.
    fn pixels(&self, line: &Line) -> Rgb8Image {
        let same = |other: &&Line| other.kind == "hf" && other.path == line.path;
        let line = self.lines.iter().find(same).unwrap();
        Rgb8Image::new(line.width, line.height, self.data(line, 1).to_vec()).unwrap()
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |line| line.kind == kind)
    }
}

/// Largest and mean absolute difference.
fn difference(ours: &[u8], theirs: &[u8]) -> (u8, f64) {
    assert_eq!(ours.len(), theirs.len());
    let differences = || ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences().map(u64::from).sum();
    let mean = sum as f64 / ours.len() as f64;
    (differences().max().unwrap_or(0), mean)
}

/// The bound on the (largest, mean) difference of decoded pixels; `decode` documents that of JPEG.
fn bound(path: &Path) -> (u8, f64) {
    let file = std::fs::read(path).unwrap();
    match file.starts_with(&[0xFF, 0xD8]) {
        true => (5, 0.35),
        false => (0, 0.0),
    }
}

#[test]
fn decoded_pixels() {
    let mut failures = Vec::new();
    for reference in Reference::all() {
        for (kind, policy) in [
            ("hf", DecodePolicy::hf()),
            ("lavis", DecodePolicy::lavis()),
            ("mmpretrain", DecodePolicy::mmpretrain()),
        ] {
            for line in reference.of_kind(kind) {
                let label = format!("{} [{}] {kind}", line.path.display(), line.mode);
                match decode_file(&line.path, policy) {
                    Err(error) if line.error.is_empty() => {
                        failures.push(format!("{label}: {error}"))
                    }
                    Err(error) => println!("{label}: both refuse: {error} | {}", line.error),
                    Ok(_) if !line.error.is_empty() => {
                        println!("{label}: only we read it: {}", line.error)
                    }
                    Ok(ours) if (ours.width, ours.height) != (line.width, line.height) => {
                        failures.push(format!("{label}: {}x{}", ours.width, ours.height));
                    }
                    Ok(ours) => {
                        let (max, mean) = difference(&ours.data, reference.data(line, 1));
                        let bound = bound(&line.path);
                        if max > bound.0 || mean > bound.1 {
                            failures.push(format!("{label}: max {max} mean {mean:.4}"));
                        } else if max > 0 {
                            println!("{label}: max {max} mean {mean:.4}");
                        }
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn resized_pixels_are_equal() {
    let mut compared = 0;
    for reference in Reference::all() {
        for line in reference.of_kind("resized") {
            let ours = resize_bicubic(&reference.pixels(line), line.width, line.height);
            let (max, _) = difference(&ours.data, reference.data(line, 1));
            let (path, width, height) = (line.path.display(), line.width, line.height);
            assert_eq!(max, 0, "{path} to {width}x{height}");
            compared += 1;
        }
    }
    println!("{compared} resized images are equal");
    assert!(compared > 100);
}

#[test]
fn tensors_are_equal() {
    let mut compared = 0;
    for reference in Reference::all() {
        for line in reference.of_kind("tensor") {
            let preprocessor = Preprocessor::blip2(line.width).unwrap();
            let ours = preprocessor.apply(&reference.pixels(line)).unwrap();
            let theirs = groups::<_, 4>(reference.data(line, 4));
            let theirs: Vec<f32> = theirs
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect();
            assert!(ours == theirs, "{}", line.path.display());
            compared += 1;
        }
    }
    println!("{compared} tensors are equal");
    assert!(compared > 40);
}

/// How much of the decoder's difference reaches the model: tensors from our own decoding.
#[test]
fn tensors_from_files_are_close() {
    let mut worst = (0f32, 0f64);
    for reference in Reference::all() {
        for line in reference.of_kind("tensor") {
            let image = decode_file(&line.path, DecodePolicy::hf()).unwrap();
            let ours = Preprocessor::blip2(line.width)
                .unwrap()
                .apply(&image)
                .unwrap();
            let theirs = groups::<_, 4>(reference.data(line, 4));
            let theirs = theirs.iter().map(|bytes| f32::from_le_bytes(*bytes));
            let differences: Vec<f32> = ours
                .iter()
                .zip(theirs)
                .map(|(a, b)| (a - b).abs())
                .collect();
            let max = differences.iter().copied().fold(0.0, f32::max);
            let mean =
                differences.iter().copied().map(f64::from).sum::<f64>() / differences.len() as f64;
            if max > 0.0 {
                println!(
                    "{}: tensor max {max:.4} mean {mean:.5}",
                    line.path.display()
                );
            }
            worst = (worst.0.max(max), worst.1.max(mean));
        }
    }
    println!("worst: max {:.4} mean {:.5}", worst.0, worst.1);
    assert!(worst.0 < 0.1 && worst.1 < 0.01);
}

/// Orientation in every place and kind of value, as `tests/data/images/make_metadata.py` made them.
#[test]
fn turned_as_pillow_turns() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images/metadata");
    let files = std::fs::read(folder.join("files.bin")).unwrap();
    let expected = std::fs::read_to_string(folder.join("expected.tsv")).unwrap();
    let mut rest = files.as_slice();
    let mut failures = Vec::new();
    for line in expected.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let (name, number): (_, u8) = (fields[0], fields[2].parse().unwrap());
        let file = rest.split_off(..fields[1].parse().unwrap()).unwrap();
        // Pillow refuses three files (0); here two of them are as if they had no metadata.
        let image = match decode(file, name, DecodePolicy::hf()) {
            Ok(image) => image,
            Err(_) if number == 0 => continue,
            Err(error) => panic!("{error}"),
        };
        let format = format::recognise(file, name).unwrap();
        let turn = orientation::read(file, format);
        if turn.to_exif() != number.max(1) {
            failures.push(format!("{name}: {turn:?} instead of {number}"));
        } else if image.width != image.height {
            assert_eq!(image.width > image.height, number > 4, "{name}");
        }
    }
    assert!(rest.is_empty());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every kind of TIFF image with a byte changed or the end cut off: an image or an error.
#[test]
fn no_damaged_tiff_is_a_panic() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images/tiffs");
    let mut files = unpacked(&folder.join("files.bin.gz"));
    let index = std::fs::read_to_string(folder.join("index.tsv")).unwrap();
    let mut rest = files.as_mut_slice();
    for (number, line) in index.lines().enumerate() {
        let length = line.split('\t').nth(1).unwrap().parse().unwrap();
        let file = rest.split_off_mut(..length).unwrap();
        for position in (number % 5..length).step_by(5) {
            let before = file[position];
            for byte in [before ^ 0x55, 0, 255] {
                file[position] = byte;
                let _ = decode(file, "damaged", DecodePolicy::hf());
            }
            file[position] = before;
            let _ = decode(&file[..position], "cut", DecodePolicy::hf());
        }
    }
}

fn unpacked(file: &Path) -> Vec<u8> {
    let packed = std::fs::read(file).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*packed), &mut bytes).unwrap();
    bytes
}

/// TIFF images of every kind, as `tests/data/images/make_tiffs.py` made them: equal to Pillow's, or
/// refused.
#[test]
fn tiffs_as_pillow_reads_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images/tiffs");
    let files = unpacked(&folder.join("files.bin.gz"));
    let pixels = unpacked(&folder.join("expected.bin.gz"));
    let index = std::fs::read_to_string(folder.join("index.tsv")).unwrap();
    let mut rest = files.as_slice();
    let mut failures = Vec::new();
    // `decode` documents them.
    const ONLY_PILLOW: [&str; 2] = ["lab_", "tiff_raw_16"];
    for line in index.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let (name, mode) = (fields[0], fields[2]);
        let file = rest.split_off(..fields[1].parse().unwrap()).unwrap();
        if mode == "-" || ONLY_PILLOW.iter().any(|start| name.starts_with(start)) {
            match decode(file, name, DecodePolicy::hf()) {
                Ok(_) => failures.push(format!("{name} is read")),
                Err(error) => println!("{error}"),
            }
            continue;
        }
        let number = |field: usize| fields[field].parse::<usize>().unwrap();
        for (kind, policy) in [(0, DecodePolicy::hf()), (1, DecodePolicy::lavis())] {
            let start = number(5 + kind);
            match decode(file, name, policy) {
                Err(error) => failures.push(format!("[{mode}] {error}")),
                Ok(ours)
                    if (ours.width as usize, ours.height as usize) != (number(3), number(4)) =>
                {
                    failures.push(format!("{name} [{mode}]: {}x{}", ours.width, ours.height));
                }
                Ok(ours) => {
                    let theirs = &pixels[start..start + ours.data.len()];
                    let (max, mean) = difference(&ours.data, theirs);
                    let bound = if name.starts_with("jpeg") {
                        (5, 0.35)
                    } else {
                        (0, 0.0)
                    };
                    if max > bound.0 || mean > bound.1 {
                        failures.push(format!("{name} [{mode}]: max {max} mean {mean:.3}"));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
