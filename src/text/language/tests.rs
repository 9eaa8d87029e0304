use std::fs;

use serde_json::json;

use super::*;
use crate::text::{BertTokenizer, TextStream};

/// The character that stands for a byte in a byte-level vocabulary (GPT-2's table).
fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count();
    char::from_u32(256 + before as u32).unwrap()
}

const MERGES: &str = "#version: 0.2\nĠ c\na t\nĠc at\n";

/// Four special tokens, all bytes, three merges: ids 0..=262.
fn vocab() -> serde_json::Value {
    let specials = ["<s>", "<pad>", "</s>", "<unk>"].map(String::from);
    let bytes = (0..=255).map(|b| byte_character(b).to_string());
    let merged = ["Ġc", "at", "Ġcat"].map(String::from);
    let tokens = specials.into_iter().chain(bytes).chain(merged);
    let pairs = (0..).zip(tokens).map(|(id, token)| (token, json!(id)));
    pairs.collect::<serde_json::Map<_, _>>().into()
}

const AT: u32 = 261;
const SPACE_CAT: u32 = 262;
fn byte(b: u8) -> u32 {
    u32::from(b) + 4
}

fn special_map() -> String {
    json!({"bos_token": "</s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}).to_string()
}

fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn split_folder() -> tempfile::TempDir {
    folder(&[
        ("vocab.json", vocab().to_string()),
        ("merges.txt", MERGES.into()),
        ("special_tokens_map.json", special_map()),
        ("added_tokens.json", json!({"<image>": 263}).to_string()),
    ])
}

/// The same as a `tokenizer.json`, with a post-processor, padding and truncation that must not matter.
fn whole_folder(post_processor: serde_json::Value) -> tempfile::TempDir {
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level = |prefix| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    let whole = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"},
        "added_tokens": [added(1, "<pad>"), added(2, "</s>"), added(263, "<image>")],
        "normalizer": null,
        "pre_tokenizer": byte_level(false),
        "post_processor": post_processor,
        "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab(), "merges": ["Ġ c", "a t", "Ġc at"]},
    });
    folder(&[
        ("tokenizer.json", whole.to_string()),
        ("special_tokens_map.json", special_map()),
    ])
}

fn adds_bos() -> serde_json::Value {
    json!({"type": "TemplateProcessing",
           "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
           "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}})
}

#[test]
fn every_layout_encodes_alike() {
    let layouts = [
        split_folder(),
        whole_folder(adds_bos()),
        whole_folder(serde_json::Value::Null),
    ];
    for layout in layouts {
        let opt = Tokenizer::open(layout.path(), PromptMark::First(2)).unwrap();
        let encode = |text| opt.encode(text).unwrap();
        assert_eq!(encode("cat cat"), [2, byte(b'c'), AT, SPACE_CAT]);
        assert_eq!(encode(""), [2]);
        assert_eq!(encode("</s><image>\n"), [2, 2, 263, byte(b'\n')]);
        assert_eq!(encode("é"), [2, byte(0xC3), byte(0xA9)]);
        assert_eq!(opt.encode_alone(" cat").unwrap(), [SPACE_CAT]);
        assert_eq!(
            (opt.mark(), opt.token_id("<image>")),
            (PromptMark::First(2), Some(263))
        );
        assert!(opt.special_ids().starts_with(&[1, 2]));
    }
}

#[test]
fn decoding_undoes_encoding() {
    let folder = split_folder();
    let opt = Tokenizer::open(folder.path(), PromptMark::First(2)).unwrap();
    for text in ["a cat , don't", " 日本 🐱\n", "tab\t\u{0}"] {
        let ids = opt.encode(text).unwrap();
        assert_eq!(opt.decode(&ids, true).unwrap(), text);
        assert_eq!(opt.decode(&ids, false).unwrap(), format!("</s>{text}"));
    }
    // Half a character, and ids that are no tokens.
    assert_eq!(opt.decode(&[byte(0xC3), 9999], true).unwrap(), "\u{FFFD}");
}

#[test]
fn a_streamed_text_is_the_whole_text() {
    let folder = split_folder();
    let opt = Tokenizer::open(folder.path(), PromptMark::First(2)).unwrap();
    let mut stream = TextStream::new(&opt);
    let ids = opt.encode(" cat 🐱!\n").unwrap();
    let mut pieces: Vec<_> = ids.iter().filter_map(|&id| stream.push(id)).collect();
    pieces.extend(stream.finish());
    assert_eq!(opt.newline(), Some(byte(b'\n')));
    assert_eq!(pieces, ["cat", " 🐱", "!"]);
}

fn error(files: &[(&str, String)]) -> String {
    let folder = folder(files);
    Tokenizer::open(folder.path(), PromptMark::First(2))
        .unwrap_err()
        .to_string()
}

#[test]
fn missing_files_are_named() {
    assert!(error(&[]).contains("no tokenizer"));
    let vocab = ("vocab.json", vocab().to_string());
    let merges = ("merges.txt", MERGES.to_string());
    assert!(error(&[vocab]).contains("merges.txt"));
    assert!(error(&[merges]).contains("vocab.json"));
}

#[test]
fn broken_files_are_named() {
    let vocab = || ("vocab.json", vocab().to_string());
    let merges = |text: &str| ("merges.txt", text.to_string());
    assert!(error(&[("tokenizer.json", "{\"version\"".into())]).contains("tokenizer.json"));
    assert!(error(&[("tokenizer.json", "{}".into())]).contains("tokenizer.json"));
    assert!(error(&[("vocab.json", "[]".into()), merges(MERGES)]).contains("vocab.json"));
    let fraction = ("vocab.json", json!({"a": 1.5}).to_string());
    assert!(error(&[fraction, merges(MERGES)]).contains("\"a\""));
    assert!(error(&[vocab(), merges("Ġ c\nabc\n")]).contains("line 2"));
    assert!(error(&[vocab(), merges("z z\n")]).contains("merges.txt"));
    let config = ("tokenizer_config.json", "nonsense".to_string());
    assert!(error(&[vocab(), merges(MERGES), config]).contains("tokenizer_config.json"));
    // An added token whose id the vocabulary does not lead up to.
    let added = ("added_tokens.json", json!({"<image>": 300}).to_string());
    assert!(error(&[vocab(), merges(MERGES), added]).contains("<image>"));
}

#[test]
fn the_vocabulary_must_fit_the_model() {
    let folder = split_folder();
    let opt = Tokenizer::open(folder.path(), PromptMark::First(2)).unwrap();
    opt.check_embedding_rows(264).unwrap();
    let message = opt.check_embedding_rows(263).unwrap_err().to_string();
    assert!(message.contains("263"), "{message}");
    let bos = Tokenizer::open(folder.path(), PromptMark::First(5000))
        .unwrap_err()
        .to_string();
    assert!(bos.contains("5000"), "{bos}");
}

#[derive(serde::Deserialize)]
struct Expected {
    text: String,
    ids: Vec<u32>,
    decoded_skip_special: String,
}

#[test]
fn the_opt_vocabulary_encodes_as_expected() {
    let Some(shared) = std::env::var_os("BLIP2_WGPU_SHARED") else {
        eprintln!("skipped: BLIP2_WGPU_SHARED is not set");
        return;
    };
    let shared = Path::new(&shared).join("data/opt_tokenizer");
    let read = |name: &str| fs::read_to_string(shared.join(name)).unwrap();
    let expected: Vec<Expected> = serde_json::from_str(&read("expected_encodings.json")).unwrap();
    assert!(!expected.is_empty());
    let names = [
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
    ];
    let split = folder(&names.map(|name| (name, read(name))));
    for folder in [shared.as_path(), split.path()] {
        let opt = Tokenizer::open(folder, PromptMark::First(2)).unwrap();
        for case in &expected {
            let ids = opt.encode(&case.text).unwrap();
            assert_eq!(ids, case.ids, "{}", case.text);
            assert_eq!(opt.decode(&ids, true).unwrap(), case.decoded_skip_special);
        }
        assert_eq!(opt.special_ids(), [1, 2, 50265]);
        opt.check_embedding_rows(50272).unwrap();
        assert!(opt.check_embedding_rows(50265).is_err());
    }
}

#[test]
fn a_tokenizer_of_another_kind_is_refused_though_its_ids_fit() {
    let folders = [
        ("tiny", "BPE"),
        ("tiny-itm", "WordPiece"),
        ("tiny-t5", "Unigram"),
    ];
    for (name, kind) in folders {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(name);
        let file = folder.join("tokenizer.json");
        let text = fs::read(&file).unwrap();
        let (first, last) = (PromptMark::First(2), PromptMark::Last(1));
        let opened = [
            ("BPE", Tokenizer::open(&folder, first).err()),
            ("BPE", Tokenizer::from_json(&text, &file, first).err()),
            ("Unigram", Tokenizer::open(&folder, last).err()),
            ("Unigram", Tokenizer::from_json(&text, &file, last).err()),
            ("WordPiece", BertTokenizer::open(&folder).err()),
            ("WordPiece", BertTokenizer::from_json(&text, &file).err()),
        ];
        for (wanted, error) in opened {
            let error = error.map(|error| error.to_string());
            assert_eq!(error.is_none(), wanted == kind, "{name}: {error:?}");
            if let Some(error) = error {
                let start = format!("{}: is a tokenizer of the kind {kind} (", file.display());
                assert!(error.starts_with(&start), "{error}");
                assert!(error.contains(&format!("needs {wanted} (")), "{error}");
            }
        }
    }
    // One without any subwords is nobody's.
    let words =
        json!({"model": {"type": "WordLevel", "vocab": {"</s>": 2, "a": 3}, "unk_token": "a"}});
    let folder = folder(&[("tokenizer.json", words.to_string())]);
    let error = Tokenizer::open(folder.path(), PromptMark::First(2)).unwrap_err();
    assert!(
        error.to_string().contains("of the kind WordLevel"),
        "{error}"
    );
}
