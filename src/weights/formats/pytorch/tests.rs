use std::path::PathBuf;

use rawzip::ZipArchiveWriter;

use super::*;
use crate::weights::{Checkpoint, Format, TensorView};
use safetensors::Dtype;

/// Files that torch.save wrote; `weights-tools/make_pytorch_fixtures.py` says what is in them.
fn fixture(name: &str) -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "tests/data/convert/reader",
        name,
    ]
    .iter()
    .collect()
}

/// The state dict is below `state_dict` in the first, below `model` in the second, and the whole of
/// the others.
const FIXTURES: [&str; 6] = [
    "zip.pth",
    "legacy.pth",
    "zip_protocol3.pth",
    "zip_protocol4.pth",
    "zip_protocol5.pth",
    "legacy_protocol4.pth",
];

/// All elements as numbers, through [`TensorView::copy`] in one piece and in pieces of two.
fn values(view: &TensorView) -> Vec<f64> {
    let size = view.dtype.bitsize() / 8;
    let mut bytes = vec![0; view.elements() * size];
    view.copy(0, &mut bytes);
    let mut pieces = vec![0; bytes.len()];
    for (number, piece) in pieces.chunks_mut(2 * size).enumerate() {
        view.copy(2 * number, piece);
    }
    assert_eq!(bytes, pieces, "{}", view.name);
    let number = |b: &[u8]| match view.dtype {
        Dtype::F16 => half::f16::from_le_bytes(b.try_into().unwrap()).to_f64(),
        Dtype::BF16 => half::bf16::from_le_bytes(b.try_into().unwrap()).to_f64(),
        Dtype::F32 => f32::from_le_bytes(b.try_into().unwrap()).into(),
        Dtype::F64 => f64::from_le_bytes(b.try_into().unwrap()),
        Dtype::I64 => i64::from_le_bytes(b.try_into().unwrap()) as f64,
        other => panic!("{other:?}"),
    };
    bytes.chunks_exact(size).map(number).collect()
}

#[test]
fn every_element_type_and_view_is_read_from_both_formats() {
    let ramp = |start: i32, count: i32| (start..start + count).map(f64::from).collect::<Vec<_>>();
    for file in FIXTURES {
        let file = Checkpoint::open(fixture(file)).unwrap();
        let expected: [(&str, Dtype, &[usize], Vec<f64>); 13] = [
            ("brain", Dtype::BF16, &[2, 3], ramp(-3, 6)),
            ("double", Dtype::F64, &[7], ramp(-3, 7)),
            ("empty", Dtype::F32, &[3, 0], vec![]),
            (
                "every other",
                Dtype::F32,
                &[6],
                vec![-2.0, 0.0, 2.0, 4.0, 6.0, 8.0],
            ),
            ("first", Dtype::F32, &[5], ramp(-3, 5)),
            ("half", Dtype::F16, &[5], ramp(-3, 5)),
            ("long", Dtype::I64, &[2, 2], ramp(-3, 4)),
            ("parameter", Dtype::F32, &[4, 3], ramp(-3, 12)),
            ("permuted", Dtype::F32, &[2, 3, 4], ramp(-3, 24)),
            ("scalar", Dtype::F32, &[], ramp(-3, 1)),
            ("second", Dtype::F32, &[1, 7], ramp(2, 7)),
            ("single", Dtype::F32, &[3, 1, 2], ramp(-3, 6)),
            ("transposed", Dtype::F32, &[4, 3], ramp(-3, 12)),
        ];
        assert_eq!(file.tensors().count(), expected.len());
        for (view, (name, dtype, shape, numbers)) in file.tensors().zip(expected) {
            assert_eq!((view.name, view.dtype, view.shape), (name, dtype, shape));
            assert_eq!(values(&view), numbers, "{name}");
            let strided = ["every other", "permuted", "transposed"].contains(&name);
            assert_eq!(view.strides.is_some(), strided, "{name}");
        }
    }
}

/// Values that do not lie in row-major order are converted as if they did, whole or some rows at a time.
#[test]
fn weights_are_converted_whatever_their_strides() {
    let checkpoint = Checkpoint::open(fixture("zip.pth")).unwrap();
    let expected: Vec<f32> = (-3..9).map(|value| value as f32).collect();
    let weight = checkpoint.weight("transposed", &[4, 3]).unwrap();
    assert_eq!(weight.to_f32().unwrap(), expected);
    assert_eq!(weight.stored_bytes(), 12 * 4);
    let mut halves = [0xff; 2 * 4 * 2];
    weight
        .write_rows(1..3, Format::F16, &mut halves, 4)
        .unwrap();
    let halves = halves
        .chunks(2)
        .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32());
    let rows = [0.0, 1.0, 2.0, 0.0, 3.0, 4.0, 5.0, 0.0];
    assert!(halves.eq(rows), "padded with zeros");
}

#[test]
fn files_cut_off_anywhere_are_refused() {
    for file in FIXTURES {
        let bytes = std::fs::read(fixture(file)).unwrap();
        let whole = bytes.len();
        // A legacy file ends with its last storage: nothing of it may be missing.
        for length in (0..whole).step_by(7).chain(whole - 20..whole) {
            assert!(
                tensors(&bytes[..length]).is_err(),
                "{file} cut to {length} of {whole}"
            );
        }
    }
}

#[test]
fn damaged_bytes_never_panic() {
    let mut state = 1u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    for file in FIXTURES {
        let bytes = std::fs::read(fixture(file)).unwrap();
        for _ in 0..1500 {
            let mut bytes = bytes.clone();
            for _ in 0..1 + random() % 3 {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
            let Ok(tensors) = tensors(&bytes) else {
                continue;
            };
            for (name, entry) in &tensors {
                let view = TensorView {
                    name,
                    dtype: entry.dtype,
                    shape: &entry.shape,
                    strides: entry.strides.as_deref(),
                    bytes: &bytes[entry.bytes.start as usize..entry.bytes.end as usize],
                    file: Path::new("test"),
                };
                assert!(view.elements() <= bytes.len());
                view.copy(0, &mut vec![0; view.elements() * view.dtype.bitsize() / 8]);
            }
        }
    }
}

/// A zip archive of these records.
fn archive(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut archive = ZipArchiveWriter::new(&mut bytes);
    for (name, content) in records {
        let (mut entry, config) = archive.new_file(name).start().unwrap();
        let mut writer = config.wrap(&mut entry);
        std::io::Write::write_all(&mut writer, content).unwrap();
        let (_, descriptor) = writer.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap();
    bytes
}

/// A pickle of `{"w": _rebuild_tensor_v2(storage "0" of `elements` floats, offset, shape,
/// strides)}`.
fn tensor_pickle(elements: u32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let int = |value: i32| [&[b'J'][..], &value.to_le_bytes()].concat();
    let tuple = |items: &[i32]| {
        let items: Vec<u8> = items.iter().flat_map(|&item| int(item)).collect();
        [&b"("[..], &items, b"t"].concat()
    };
    let mut pickle = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
    pickle.extend(b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu");
    pickle.extend(int(elements as i32));
    pickle.extend(b"tQ");
    pickle.extend(int(offset));
    pickle.extend(tuple(shape));
    pickle.extend(tuple(strides));
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtRs.");
    pickle
}

#[track_caller]
fn refuses(bytes: &[u8], parts: &[&str]) {
    let problem = tensors(bytes).expect_err("refused");
    let text = problem.at(Path::new("some.pth")).to_string();
    assert!(
        text.starts_with("some.pth: ") && !text.contains('\n'),
        "{text}"
    );
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
}

#[test]
fn tensors_that_leave_or_repeat_their_storage_are_refused() {
    let data = [0; 24]; // six floats
    let file = |pickle: &[u8]| archive(&[("m/data.pkl", pickle), ("m/data/0", &data)]);
    let good = file(&tensor_pickle(6, 0, &[2, 3], &[3, 1]));
    assert_eq!(tensors(&good).unwrap()["w"].shape, [2, 3]);
    let out = ["\"w\"", "does not lie in its storage"];
    refuses(&file(&tensor_pickle(6, 1, &[2, 3], &[3, 1])), &out);
    refuses(&file(&tensor_pickle(6, 0, &[2, 3], &[i32::MAX, 1])), &out);
    refuses(
        &file(&tensor_pickle(6, 0, &[i32::MAX, i32::MAX, 9], &[0, 0, 0])),
        &out,
    );
    refuses(&file(&tensor_pickle(6, 0, &[1000], &[0])), &out);
    refuses(&file(&tensor_pickle(6, 0, &[2, 3], &[-3, 1])), &["strides"]);
    refuses(&file(&tensor_pickle(6, -1, &[2], &[1])), &["offset"]);
    refuses(
        &file(&tensor_pickle(6, 0, &[2, 3], &[1])),
        &["2 dimensions and 1 strides"],
    );
    refuses(
        &file(&tensor_pickle(6, 0, &[1; 17], &[1; 17])),
        &["dimensions"],
    );
    // The storage itself: longer than its record, or not there.
    refuses(
        &file(&tensor_pickle(7, 0, &[2], &[1])),
        &["data/0", "24 bytes", "7 elements"],
    );
    let pickle = tensor_pickle(6, 0, &[2], &[1]);
    refuses(
        &archive(&[("m/data.pkl", &pickle)]),
        &["lacks the record data/0"],
    );
}

#[test]
fn archives_that_are_not_pytorchs_are_refused() {
    let pickle = tensor_pickle(1, 0, &[1], &[1]);
    let data: (&str, &[u8]) = ("m/data/0", &[0; 4]);
    refuses(&archive(&[("m/code.py", b"x")]), &["without data.pkl"]);
    refuses(
        &archive(&[("m/data.pkl", b""), data]),
        &["ends inside its pickle"],
    );
    refuses(
        &archive(&[("m/data.pkl", b"\x80\x02]."), data]),
        &["no dictionary of tensors"],
    );
    refuses(
        &archive(&[("m/data.pkl", b"\x80\x02}X\x01\0\0\0aK\x01s."), data]),
        &["holds no tensors", "\"a\""],
    );
    refuses(
        &archive(&[("m/data.pkl", &pickle), ("m/byteorder", b"big"), data]),
        &["big-endian"],
    );
    refuses(
        &archive(&[("m/data.pkl", &pickle), data, data]),
        &["two records"],
    );

    let mut compressed = archive(&[("m/data.pkl", &pickle), data]);
    let directory = compressed
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .unwrap();
    compressed[directory + 10] = 8; // compression method: deflate
    refuses(&compressed, &["data.pkl", "compressed", "save it again"]);

    // The second entry of the directory points at the first record.
    let mut overlapping = archive(&[("m/data.pkl", &pickle), data]);
    let second = overlapping
        .windows(4)
        .rposition(|w| w == b"PK\x01\x02")
        .unwrap();
    overlapping[second + 42..second + 46].fill(0);
    refuses(&overlapping, &["overlap"]);

    refuses(b"PK\x03\x04 and nothing", &["cut off or damaged"]);
    refuses(b"", &["no file that torch.save wrote"]);
    refuses(b"\x80\x02}.", &["not one of PyTorch's"]);
}

#[test]
fn pickles_that_ask_for_code_are_refused_by_name() {
    let call = |module: &str, name: &str| {
        let text = format!("c{module}\n{name}\n");
        [b"\x80\x02", text.as_bytes(), b"X\x06\0\0\0rm -rf\x85R."].concat()
    };
    for (module, name) in [
        ("posix", "system"),
        ("os", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("__builtin__", "apply"),
        ("torch", "load"),
        ("torch._utils", "_import_dotted_name"),
        ("numpy.testing._private.utils", "runstring"),
        ("collections", "namedtuple"),
    ] {
        let full = format!("asks for {module}.{name}");
        let parts = [full.as_str(), "nothing of it was run"];
        refuses(&archive(&[("m/data.pkl", &call(module, name))]), &parts);
        // By the instructions of protocol 4 and of protocol 0.
        let text = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes()].concat();
        let newer = [b"\x80\x04", &text(module)[..], &text(name), b"\x93)R."].concat();
        refuses(&archive(&[("m/data.pkl", &newer)]), &parts);
        let older = format!("(S'x'\ni{module}\n{name}\n.").replace("S'x'\n", "N");
        refuses(&archive(&[("m/data.pkl", older.as_bytes())]), &parts);
    }
    // In the old format, after an innocent start.
    let mut legacy = std::fs::read(fixture("legacy.pth")).unwrap();
    let at = legacy
        .windows(11)
        .position(|w| w == b"ccollection")
        .unwrap();
    legacy.splice(at..at, *b"cposix\nsystem\n");
    refuses(&legacy, &["asks for posix.system"]);
}

#[test]
fn what_lies_behind_a_link_or_in_a_folder_is_named() {
    let missing = Checkpoint::open("no/such.pth").unwrap_err().to_string();
    assert!(missing.contains("no/such.pth"), "{missing}");
    let folder = File::map(env!("CARGO_MANIFEST_DIR").as_ref()).unwrap_err();
    assert!(
        folder.to_string().contains("not a regular file"),
        "{folder}"
    );
}

/// A file is known by its name, else by its first bytes: a safetensors header may have the length
/// that a pickle begins with.
#[test]
fn files_of_other_names_are_known_by_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let named = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        crate::weights::is_pytorch(&path)
    };
    let header = [&0x280_u64.to_le_bytes()[..], b"{\"a\": 1}"].concat();
    assert!(!named("header", &header));
    assert!(!named("pickle.safetensors", b"\x80\x02}q\x00."));
    assert!(named("zip", b"PK\x03\x04"));
    assert!(named("nothing.pth", b""));
    for fixture_name in FIXTURES {
        let bytes = std::fs::read(fixture(fixture_name)).unwrap();
        assert!(named("other", &bytes), "{fixture_name}");
    }
}

#[test]
fn kinds_of_tensors_that_weights_do_not_have_are_named() {
    for (function, kind) in [
        ("_rebuild_sparse_tensor", "sparse"),
        ("_rebuild_qtensor", "quantised"),
        ("_rebuild_tensor_v3", "float8"),
    ] {
        // {"a": function()}
        let bytes = format!("}}X\u{1}\0\0\0actorch._utils\n{function}\n)Rs.");
        let bytes = [b"\x80\x02", bytes.as_bytes()].concat();
        let pickle = Pickle::read(&bytes).unwrap();
        let Err(problem) = state_dict::read(&pickle, &Default::default()) else {
            panic!("{function} is read");
        };
        assert!(problem.what.contains("tensor \"a\" is "), "{problem:?}");
        assert!(problem.what.contains(kind), "{problem:?}");
        assert_eq!(problem.remedy, SAVE_DENSE);
    }
    for (name, remedy) in [
        ("torch.float8_e4m3fn", SAVE_DENSE),
        ("torch.ComplexFloatStorage", SAVE_DENSE),
        ("torch.load", SAVE_WEIGHTS_ALONE),
        ("posix.system", SAVE_WEIGHTS_ALONE),
    ] {
        let problem = Problem::from(Refusal::Name(name.into()));
        assert!(problem.what.contains(name), "{problem:?}");
        assert_eq!(problem.remedy, remedy);
    }
}
