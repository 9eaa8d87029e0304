//! Compares with what `tests/data/images/reference.py` wrote into the folder that the environment
//! variable `BLIP2_WGPU_IMAGE_REFERENCE` names; without it these tests say so and pass.

use std::path::{Path, PathBuf};

use super::*;

const SIZES: [(u32, u32); 3] = [(224, 224), (364, 364), (97, 301)];

/// One line of the index.
struct Case {
    path: PathBuf,
    key: String,
    policy: DecodePolicy,
    policy_name: String,
    width: u32,
    height: u32,
    mode: String,
    error: String,
}

fn cases() -> Option<(PathBuf, Vec<Case>)> {
    let Some(folder) = std::env::var_os("BLIP2_WGPU_IMAGE_REFERENCE").map(PathBuf::from) else {
        println!("skipped: BLIP2_WGPU_IMAGE_REFERENCE is not set");
        return None;
    };
    let index = std::fs::read_to_string(folder.join("index.tsv")).unwrap();
    let case = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        Case {
            path: fields[0].into(),
            key: fields[1].into(),
            policy: match fields[2] {
                "hf" => DecodePolicy::hf(),
                "lavis" => DecodePolicy::lavis(),
                _ => DecodePolicy::mmpretrain(),
            },
            policy_name: fields[2].into(),
            width: fields[3].parse().unwrap(),
            height: fields[4].parse().unwrap(),
            mode: fields[5].into(),
            error: fields[6].into(),
        }
    };
    Some((folder, index.lines().map(case).collect()))
}

fn reference(folder: &Path, case: &Case) -> Rgb8Image {
    let data =
        std::fs::read(folder.join(format!("{}.{}.rgb", case.key, case.policy_name))).unwrap();
    Rgb8Image::new(case.width, case.height, data).unwrap()
}

/// Largest and mean absolute difference.
fn difference(ours: &[u8], theirs: &[u8]) -> (u8, f64) {
    assert_eq!(ours.len(), theirs.len());
    let differences = || ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences().map(u64::from).sum();
    (
        differences().max().unwrap_or(0),
        sum as f64 / ours.len() as f64,
    )
}

/// The bound on (largest, mean) difference of the decoded pixels; see the documentation of `decode`.
fn bound(case: &Case) -> (u8, f64) {
    let lossy = std::fs::read(&case.path).is_ok_and(|file| file.starts_with(&[0xFF, 0xD8]));
    if lossy { (8, 1.0) } else { (0, 0.0) }
}

#[test]
fn decoded_pixels() {
    let Some((folder, cases)) = cases() else {
        return;
    };
    let mut failures = Vec::new();
    for case in &cases {
        let label = format!("{} [{}] {}", case.key, case.mode, case.policy_name);
        match decode_file(&case.path, case.policy) {
            Err(error) if case.error.is_empty() => failures.push(format!("{label}: {error}")),
            Err(error) => println!("{label}: both refuse: {error} | {}", case.error),
            Ok(_) if !case.error.is_empty() => println!("{label}: only we read it: {}", case.error),
            Ok(ours) if (ours.width, ours.height) != (case.width, case.height) => {
                failures.push(format!("{label}: {}x{}", ours.width, ours.height));
            }
            Ok(ours) => {
                let (max, mean) = difference(&ours.data, &reference(&folder, case).data);
                if max > 0 {
                    println!("{label}: max {max} mean {mean:.4}");
                }
                let (max_bound, mean_bound) = bound(case);
                if max > max_bound || mean > mean_bound {
                    failures.push(format!("{label}: max {max} mean {mean:.4}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn resized_pixels_are_equal() {
    let Some((folder, cases)) = cases() else {
        return;
    };
    let mut compared = 0;
    for case in cases
        .iter()
        .filter(|case| case.policy_name == "hf" && case.error.is_empty())
    {
        let image = reference(&folder, case);
        for (width, height) in SIZES {
            let theirs = std::fs::read(folder.join(format!("{}.{width}x{height}.rgb", case.key)));
            let ours = resize_bicubic(&image, width, height);
            assert_eq!(
                difference(&ours.data, &theirs.unwrap()).0,
                0,
                "{} {width}x{height}",
                case.key
            );
            compared += 1;
        }
    }
    println!("{compared} resized images are equal");
    assert!(compared > 0);
}

#[test]
fn tensors_are_equal() {
    let Some((folder, cases)) = cases() else {
        return;
    };
    let preprocessor = Preprocessor::blip2(224).unwrap();
    let mut largest = 0f32;
    for case in cases
        .iter()
        .filter(|case| case.policy_name == "hf" && case.error.is_empty())
    {
        let bytes = std::fs::read(folder.join(format!("{}.f32", case.key))).unwrap();
        let theirs = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes));
        let ours = preprocessor.apply(&reference(&folder, case)).unwrap();
        assert_eq!(ours.len(), theirs.len());
        largest = ours
            .iter()
            .zip(theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(largest, f32::max);
    }
    println!("largest difference of a tensor: {largest:e}");
    assert_eq!(largest, 0.0);
}
