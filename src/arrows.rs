//! Holds the arrows of `docs/ARCHITECTURE.md`: what a room may use, and what only `cli` may do.

use std::path::{Path, PathBuf};

/// Rooms, the topmost first. A room uses those of later lines only, so no two rooms need each other.
const LAYERS: [&[&str]; 10] = [
    &["cli"],
    &["bench"],
    &["task", "eval"],
    &["convert", "hub", "schedule", "demo"],
    &["model", "generate"],
    &["kernels", "weights"],
    &["gpu", "text"],
    &["image"],
    &["files"],
    &["platform"],
];

/// Files that belong to no room: the crate's root, its program, the union of all errors, this one, doors for fuzzers.
const ROOMLESS: [&str; 5] = ["lib.rs", "main.rs", "error.rs", "arrows.rs", "fuzzing.rs"];

/// What stops a thread or speaks to a terminal.
const ONLY_IN_CLI: [&str; 5] = [
    "println!(",
    "print!(",
    "process::exit",
    "block_on(",
    "thread::sleep",
];

/// `hub` waits between attempts to fetch a file, on a thread of its caller's; `platform`'s timer is a
/// thread of its own.
const EXCEPTIONS: [(&str, &str); 2] = [("hub", "thread::sleep"), ("platform", "thread::sleep")];

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file, without comments and without its tests, which may reach anywhere.
fn code_of(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    let lines = text[..end].lines();
    let code = lines.map(|line| line.split("//").next().unwrap_or_default());
    code.collect::<Vec<_>>().join("\n")
}

/// The rooms that paths from the crate's root begin with.
fn rooms_used(code: &str) -> Vec<&str> {
    let paths = code.split("crate::").skip(1);
    let names = paths.flat_map(|path| match path.strip_prefix('{') {
        Some(group) => heads_of(group),
        None => vec![first_name(path)],
    });
    names.filter(|name| layer(name).is_some()).collect()
}

/// The first names of the items of a `use` group, which ends at its closing brace.
fn heads_of(group: &str) -> Vec<&str> {
    let (mut heads, mut depth, mut start) = (Vec::new(), 1, 0);
    for (at, letter) in group.char_indices() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        if depth == 0 || depth == 1 && letter == ',' {
            heads.push(first_name(&group[start..at]));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn first_name(path: &str) -> &str {
    let is_end = |letter: char| !letter.is_alphanumeric() && letter != '_';
    path.trim_start().split(is_end).next().unwrap_or_default()
}

/// Every source file that belongs to a room: its path below `src`, its room, its code.
fn sources() -> Vec<(String, String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let below = |file: &PathBuf| {
        let path = file.strip_prefix(&src).expect("a file below src");
        path.to_string_lossy().replace('\\', "/")
    };
    let is_test = |path: &str| {
        ["tests.rs", "testing.rs", "validate.rs"]
            .iter()
            .any(|end| path.ends_with(end))
    };
    let rooms = files.iter().filter_map(|file| {
        let path = below(file);
        if ROOMLESS.contains(&path.as_str()) || is_test(&path) {
            return None;
        }
        let room = path.split('/').next().unwrap_or_default();
        let room = room.trim_end_matches(".rs").to_owned();
        let code = code_of(&std::fs::read_to_string(file).expect("a text"));
        Some((path, room, code))
    });
    rooms.collect()
}

#[test]
fn arrows_point_down() {
    let mut upward = Vec::new();
    for (path, room, code) in sources() {
        let own = layer(&room).unwrap_or_else(|| panic!("{path}: no layer has the room `{room}`"));
        for used in rooms_used(&code) {
            if used != room && layer(used) <= Some(own) {
                upward.push(format!("{path} uses `{used}`"));
            }
        }
    }
    assert!(
        upward.is_empty(),
        "arrows that do not point down:\n{}",
        upward.join("\n")
    );
}

#[test]
fn only_the_program_prints_exits_and_blocks() {
    let mut found = Vec::new();
    for (path, room, code) in sources() {
        let words = ONLY_IN_CLI.iter().filter(|word| code.contains(**word));
        let words = words.filter(|word| !EXCEPTIONS.contains(&(room.as_str(), **word)));
        found.extend(
            words
                .filter(|_| room != "cli")
                .map(|word| format!("{path}: {word}")),
        );
    }
    assert!(
        found.is_empty(),
        "only `cli` may do this:\n{}",
        found.join("\n")
    );
}

#[test]
fn paths_are_read_as_rust_reads_them() {
    let code = code_of(
        "use crate::{gpu::{Gpu, GpuError}, task::Work}; // crate::cli\nfn f(x: crate::model::Vit) {}\n#[cfg(test)]\nmod tests { use crate::cli; }",
    );
    assert_eq!(rooms_used(&code), ["gpu", "task", "model"]);
}
