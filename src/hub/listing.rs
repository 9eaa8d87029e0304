//! What a repository holds.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::Read;

use serde::Deserialize;

use super::connection::{Connection, NoAnswer};
use super::denied::RequestContext;
use super::{HubError, HubSettings};
use crate::files::text;

/// A listing has a few KB a file.
const MAX_BYTES: u64 = 32 << 20;

/// Missing shards named; published models have fewer.
const MOST_NAMED: usize = 20;

/// Files besides the weights that a checkpoint may have.
/// The adapter's is of use in so far as such a checkpoint is refused.
pub(super) const SMALL: [&str; 14] = [
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
];

/// Weights, the better format first: (single file, index, beginning and end of a shard's name).
const WEIGHTS: [(&str, &str, &str, &str); 2] = [
    (
        "model.safetensors",
        "model.safetensors.index.json",
        "model-",
        ".safetensors",
    ),
    (
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "pytorch_model-",
        ".bin",
    ),
];

/// The name of a repository: owner and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoName {
    owner: String,
    name: String,
}

impl RepoName {
    /// Reads `OWNER/NAME`.
    ///
    /// # Errors
    /// It is none: such names have letters, digits, `-`, `_` and `.`, and never begin with a dot.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let is_part = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        match text.split_once('/') {
            Some((owner, name)) if is_part(owner) && is_part(name) => Ok(Self {
                owner: owner.into(),
                name: name.into(),
            }),
            _ => Err(HubError::Name { name: text.into() }),
        }
    }

    /// Its folder in the cache.
    pub fn folder(&self) -> String {
        format!("models--{}--{}", self.owner, self.name)
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its name, a plain one.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Its name in the cache, and what it must hash to: SHA-256 of a large file (64 digits), git's
    /// SHA-1 of a small one (40).
    pub hash: String,
}

impl RemoteFile {
    /// Whether it says which shard each tensor is in.
    pub(super) fn is_index(&self) -> bool {
        WEIGHTS.iter().any(|(_, index, ..)| self.name == *index)
    }
}

/// The files of a checkpoint at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The repository.
    pub repo: RepoName,
    /// What was asked for: a branch, tag or commit.
    pub revision: String,
    /// The commit that it is.
    pub commit: String,
    /// Those of its files that this program has use for, an index of shards first.
    pub files: Vec<RemoteFile>,
}

impl Listing {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Compares the shards that `index` names, a file of the listing, with those that are listed.
    /// That they are too few is said before they are fetched.
    ///
    /// # Errors
    /// A problem with it, for people: it is no index, or names what is not listed.
    pub(super) fn check_shards(&self, index: &[u8]) -> Result<(), String> {
        let index: ShardIndex =
            text::json(index).map_err(|error| format!("is no index of shards ({error})"))?;
        let listed = |name: &String| self.files.iter().any(|file| file.name == *name);
        let named: BTreeSet<String> = index.weight_map.into_values().collect();
        if named.is_empty() {
            return Err("names no shards".into());
        }
        let count = named.len();
        let missing: Vec<String> = named.into_iter().filter(|name| !listed(name)).collect();
        match missing.as_slice() {
            [] => Ok(()),
            missing => Err(format!(
                "of the {count} shards that it names, {} not in the repository: {}{}",
                match missing.len() {
                    1 => "one is".into(),
                    missing => format!("{missing} are"),
                },
                missing[..missing.len().min(MOST_NAMED)].join(", "),
                match missing.len() > MOST_NAMED {
                    true => ", …",
                    false => "",
                }
            )),
        }
    }
}

/// `model.safetensors.index.json` and its like.
#[derive(Deserialize)]
struct ShardIndex {
    /// The shard of each tensor.
    weight_map: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// Asks the hub.
pub(super) fn fetch(
    connection: &Connection,
    settings: &HubSettings,
    repo: &RepoName,
    revision: &str,
) -> Result<Listing, HubError> {
    let wrong = || HubError::Name {
        name: format!("{repo}@{revision}"),
    };
    if revision.is_empty()
        || !revision
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        || revision.contains("..")
    {
        return Err(wrong());
    }
    let encoded = revision.replace('/', "%2F");
    let url = format!(
        "{}/api/models/{repo}/revision/{encoded}?blobs=true",
        settings.endpoint
    );
    let answer = connection.get(&url, settings.token.as_deref(), 0);
    let mut answer = answer.map_err(|no_answer| no_answer.into_error(&url))?;
    if !answer.status().is_success() {
        let context = RequestContext {
            url: &url,
            page: &settings.page(repo),
            with_token: settings.token.is_some(),
            file: false,
        };
        return Err(context.denied(&answer));
    }
    let mut text = Vec::new();
    let body = answer
        .body_mut()
        .as_reader()
        .take(MAX_BYTES)
        .read_to_end(&mut text);
    body.map_err(|error| NoAnswer::Broken(error.to_string()).into_error(&url))?;
    let answer: Answer = serde_json::from_slice(&text).map_err(|error| HubError::Answer {
        url: url.clone(),
        problem: format!("the answer is no listing of a repository ({error})"),
    })?;
    read(answer, repo, revision, &url)
}

fn read(answer: Answer, repo: &RepoName, revision: &str, url: &str) -> Result<Listing, HubError> {
    let bad = |problem: String| HubError::Answer {
        url: url.into(),
        problem,
    };
    if !is_hash(&answer.sha, &[40]) {
        return Err(bad("the listing names no commit".into()));
    }
    let names: Vec<&str> = answer
        .siblings
        .iter()
        .map(|file| file.rfilename.as_str())
        .collect();
    let wanted = wanted(&names).map_err(|problem| HubError::NoCheckpoint {
        repo: repo.clone(),
        problem,
    })?;
    let mut files = Vec::new();
    for file in &answer.siblings {
        if !wanted.contains(&file.rfilename.as_str()) {
            continue;
        }
        let (size, hash) = match &file.lfs {
            Some(lfs) => (Some(lfs.size), Some(lfs.sha256.as_str())),
            None => (file.size, file.blob_id.as_deref()),
        };
        let (Some(size), Some(hash)) = (size, hash.filter(|hash| is_hash(hash, &[40, 64]))) else {
            return Err(bad(format!(
                "the listing has no size and hash of {}",
                file.rfilename
            )));
        };
        files.push(RemoteFile {
            name: file.rfilename.clone(),
            size,
            hash: hash.into(),
        });
    }
    let sizes = files.iter().map(|file| file.size);
    if { sizes }.try_fold(0, u64::checked_add).is_none() {
        return Err(bad("the sizes in the listing cannot be".into()));
    }
    files.sort_by_key(|file| !file.is_index());
    Ok(Listing {
        repo: repo.clone(),
        revision: revision.into(),
        commit: answer.sha,
        files,
    })
}

/// Those of a repository's files that make a checkpoint: weights in one format, and what goes with
/// them.
fn wanted<'n>(names: &[&'n str]) -> Result<Vec<&'n str>, &'static str> {
    if !names.contains(&"config.json") {
        return Err("no config.json");
    }
    let of = |pick: &dyn Fn(&str) -> bool| -> Vec<&'n str> {
        names.iter().copied().filter(|name| pick(name)).collect()
    };
    for (single, index, start, end) in WEIGHTS {
        let weights = if names.contains(&single) {
            of(&|name| name == single)
        } else if names.contains(&index) {
            of(&|name| {
                let is_shard = name.starts_with(start) && name.ends_with(end) && is_plain(name);
                name == index || is_shard
            })
        } else {
            continue;
        };
        let small = of(&|name| SMALL.contains(&name));
        return Ok([small, weights].concat());
    }
    Err("neither model.safetensors nor pytorch_model.bin, nor shards of them")
}

/// Whether a file of this name lies in the folder itself, on every system.
fn is_plain(name: &str) -> bool {
    let is_usual = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    name.chars().all(is_usual)
}

fn is_hash(text: &str, lengths: &[usize]) -> bool {
    lengths.contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Reads `text` as the hub's answer, and as the index of the shards in that.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz(text: &[u8]) -> Option<Listing> {
    let repo = RepoName::parse("owner/name").ok()?;
    let answer = serde_json::from_slice(text).ok()?;
    let listing = read(answer, &repo, super::MAIN, "https://hub").ok()?;
    let _ = listing.check_shards(text);
    Some(listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_repositories() {
        let name = RepoName::parse("Salesforce/blip2-opt-2.7b").unwrap();
        assert_eq!(name.to_string(), "Salesforce/blip2-opt-2.7b");
        assert_eq!(name.folder(), "models--Salesforce--blip2-opt-2.7b");
        for wrong in [
            "", "a", "a/", "/a", "a/b/c", "../a", "a/..", "a/.b", "a b/c", "a/b?x", "-a/b",
            "a\\b/c",
        ] {
            assert!(RepoName::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_format_of_weights_is_wanted() {
        let both = [
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "README.md",
            "merges.txt",
            "onnx/model.onnx",
        ];
        assert_eq!(
            wanted(&both).unwrap(),
            ["config.json", "merges.txt", "model.safetensors"]
        );
        let shards = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "config.json",
            "x/model-00001-of-00002.safetensors",
            "model-\\..\\..\\x.safetensors",
            "pytorch_model-00001-of-00002.bin",
        ];
        assert_eq!(wanted(&shards).unwrap().len(), 4);
        assert_eq!(
            wanted(&["config.json", "pytorch_model.bin"]).unwrap().len(),
            2
        );
        assert!(wanted(&["model.safetensors"]).is_err());
        assert!(wanted(&["config.json", "flax_model.msgpack"]).is_err());
    }

    #[test]
    fn shards_that_are_not_listed_are_named() {
        let file = |name: &str| serde_json::json!({"rfilename": name, "size": 3, "blobId": "0".repeat(40)});
        let names = [
            "config.json",
            "pytorch_model-1.bin",
            "pytorch_model.bin.index.json",
        ];
        let files: Vec<_> = names.into_iter().map(file).collect();
        let answer = serde_json::json!({"sha": "0".repeat(40), "siblings": files});
        let repo = RepoName::parse("a/b").unwrap();
        let listing = read(
            serde_json::from_value(answer).unwrap(),
            &repo,
            "main",
            "url",
        )
        .unwrap();
        assert!(listing.files[0].is_index(), "fetched first");
        let check = |index: &str| listing.check_shards(index.as_bytes());
        let one = r#"{"metadata": {}, "weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-1.bin"}}"#;
        assert_eq!(check(one), Ok(()));
        let more = r#"{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin", "c": "x/y.bin"}}"#;
        let problem = check(more).unwrap_err();
        let expected = "of the 3 shards that it names, 2 are not in the repository: pytorch_model-2.bin, x/y.bin";
        assert_eq!(problem, expected);
        for wrong in ["", "[]", "{}", r#"{"weight_map": {"a": 1}}"#] {
            assert!(check(wrong).unwrap_err().contains("no index"), "{wrong}");
        }
        assert!(check(r#"{"weight_map": {}}"#).is_err());
    }

    #[test]
    fn listings_that_cannot_be_are_refused() {
        let hash = "0".repeat(40);
        let parse = |sha: &str, files: serde_json::Value| {
            let answer = serde_json::json!({"sha": sha, "siblings": files});
            let answer: Answer = serde_json::from_value(answer).unwrap();
            read(answer, &RepoName::parse("a/b").unwrap(), "main", "url")
        };
        let file = |name: &str, hash: &str| serde_json::json!({"rfilename": name, "size": 3, "blobId": hash});
        let good = serde_json::json!([
            file("config.json", &hash),
            file("model.safetensors", &hash),
            file("../x", "?")
        ]);
        assert_eq!(parse(&hash, good.clone()).unwrap().files.len(), 2);
        assert!(parse("main", good).is_err());
        let huge =
            |name: &str| serde_json::json!({"rfilename": name, "size": u64::MAX, "blobId": hash});
        let bad = serde_json::json!([huge("config.json"), huge("model.safetensors")]);
        let error = parse(&hash, bad).unwrap_err().to_string();
        assert!(error.contains("sizes in the listing"), "{error}");
        let bad = serde_json::json!([
            file("config.json", "../../x"),
            file("model.safetensors", &hash)
        ]);
        assert!(
            parse(&hash, bad)
                .unwrap_err()
                .to_string()
                .contains("no size and hash of config.json")
        );
    }
}
