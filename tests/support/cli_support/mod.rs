//! Runs the program as a user does, on the tiny checkpoint, and reads what it says.
#![allow(dead_code)] // each test binary uses its part of this

pub mod folder;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Map, Value};

/// The tiny random checkpoint: 42-pixel images, 8 queries, 64 positions.
pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny");
/// Reference stages, tokens and scores of the tiny checkpoint.
pub const DUMP: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/tiny_dump.safetensors"
);
/// A small image.
pub const HOUSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/house.png");
/// Another small image.
pub const BOAT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/boat.png");

/// A finished run of the program.
#[derive(Debug)]
pub struct Run {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// What came on stdout.
    pub stdout: String,
    /// Lines on stderr. The Vulkan driver, whom the program keeps quiet, has none.
    pub stderr: Vec<String>,
}

impl Run {
    /// Fails unless the exit code is `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// The lines on stdout.
    pub fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }

    /// The lines on stdout, each of which must be a JSON object.
    #[track_caller]
    pub fn json(&self) -> Vec<Map<String, Value>> {
        assert!(
            self.stdout.is_empty() || self.stdout.ends_with('\n'),
            "half a line: {self:#?}"
        );
        let object = |line: &&str| match serde_json::from_str(line) {
            Ok(Value::Object(object)) => object,
            other => panic!("{line:?} is no object but {other:?}: {self:#?}"),
        };
        self.lines().iter().map(object).collect()
    }

    /// The only line on stdout, a JSON object.
    #[track_caller]
    pub fn one_json(&self) -> Map<String, Value> {
        let mut lines = self.json();
        assert_eq!(lines.len(), 1, "{self:#?}");
        lines.remove(0)
    }

    /// Fails unless stderr is one error line that holds all `parts`.
    #[track_caller]
    pub fn one_error(self, parts: &[&str]) -> Self {
        assert_eq!(self.stderr.len(), 1, "one line expected: {self:#?}");
        assert!(self.stderr[0].starts_with("error: "), "{self:#?}");
        self.says(parts)
    }

    /// Fails unless stderr holds all `parts`.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        let text = self.stderr.join("\n");
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing: {self:#?}");
        }
        self
    }
}

/// The program with an environment of its own: no settings of ours but a cache under the build folder.
pub fn command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blip2-wgpu"));
    // The adapter stays: the suite may be run on one that was chosen.
    for variable in ["MODEL", "DISABLE", "CHECKED"] {
        command.env_remove(format!("BLIP2_WGPU_{variable}"));
    }
    command
        .env("XDG_CACHE_HOME", cache())
        .env("COLUMNS", "100")
        .env_remove("XDG_RUNTIME_DIR") // as in a container
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// A cache that lives as long as the build folder: pipelines compile once.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

/// Runs the program.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Run {
    finish(command(arguments))
}

/// Runs `caption --model MODEL --json ARGUMENTS`.
#[track_caller]
pub fn caption(model: impl AsRef<Path>, arguments: &[&str]) -> Run {
    finish(caption_command(model, arguments))
}

/// `caption --model MODEL --json ARGUMENTS`, to be changed before it is run.
pub fn caption_command(model: impl AsRef<Path>, arguments: &[&str]) -> Command {
    let model = model.as_ref().as_os_str();
    let mut command = command([
        OsStr::new("caption"),
        OsStr::new("--model"),
        model,
        OsStr::new("--json"),
    ]);
    command.args(arguments);
    command
}

/// Runs a command to its end.
#[track_caller]
pub fn finish(command: Command) -> Run {
    finish_with_stdin(command, b"")
}

/// Runs a command to its end with `input` on its standard input.
#[track_caller]
pub fn finish_with_stdin(mut command: Command, input: &[u8]) -> Run {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().expect("the program starts");
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails early does not read it.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().expect("the program ends");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let run = Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: stderr.lines().map(str::to_owned).collect(),
    };
    assert!(!stderr.contains("panicked"), "{run:#?}");
    assert!((0..=2).contains(&run.code), "{run:#?}");
    run
}

/// Tokens and text of the house and the boat by a plain run, which other runs are compared with.
pub fn plain_captions() -> &'static [Map<String, Value>] {
    static CAPTIONS: OnceLock<Vec<Map<String, Value>>> = OnceLock::new();
    CAPTIONS.get_or_init(|| caption(TINY, &[HOUSE, BOAT]).exits(0).json())
}

/// A copy of the tiny checkpoint that may be spoilt.
pub struct ModelCopy {
    folder: tempfile::TempDir,
}

impl ModelCopy {
    /// A copy that works.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for entry in std::fs::read_dir(TINY).expect("the tiny checkpoint") {
            let file = entry.expect("an entry").path();
            let name = file.file_name().expect("a name");
            std::fs::copy(&file, folder.path().join(name)).expect("a copy");
        }
        Self { folder }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Removes files.
    pub fn remove(&self, names: &[&str]) {
        for name in names {
            std::fs::remove_file(self.file(name)).expect("removed");
        }
    }

    /// Replaces a file.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), bytes).expect("written");
    }

    /// Changes the value at a JSON pointer of a file; `null` takes it away.
    #[track_caller]
    pub fn set(&self, name: &str, pointer: &str, value: Value) {
        let text = std::fs::read(self.file(name)).expect("read");
        let mut json: Value = serde_json::from_slice(&text).expect("JSON");
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let object = json
            .pointer_mut(parent)
            .and_then(Value::as_object_mut)
            .unwrap_or_else(|| panic!("no {parent} in {name}"));
        match value {
            Value::Null => object.remove(key),
            value => object.insert(key.to_owned(), value),
        };
        self.write(name, json.to_string());
    }

    /// Changes the weights.
    pub fn tamper(&self, change: impl FnOnce(&mut Safetensors)) {
        let file = self.file("model.safetensors");
        let mut tensors = Safetensors::read(&file);
        change(&mut tensors);
        tensors.write(&file);
    }
}

/// A safetensors file taken apart.
pub struct Safetensors {
    /// The header.
    pub header: Map<String, Value>,
    /// All that comes after it.
    pub data: Vec<u8>,
}

impl Safetensors {
    /// Reads a file that is whole.
    pub fn read(file: &Path) -> Self {
        let bytes = std::fs::read(file).expect("read");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        Self {
            header: serde_json::from_slice(&bytes[8..8 + length]).expect("a header"),
            data: bytes[8 + length..].to_vec(),
        }
    }

    /// Writes it, whatever it says now.
    pub fn write(&self, file: &Path) {
        let header = Value::Object(self.header.clone()).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(&self.data);
        std::fs::write(file, bytes).expect("written");
    }

    /// Where a tensor's bytes are.
    pub fn range(&self, tensor: &str) -> std::ops::Range<usize> {
        let offsets = &self.header[tensor]["data_offsets"];
        let offset = |index: usize| offsets[index].as_u64().expect("an offset") as usize;
        offset(0)..offset(1)
    }

    /// Takes a tensor away, its bytes too: the format has no gaps.
    pub fn remove(&mut self, tensor: &str) {
        let gone = self.range(tensor);
        self.header.remove(tensor).expect("the tensor");
        for (name, info) in &mut self.header {
            if name == "__metadata__" {
                continue;
            }
            for offset in info["data_offsets"].as_array_mut().expect("offsets") {
                let old = offset.as_u64().expect("an offset");
                if old >= gone.end as u64 {
                    *offset = (old - gone.len() as u64).into();
                }
            }
        }
        self.data.drain(gone);
    }
}
