//! Files that are not what they should be. Each is named on one line with what to do about it, the exit code is 1,
//! everything else is still done, and nothing panics.

mod cli_support;

use std::path::{Path, PathBuf};

use cli_support::{
    BOAT, HOUSE, ModelCopy, Safetensors, caption, caption_command, finish_with_stdin,
    plain_captions, run,
};
use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};

// --- images ---

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

fn half(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len() / 2]
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
            &["not an image"],
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
        (
            "half.tiff",
            half(&picture(ImageFormat::Tiff)).to_vec(),
            &["TIFF", "again"],
        ),
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

    let run = caption(cli_support::TINY, &arguments).exits(1);
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
    let lines = caption(cli_support::TINY, &arguments).exits(0).json();
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
    let run = caption(cli_support::TINY, &[&folder, HOUSE, &pattern, &broken]).exits(1);
    assert_eq!(run.one_json()["image"], HOUSE);
    let run = run.says(&[
        "the folder has no images",
        "no image matches",
        "valid pattern",
    ]);
    assert_eq!(run.stderr.len(), 3, "{run:#?}");
    // Nothing left to do, and no model loaded for it.
    let run = caption(cli_support::TINY, &[&folder])
        .exits(1)
        .one_error(&[&folder]);
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
    let run = caption(cli_support::TINY, &[&locked, HOUSE]).exits(1);
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
    caption(cli_support::TINY, &[&two_lines])
        .exits(1)
        .one_error(&["two lines", "not an image"]);
    let mut command = caption_command(cli_support::TINY, &[]);
    command.arg(std::ffi::OsStr::from_bytes(b"/nowhere/\xFF.png"));
    let run = cli_support::finish(command).exits(1);
    run.one_error(&["no such file"]);
}

#[test]
fn bad_standard_input() {
    for (bytes, parts) in [
        (&b""[..], &["error: -: ", "empty"][..]),
        (b"no image", &["error: -: ", "not an image"]),
    ] {
        let run = finish_with_stdin(caption_command(cli_support::TINY, &["-", HOUSE]), bytes);
        assert_eq!(run.one_json()["image"], HOUSE);
        run.exits(1).one_error(parts);
    }
    let image = std::fs::read(BOAT).unwrap();
    let run = finish_with_stdin(caption_command(cli_support::TINY, &["-", "-"]), &image);
    assert_eq!(run.one_json()["image"], "-");
    run.exits(1).one_error(&["error: -: ", "only once"]);
}

// --- prompts ---

#[test]
fn odd_prompts() {
    for prompt in [
        "🐱 日本\u{200d}🏽",
        "\n\t ",
        "</s><image><pad>",
        "a\u{0301}\u{fffd}",
    ] {
        caption(cli_support::TINY, &["--prompt", prompt, HOUSE])
            .exits(0)
            .one_json();
    }
    let long = "word ".repeat(2000);
    let run = caption(cli_support::TINY, &["--prompt", &long, HOUSE]).exits(1);
    assert!(run.stdout.is_empty(), "{run:#?}");
    run.one_error(&["positions", "64", "shorten the prompt"]);
}

// --- checkpoints ---

/// What to do to a copy of the checkpoint.
type Spoil = fn(&ModelCopy);

/// Fails unless a checkpoint spoilt so gives one error line with all `parts`, and nothing else.
#[track_caller]
fn refused(spoil: Spoil, parts: &[&str]) {
    let model = ModelCopy::new();
    spoil(&model);
    let run = caption(model.path(), &[HOUSE]).exits(1);
    assert!(run.stdout.is_empty(), "{run:#?}");
    let folder = model.path().display().to_string();
    let run = run.one_error(&[&folder]).one_error(parts);
    assert!(run.stderr[0].contains("; "), "no remedy: {run:#?}");
}

fn accepted(spoil: Spoil) {
    let model = ModelCopy::new();
    spoil(&model);
    let line = caption(model.path(), &[HOUSE]).exits(0).one_json();
    assert_eq!(line["tokens"], plain_captions()[0]["tokens"]);
}

const WEIGHTS: &str = "model.safetensors";
const FC1: &str = "language_model.model.decoder.layers.1.fc1.weight";

#[test]
fn model_paths() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().display().to_string();
    for (path, parts) in [
        ("/nowhere/blip2", &["/nowhere/blip2", "config.json"][..]),
        (HOUSE, &["config.json"]),
        (empty.as_str(), &[&empty, "config.json"]),
    ] {
        caption(path, &[HOUSE]).exits(1).one_error(parts);
        run(["inspect", path]).exits(1).one_error(parts);
    }
    // The file of the weights itself will do.
    let file = Path::new(cli_support::TINY).join(WEIGHTS);
    let line = caption(file, &[HOUSE]).exits(0).one_json();
    assert_eq!(line["tokens"], plain_captions()[0]["tokens"]);
}

#[test]
fn weights_that_are_not_whole() {
    refused(
        |model| model.remove(&[WEIGHTS]),
        &["no weights here", WEIGHTS],
    );
    refused(
        |model| {
            model.remove(&[WEIGHTS]);
            model.write("pytorch_model.bin", "PK");
        },
        &["pytorch_model.bin", "pickle", "blip2-wgpu convert"],
    );
    refused(
        |model| model.write(WEIGHTS, ""),
        &[WEIGHTS, "empty", "again"],
    );
    refused(
        |model| model.write(WEIGHTS, "short"),
        &[WEIGHTS, "too short"],
    );
    refused(
        |model| {
            model.write(
                WEIGHTS,
                "version https://git-lfs.github.com/spec/v1\noid sha256:0",
            )
        },
        &[WEIGHTS, "git lfs pull"],
    );
    refused(
        |model| {
            let bytes = std::fs::read(model.file(WEIGHTS)).unwrap();
            model.write(WEIGHTS, half(&bytes));
        },
        &[WEIGHTS, "truncated", "again"],
    );
    refused(
        |model| {
            let bytes = std::fs::read(model.file(WEIGHTS)).unwrap();
            model.write(WEIGHTS, &bytes[..bytes.len() - 1]);
        },
        &[WEIGHTS, "truncated", "again"],
    );
    refused(
        |model| {
            let bytes = std::fs::read(model.file(WEIGHTS)).unwrap();
            model.write(WEIGHTS, &bytes[..100]);
        },
        &[WEIGHTS, "truncated", "again"],
    );
    refused(
        |model| {
            std::fs::remove_file(model.file(WEIGHTS)).unwrap();
            std::fs::create_dir(model.file(WEIGHTS)).unwrap();
        },
        &["no weights here"],
    );
}

/// Replaces the header, its length included.
fn with_header(model: &ModelCopy, header: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend([0; 64]);
    model.write(WEIGHTS, bytes);
}

#[test]
fn headers_that_were_tampered_with() {
    refused(
        |model| {
            let mut bytes = std::fs::read(model.file(WEIGHTS)).unwrap();
            bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
            model.write(WEIGHTS, bytes);
        },
        &[WEIGHTS, "header of 18446744073709551615 bytes"],
    );
    refused(
        |model| with_header(model, b"not JSON"),
        &[WEIGHTS, "header", "not JSON"],
    );
    refused(
        |model| with_header(model, b"\xFF\xFE{}"),
        &[WEIGHTS, "header"],
    );
    refused(|model| with_header(model, b"[1, 2]"), &[WEIGHTS, "header"]);
    refused(|model| with_header(model, b"{}"), &[WEIGHTS, "header"]);
    let nothing: Spoil =
        |model| model.write(WEIGHTS, [&[2u8, 0, 0, 0, 0, 0, 0, 0][..], b"{}"].concat());
    refused(nothing, &["no tensors", "again"]);
    let deep: Spoil = |model| with_header(model, "[".repeat(100_000).as_bytes());
    refused(deep, &[WEIGHTS, "header"]);
    refused(
        |model| {
            with_header(
                model,
                br#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,"x"]}}"#,
            )
        },
        &[WEIGHTS, "header"],
    );
    refused(
        |model| {
            with_header(
                model,
                br#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,4]}}"#,
            )
        },
        &[WEIGHTS, "header", "F99"],
    );
    refused(
        |model| {
            with_header(
                model,
                br#"{"a":{"dtype":"F16","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#,
            )
        },
        &[WEIGHTS, "header"],
    );
    refused(
        |model| {
            with_header(
                model,
                br#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[8,4]}}"#,
            )
        },
        &[WEIGHTS, "header"],
    );
    refused(
        |model| {
            model.tamper(|file| file.header[FC1]["data_offsets"][1] = json!(1u64 << 40));
        },
        &[WEIGHTS, FC1, "reaches to byte 1099511627776", "again"],
    );
    refused(
        |model| model.tamper(|file| file.header[FC1]["shape"] = json!([72, 41])),
        &[WEIGHTS, "header"],
    );
}

#[test]
fn tensors_that_are_not_the_models() {
    refused(
        |model| model.tamper(|file| file.remove(FC1)),
        &[FC1, "is missing", "config.json"],
    );
    refused(
        |model| {
            model.tamper(|file| {
                let info = file.header.remove("query_tokens").unwrap();
                file.header.insert("other_tokens".into(), info);
            });
        },
        &["query_tokens", "is missing"],
    );
    refused(
        |model| model.tamper(|file| file.header[FC1]["shape"] = json!([36, 80])),
        &[WEIGHTS, FC1, "[36, 80]", "[72, 40]"],
    );
    refused(
        |model| model.tamper(|file| file.header[FC1]["shape"] = json!([1, 72, 40])),
        &[WEIGHTS, FC1, "[1, 72, 40]", "[72, 40]"],
    );
    refused(
        |model| model.tamper(|file| file.header[FC1]["dtype"] = "I16".into()),
        &[WEIGHTS, FC1, "I16", "F16, BF16, F32"],
    );
    // Another model's weights: the first tensor that does not fit.
    refused(
        |model| model.set("config.json", "/text_config/ffn_dim", 80.into()),
        &[WEIGHTS, "fc1", "[72", "[80", "config.json"],
    );
    refused(
        |model| model.set("config.json", "/vision_config/num_hidden_layers", 4.into()),
        &["vision_model.encoder.layers.3", "is missing"],
    );
}

fn put_f16(file: &mut Safetensors, tensor: &str, element: usize, bits: u16) {
    let at = file.range(tensor).start + 2 * element;
    file.data[at..at + 2].copy_from_slice(&bits.to_le_bytes());
}

#[test]
fn weights_that_are_not_numbers() {
    const NAN: u16 = 0x7E00;
    const INFINITY: u16 = 0x7C00;
    refused(
        |model| model.tamper(|file| put_f16(file, FC1, 7, NAN)),
        &[WEIGHTS, FC1, "NaN", "element 7", "intact"],
    );
    refused(
        |model| model.tamper(|file| put_f16(file, FC1, 0, INFINITY)),
        &[WEIGHTS, FC1, "inf", "element 0"],
    );
    let norm: Spoil = |model| {
        model.tamper(|file| put_f16(file, "vision_model.post_layernorm.weight", 3, NAN));
    };
    refused(
        norm,
        &[
            WEIGHTS,
            "vision_model.post_layernorm.weight",
            "NaN",
            "element 3",
        ],
    );
}

/// Splits the weights in two shards with an index, which `change` may spoil.
fn shard(model: &ModelCopy, change: impl FnOnce(&mut Value)) {
    let mut map = serde_json::Map::new();
    let whole = Safetensors::read(&model.file(WEIGHTS));
    for (number, name) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
        let mut header = serde_json::Map::new();
        let mut data = Vec::new();
        for (tensor, info) in &whole.header {
            let text = tensor.starts_with("language_model");
            if tensor == "__metadata__" || text != (number == 1) {
                continue;
            }
            let start = data.len();
            data.extend(&whole.data[whole.range(tensor)]);
            let mut info = info.clone();
            info["data_offsets"] = json!([start, data.len()]);
            header.insert(tensor.clone(), info);
            map.insert(tensor.clone(), name.into());
        }
        Safetensors { header, data }.write(&model.file(name));
    }
    let mut index = json!({"metadata": {}, "weight_map": map});
    change(&mut index);
    model.write("model.safetensors.index.json", index.to_string());
    model.remove(&[WEIGHTS]);
}

#[test]
fn shards() {
    const INDEX: &str = "model.safetensors.index.json";
    accepted(|model| shard(model, |_| {}));
    refused(
        |model| {
            shard(model, |_| {});
            model.remove(&["b.safetensors"]);
        },
        &[INDEX, "b.safetensors", "missing", "download"],
    );
    refused(
        |model| {
            shard(model, |index| {
                index["weight_map"][FC1] = "a.safetensors".into()
            })
        },
        &["a.safetensors", FC1, "download"],
    );
    refused(
        |model| {
            shard(model, |index| {
                index["weight_map"][FC1] = "../x.safetensors".into()
            })
        },
        &[INDEX, "../x.safetensors", "plain file name"],
    );
    refused(
        |model| shard(model, |index| index["weight_map"] = json!({})),
        &[INDEX, "no tensor"],
    );
    refused(
        |model| shard(model, |index| index["weight_map"] = json!([1])),
        &[INDEX, "not a shard index"],
    );
    refused(
        |model| {
            shard(model, |_| {});
            model.write(INDEX, "{");
        },
        &[INDEX, "not a shard index", "again"],
    );
    refused(
        |model| {
            shard(model, |_| {});
            let bytes = std::fs::read(model.file("b.safetensors")).unwrap();
            model.write("b.safetensors", half(&bytes));
        },
        &["b.safetensors", "truncated", "again"],
    );
}

#[test]
fn configurations() {
    const CONFIG: &str = "config.json";
    refused(|model| model.remove(&[CONFIG]), &[CONFIG, "cannot be read"]);
    refused(
        |model| model.write(CONFIG, "{\"model_type\": "),
        &[CONFIG, "not a configuration"],
    );
    refused(
        |model| model.write(CONFIG, ""),
        &[CONFIG, "not a configuration"],
    );
    refused(
        |model| model.write(CONFIG, [0xFF, 0xFE, 0]),
        &[CONFIG, "not a configuration"],
    );
    refused(|model| model.write(CONFIG, "[]"), &[CONFIG, "no object"]);
    let deep: Spoil = |model| model.write(CONFIG, "{\"a\":".repeat(100_000));
    refused(deep, &[CONFIG, "not a configuration"]);
    refused(
        |model| model.set(CONFIG, "/vision_config/num_attention_heads", 3.into()),
        &[CONFIG, "vision_config.num_attention_heads is 3"],
    );
    refused(
        |model| model.set(CONFIG, "/text_config/num_attention_heads", 7.into()),
        &[CONFIG, "text_config.num_attention_heads is 7"],
    );
    refused(
        |model| model.set(CONFIG, "/qformer_config/num_attention_heads", 0.into()),
        &[CONFIG, "qformer_config.num_attention_heads is 0"],
    );
    refused(
        |model| model.set(CONFIG, "/model_type", "llava".into()),
        &[CONFIG, "model_type is \"llava\"", "blip2-opt-2.7b"],
    );
    refused(
        |model| model.set(CONFIG, "/text_config/model_type", "t5".into()),
        &[CONFIG, "text_config.model_type", "T5"],
    );
    refused(
        |model| model.set(CONFIG, "/text_config/hidden_size", "wide".into()),
        &[
            CONFIG,
            "text_config.hidden_size is \"wide\"",
            "whole number",
        ],
    );
    refused(
        |model| model.set(CONFIG, "/text_config/hidden_size", json!(-40)),
        &[CONFIG, "text_config.hidden_size is -40"],
    );
    refused(
        |model| model.set(CONFIG, "/text_config/vocab_size", json!(1e30)),
        &[CONFIG, "text_config.vocab_size"],
    );
    refused(
        |model| model.set(CONFIG, "/vision_config", "none".into()),
        &[CONFIG, "vision_config", "object"],
    );
    refused(
        |model| model.set(CONFIG, "/vision_config/patch_size", 13.into()),
        &[CONFIG, "vision_config.patch_size is 13"],
    );
    refused(
        |model| model.set(CONFIG, "/vision_config/hidden_act", "mish".into()),
        &[CONFIG, "vision_config.hidden_act is \"mish\""],
    );
    refused(
        |model| model.set(CONFIG, "/num_query_tokens", json!(8.5)),
        &[CONFIG, "num_query_tokens is 8.5"],
    );
    // More queries than the decoder has positions: nothing could ever be generated.
    refused(
        |model| model.set(CONFIG, "/num_query_tokens", json!(100)),
        &["query_tokens", "[1, 8, 24]", "[1, 100, 24]"],
    );
}

#[test]
fn a_retrieval_model_cannot_caption() {
    let model = ModelCopy::new();
    let class = json!(["Blip2ForImageTextRetrieval"]);
    model.set("config.json", "/architectures", class);
    caption(model.path(), &[HOUSE])
        .exits(1)
        .one_error(&["retrieval model", "generative"]);
}

#[test]
fn generation_configurations() {
    const FILE: &str = "generation_config.json";
    accepted(|model| model.set(FILE, "/bos_token_id", Value::Null));
    refused(
        |model| model.write(FILE, "{"),
        &[FILE, "not a JSON object", "defaults"],
    );
    refused(
        |model| model.write(FILE, "[2]"),
        &[FILE, "not a JSON object"],
    );
    refused(
        |model| model.set(FILE, "/num_beams", "five".into()),
        &[FILE, "`num_beams`", "remove the field"],
    );
    refused(
        |model| model.set(FILE, "/eos_token_id", json!(["</s>"])),
        &[FILE, "`eos_token_id`"],
    );
    refused(
        |model| model.set(FILE, "/top_k", json!(-1)),
        &[FILE, "`top_k`"],
    );
    let folder: Spoil = |model| {
        model.remove(&[FILE]);
        std::fs::create_dir(model.file(FILE)).unwrap();
    };
    refused(folder, &[FILE, "cannot be read"]);

    // A value of the right type that cannot be used is the file's fault, not the command line's.
    refused(
        |model| model.set(FILE, "/num_beams", 0.into()),
        &[FILE, "num_beams"],
    );
    refused(
        |model| model.set(FILE, "/temperature", json!(0.0)),
        &[FILE, "temperature"],
    );
}

/// Ids that no token has reach no memory, and change nothing: shaders run without bounds checks.
#[test]
fn ids_outside_the_vocabulary() {
    let model = ModelCopy::new();
    const FILE: &str = "generation_config.json";
    model.set(FILE, "/eos_token_id", json!([4_000_000_000u32, 202, 500]));
    model.set(FILE, "/pad_token_id", json!(4_000_000_000u32));
    model.set(FILE, "/suppress_tokens", json!([4_000_000_000u32, 408]));
    model.set("config.json", "/image_token_index", json!(4_000_000_000u32));
    for beams in ["1", "3"] {
        let flags = ["--min-new-tokens", "1", "--beams", beams, HOUSE, BOAT];
        let ours = caption(model.path(), &flags).exits(0).json();
        let plain = caption(cli_support::TINY, &flags).exits(0).json();
        assert_eq!(ours[0]["tokens"], plain[0]["tokens"]);
        assert_eq!(ours[1]["tokens"], plain[1]["tokens"]);
    }
    caption(model.path(), &["--repetition-penalty", "1.3", HOUSE])
        .exits(0)
        .one_json();
    // More end tokens than any published model has.
    model.set(
        FILE,
        "/eos_token_id",
        json!([301, 302, 303, 304, 305, 306, 202]),
    );
    let line = caption(model.path(), &[HOUSE]).exits(0).one_json();
    assert_eq!(line["tokens"], plain_captions()[0]["tokens"]);
}

#[test]
fn preprocessor_configurations() {
    const FILE: &str = "preprocessor_config.json";
    // BLIP-2's defaults serve where there is none.
    accepted(|model| model.remove(&[FILE]));
    refused(
        |model| model.write(FILE, "{,}"),
        &[FILE, "not valid JSON", "again"],
    );
    refused(|model| model.write(FILE, "7"), &[FILE, "not valid JSON"]);
    refused(
        |model| model.set(FILE, "/size", json!({"height": 42})),
        &[FILE, "`size`", "shortest_edge"],
    );
    refused(
        |model| model.set(FILE, "/size", json!({"height": 0, "width": 0})),
        &[FILE, "`size`"],
    );
    refused(
        |model| model.set(FILE, "/image_mean", json!([0.5, 0.5])),
        &[FILE, "`image_mean`", "red, green and blue"],
    );
    refused(
        |model| model.set(FILE, "/image_std", json!([0.0, 0.5, 0.5])),
        &[FILE, "`image_std`"],
    );
    refused(
        |model| model.set(FILE, "/resample", 1.into()),
        &[FILE, "`resample`", "bicubic"],
    );
    refused(
        |model| model.set(FILE, "/do_resize", "no".into()),
        &[FILE, "`do_resize`"],
    );
    // The model takes square images of its own size, whatever sides the file would leave.
    for size in [
        json!({"shortest_edge": 42}),
        json!({"height": 84, "width": 42}),
    ] {
        let model = ModelCopy::new();
        model.set(FILE, "/size", size);
        let line = caption(model.path(), &[HOUSE]).exits(0).one_json();
        assert_eq!(line["tokens"], plain_captions()[0]["tokens"]);
    }
}

#[test]
fn tokenizers() {
    const BPE: [&str; 2] = ["vocab.json", "merges.txt"];
    // Either layout will do alone.
    accepted(|model| model.remove(&BPE));
    accepted(|model| model.remove(&["tokenizer.json"]));
    refused(
        |model| model.remove(&["tokenizer.json", "vocab.json", "merges.txt"]),
        &[
            "no tokenizer here",
            "tokenizer.json",
            "vocab.json",
            "merges.txt",
        ],
    );
    refused(
        |model| model.remove(&["tokenizer.json", "merges.txt"]),
        &["merges.txt", "missing", "vocab.json"],
    );
    refused(
        |model| model.write("tokenizer.json", "{"),
        &["tokenizer.json", "again"],
    );
    refused(
        |model| model.write("tokenizer.json", "{}"),
        &["tokenizer.json", "again"],
    );
    refused(
        |model| {
            let bytes = std::fs::read(model.file("tokenizer.json")).unwrap();
            model.write("tokenizer.json", half(&bytes));
        },
        &["tokenizer.json", "again"],
    );
    refused(
        |model| {
            model.remove(&["tokenizer.json"]);
            model.write("vocab.json", "{\"a\": \"b\"}");
        },
        &["vocab.json", "again"],
    );
    refused(
        |model| {
            model.remove(&["tokenizer.json"]);
            model.write("merges.txt", "one word\nand three words\n");
        },
        &["merges.txt", "again"],
    );
    // Ids that the model has no row for.
    let model = ModelCopy::new();
    model.set("tokenizer.json", "/model/vocab/a", 5000.into());
    caption(model.path(), &["--prompt", "a", HOUSE])
        .exits(1)
        .one_error(&["5000", "408", "tokenizer"]);
}
