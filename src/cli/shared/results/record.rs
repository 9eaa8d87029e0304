//! What the lines of a results file were made with: `<results file>.run.json`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::task::CheckpointParts;

use super::{ResultsError, failed, with_suffix};

/// The command, model and options of a run, as far as its results depend on them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The program's version: for readers, not compared.
    program: String,
    /// The subcommand.
    command: String,
    /// The checkpoint's path: for readers, not compared.
    model: String,
    /// [`model_fingerprint`].
    model_fingerprint: String,
    /// The flags that were given. Texts, so that no number changes by being written and read.
    options: BTreeMap<String, String>,
}

impl RunRecord {
    /// A record of a run of `command` on `model` and what was given beside it; `None` is the demo model.
    pub fn new(
        command: &str,
        model: Option<&Path>,
        parts: &CheckpointParts,
        options: BTreeMap<String, String>,
    ) -> Self {
        let model_name = match model {
            None => crate::cli::shared::DEMO.to_owned(),
            Some(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
                path.display().to_string()
            }
        };
        Self {
            program: format!("blip2-wgpu {}", env!("CARGO_PKG_VERSION")),
            command: command.into(),
            model: model_name,
            model_fingerprint: model_fingerprint(model, parts),
            options,
        }
    }

    /// Each thing that an `earlier` run had otherwise; empty if results of both may stand in one
    /// file.
    pub fn differences(&self, earlier: &Self) -> String {
        let mut differences = Vec::new();
        if self.command != earlier.command {
            differences.push(format!(
                "`{}` then, `{}` now",
                earlier.command, self.command
            ));
        }
        if self.model_fingerprint != earlier.model_fingerprint {
            differences.push(if self.model == earlier.model {
                format!("the files of the model {} have changed", self.model)
            } else {
                format!("--model {} then, {} now", earlier.model, self.model)
            });
        }
        let names: std::collections::BTreeSet<_> =
            self.options.keys().chain(earlier.options.keys()).collect();
        for name in names {
            let (then, now) = (earlier.options.get(name), self.options.get(name));
            if then != now {
                let show = |value: Option<&String>| {
                    value.map_or_else(|| "not given".to_owned(), |value| format!("{value:?}"))
                };
                differences.push(format!("{name}: {} then, {} now", show(then), show(now)));
            }
        }
        differences.join("; ")
    }

    /// Where the record of `results` lies.
    fn path(results: &Path) -> PathBuf {
        with_suffix(results, ".run.json")
    }

    /// The record beside `results`; `None` where there is none that can be read.
    pub fn read(results: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(Self::path(results)).ok()?;
        serde_json::from_str(&text).ok()
    }
}

/// The record's file, open and locked: one run at a time writes to the results beside it.
///
/// The lock is on this file and not on the results, for where locks are compulsory (Windows) nobody
/// could read the results of a run that goes on.
#[derive(Debug)]
pub struct LockedRecord {
    path: PathBuf,
    file: File,
}

impl LockedRecord {
    /// Takes the lock.
    pub fn lock(results: &Path) -> Result<Self, ResultsError> {
        let path = RunRecord::path(results);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed(&path, "written"))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(ResultsError::InUse {
                file: results.into(),
            }),
            // A file system without locks does without them.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { path, file }),
        }
    }

    /// Writes `record` in place: it changes only where no line stands that an old one could be
    /// wrong about.
    pub fn write(&mut self, record: &RunRecord) -> Result<(), ResultsError> {
        let json = serde_json::to_string_pretty(record).unwrap_or_default() + "\n";
        let file = &mut self.file;
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(json.as_bytes()))
            .and_then(|()| file.sync_data())
            .map_err(failed(&self.path, "written"))
    }
}

/// Parts of a large file that are looked at, spread evenly, and the bytes of each.
const SAMPLES: u64 = 256;
const SAMPLE_BYTES: u64 = 4096;

/// The files of a checkpoint, other than its weights, that results depend on.
const MODEL_FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
];

/// A number that tells whether the checkpoint `model` (`None`: the demo model) with its `parts` is another than before: its
/// small files, and lengths and samples of its weights. Files that cannot be read count as absent: opening the model names them.
pub fn model_fingerprint(model: Option<&Path>, parts: &CheckpointParts) -> String {
    let mut hash = Fnv1a::new();
    match model {
        None =>
        {
            #[cfg(feature = "demo-model")]
            for files in [&crate::demo::GENERATIVE, &crate::demo::RETRIEVAL] {
                hash.demo(files);
            }
        }
        Some(path) => {
            let parts = [&parts.vit, &parts.llm, &parts.config, &parts.tokenizer];
            let parts = parts.into_iter().flatten().map(PathBuf::as_path);
            for file in std::iter::once(path).chain(parts).flat_map(model_files) {
                if let Ok(mut open) = File::open(&file) {
                    let name = file.file_name().unwrap_or_default();
                    hash.write(name.as_encoded_bytes());
                    hash.samples(&mut open);
                }
            }
        }
    }
    format!("{:016x}", hash.0)
}

/// The files that make up the checkpoint at `path`, sorted.
fn model_files(path: &Path) -> Vec<PathBuf> {
    let folder = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(Path::new(""))
    };
    let mut files: Vec<_> = MODEL_FILES.iter().map(|name| folder.join(name)).collect();
    if path.is_file() {
        files.push(path.into());
    } else {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        let named = |part: &str| -> Vec<PathBuf> {
            let name = |file: &Path| file.file_name().unwrap_or_default().to_owned();
            let entries = entries.iter();
            let named = entries.filter(|file| name(file).to_string_lossy().contains(part));
            named.cloned().collect()
        };
        let weights = named(".safetensors");
        files.extend(match weights.is_empty() {
            true => named("pytorch_model"),
            false => weights,
        });
    }
    files.sort();
    files
}

/// The 64-bit FNV-1a hash (draft-eastlake-fnv): enough to notice a change that nobody makes on
/// purpose.
struct Fnv1a(u64);

impl Fnv1a {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    #[cfg(feature = "demo-model")]
    fn demo(&mut self, files: &crate::demo::DemoFiles) {
        self.write(files.config.as_bytes());
        self.write(files.generation_config.as_bytes());
        self.write(files.preprocessor_config.as_bytes());
        self.write(files.tokenizer.as_bytes());
        self.samples(&mut std::io::Cursor::new(files.weights));
    }

    /// The length of a file, and all of it if it is small, else samples.
    fn samples(&mut self, file: &mut (impl Read + Seek)) {
        let Ok(length) = file.seek(SeekFrom::End(0)) else {
            return;
        };
        self.write(&length.to_le_bytes());
        let step = (length / SAMPLES).max(SAMPLE_BYTES);
        let mut buffer = Vec::new();
        for start in (0..length).step_by(step as usize) {
            buffer.clear();
            let read = file
                .seek(SeekFrom::Start(start))
                .and_then(|_| file.take(SAMPLE_BYTES).read_to_end(&mut buffer));
            if read.is_ok() {
                self.write(&buffer);
            }
        }
    }
}
