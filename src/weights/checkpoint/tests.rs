use super::super::test_files::{ramp, raw, serialize, write};
use super::*;
use crate::weights::files::SINGLE;
use std::fs;

/// The error of opening `path`, which must be one line naming `parts`.
fn error_of(path: &Path, parts: &[&str]) -> WeightsError {
    let error = Checkpoint::open(path).expect_err("opened");
    let text = error.to_string();
    assert!(!text.contains('\n'), "several lines: {text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
    error
}

/// The error of opening a file of these bytes.
fn error_of_bytes(bytes: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    fs::write(&path, bytes).unwrap();
    error_of(&path, &[&["weights.safetensors"], parts].concat());
}

fn write_index(folder: &Path, entries: &[(&str, &str)]) {
    let map: BTreeMap<_, _> = entries.iter().copied().collect();
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(folder.join(INDEX), index.to_string()).unwrap();
}

#[test]
fn a_folder_and_a_bare_file_open_alike() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(
        folder.path(),
        SINGLE,
        &[ramp("b", &[2, 3], 1.0), ramp("a", &[], 7.0)],
    );
    for path in [folder.path(), &file] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            (
                checkpoint.len(),
                checkpoint.total_bytes(),
                checkpoint.is_empty()
            ),
            (2, 28, false)
        );
        let b = checkpoint.tensor("b").unwrap();
        assert_eq!(
            (b.name, b.shape, b.dtype),
            ("b", &[2, 3][..], safetensors::Dtype::F32)
        );
        assert_eq!(
            b.bytes,
            (1..=6)
                .flat_map(|i| (i as f32).to_le_bytes())
                .collect::<Vec<_>>()
        );
        assert_eq!(b.file, file);
        assert!(
            checkpoint
                .tensor("c")
                .unwrap_err()
                .to_string()
                .contains("\"c\" is missing")
        );
        assert_eq!(
            checkpoint
                .tensors()
                .map(|view| view.bytes.len())
                .collect::<Vec<_>>(),
            [4, 24]
        );
    }
}

#[test]
fn shards_open_through_their_index_or_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    write(
        folder.path(),
        one,
        &[ramp("a", &[2], 0.0), ramp("both", &[1], 1.0)],
    );
    write(
        folder.path(),
        two,
        &[ramp("b", &[3], 5.0), ramp("both", &[1], 2.0)],
    );
    write_index(folder.path(), &[("a", one), ("b", two), ("both", one)]);
    for path in [folder.path(), &folder.path().join(INDEX)] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "both"]);
        assert_eq!(
            checkpoint.tensor("b").unwrap().file,
            folder.path().join(two)
        );
        // The index decides which copy counts.
        assert_eq!(checkpoint.tensor("both").unwrap().bytes, 1f32.to_le_bytes());
        assert_eq!(checkpoint.files().count(), 2);
    }
}

#[test]
fn broken_shard_sets_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write(path, "one.safetensors", &[ramp("a", &[2], 0.0)]);
    write_index(
        path,
        &[
            ("a", "one.safetensors"),
            ("b", "two.safetensors"),
            ("c", "three.safetensors"),
        ],
    );
    error_of(
        path,
        &[INDEX, "\"three.safetensors\"", "2 of 3", "download"],
    );
    write_index(path, &[("a", "one.safetensors"), ("b", "one.safetensors")]);
    error_of(path, &["one.safetensors", "\"b\"", "index", "download"]);
    write_index(path, &[("a", "../one.safetensors")]);
    error_of(path, &[INDEX, "not a plain file name"]);
    write_index(path, &[]);
    error_of(path, &[INDEX, "no tensor"]);
    fs::write(path.join(INDEX), "{\"weight_map\": 3}").unwrap();
    error_of(path, &[INDEX, "not a shard index"]);
    fs::write(path.join(INDEX), "").unwrap();
    error_of(path, &[INDEX, "not a shard index"]);
    fs::remove_file(path.join(INDEX)).unwrap();
    error_of(path, &["no weights", "index"]);
}

#[test]
fn folders_without_safetensors_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    error_of(path, &["no weights", "model.safetensors"]);
    for pickle in ["blip2_pretrained.pth", "pytorch_model-00001-of-00002.bin"] {
        let file = path.join(pickle);
        fs::write(&file, "PK").unwrap();
        error_of(path, &[pickle, "can be named itself"]);
        error_of(&file, &[pickle, "no file that torch.save wrote"]);
        fs::remove_file(file).unwrap();
    }
    assert!(matches!(
        error_of(&path.join("nothing"), &["nothing", "cannot be read"]),
        WeightsError::Read { .. }
    ));
}

#[test]
fn damaged_files_are_named() {
    let valid = serialize(&[ramp("a", &[4, 3], 0.0), ramp("b", &[5], 1.0)]);
    error_of_bytes(b"", &["is empty", "download"]);
    error_of_bytes(&valid[..5], &["5 bytes long"]);
    error_of_bytes(&valid[..40], &["claims a header", "truncated"]);
    error_of_bytes(&valid[..valid.len() - 1], &["tensor \"b\"", "truncated"]);
    error_of_bytes(&valid[..valid.len() - 30], &["truncated"]);
    error_of_bytes(&[&valid[..], b"more"].concat(), &["header is invalid"]);
    error_of_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        &["Git LFS pointer", "git lfs pull"],
    );
    error_of_bytes(
        &u64::MAX.to_le_bytes(),
        &["claims a header of 18446744073709551615 bytes"],
    );
    error_of_bytes(&raw("no json", b""), &["not JSON"]);
    error_of_bytes(&raw("[1, 2]", b""), &["not JSON"]);
    error_of_bytes(&raw("{}", b""), &["no tensors"]);
    error_of_bytes(&raw(&"[".repeat(100_000), b""), &["not JSON"]);
}

#[test]
fn impossible_headers_are_named() {
    let tensor = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let file = |tensors: &[(&str, String)]| {
        let fields: Vec<String> = tensors
            .iter()
            .map(|(name, info)| format!("{name:?}:{info}"))
            .collect();
        raw(&format!("{{{}}}", fields.join(",")), &[0; 16])
    };
    // Out of the file; overlapping; a hole; size and shape that disagree; backwards; overflowing.
    error_of_bytes(
        &file(&[("a", tensor("[8]", 0, 32))]),
        &["tensor \"a\"", "byte 32"],
    );
    error_of_bytes(
        &file(&[("a", tensor("[1]", u64::MAX - 3, u64::MAX))]),
        &["tensor \"a\"", "reaches"],
    );
    error_of_bytes(
        &file(&[("a", tensor("[3]", 0, 12)), ("b", tensor("[2]", 8, 16))]),
        &["invalid", "b"],
    );
    error_of_bytes(
        &file(&[("a", tensor("[1]", 0, 4)), ("b", tensor("[2]", 8, 16))]),
        &["invalid", "b"],
    );
    error_of_bytes(&file(&[("a", tensor("[3]", 0, 16))]), &["invalid"]);
    error_of_bytes(&file(&[("a", tensor("[4]", 16, 0))]), &["invalid"]);
    error_of_bytes(
        &file(&[("a", tensor("[4611686018427387904, 16]", 0, 16))]),
        &["invalid"],
    );
    error_of_bytes(&file(&[("a", tensor("[-4]", 0, 16))]), &["invalid"]);
    error_of_bytes(
        &file(&[("a", tensor("[4]", 0, 16).replace("F32", "F33"))]),
        &["invalid"],
    );
    error_of_bytes(&file(&[("a", "7".into())]), &["invalid"]);
    error_of_bytes(&file(&[("a\\nb", tensor("[8]", 0, 32))]), &["tensor"]);
    assert!(Checkpoint::open("").is_err());
}

/// A small generator of test bytes: xorshift64*, Vigna 2016.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D)
}

#[test]
fn tampered_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let valid = serialize(&[
        ramp("a.weight", &[4, 3], 0.0),
        ramp("b.position_ids", &[5], 1.0),
    ]);
    let header = valid.len() - 17 * 4;
    let path = folder.path().join("model.safetensors");
    let mut state = 2024;
    let (mut opened, mut refused) = (0, 0);
    for round in 0..2000 {
        let mut bytes = valid.clone();
        for _ in 0..1 + random(&mut state) % 3 {
            // Mostly the header, half the time with characters that keep it JSON.
            let position =
                random(&mut state) as usize % if round % 8 == 0 { bytes.len() } else { header };
            let alphabet = b"0123456789-{}[]\",:eEFIB";
            bytes[position] = match random(&mut state) % 2 {
                0 => alphabet[random(&mut state) as usize % alphabet.len()],
                _ => random(&mut state) as u8,
            };
        }
        if round % 5 == 0 {
            bytes.truncate(random(&mut state) as usize % (bytes.len() + 1));
        }
        fs::write(&path, &bytes).unwrap();
        match Checkpoint::open(&path) {
            Ok(checkpoint) => {
                opened += 1;
                for view in checkpoint.tensors() {
                    assert!(view.bytes.len() <= bytes.len());
                    // Whatever the shape says now, converting must give a value or an error as
                    // well.
                    if let Ok(weight) = checkpoint.weight(view.name, view.shape) {
                        let _ = weight.to_f32();
                    }
                }
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
    assert!(
        opened > 50 && refused > 500,
        "{opened} opened, {refused} refused: the mutations miss their aim"
    );
}
