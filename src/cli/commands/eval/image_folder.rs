//! Where a dataset's images lie.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use crate::eval::{EvalError, Id, id_in_name};

/// A folder of images, found by the names that dataset files give them or by the ids in their own.
#[derive(Debug)]
pub struct ImageFolder {
    folder: PathBuf,
    /// Files by the id in their name; made when first needed, for the folder may be large.
    by_id: OnceLock<HashMap<Id, Vec<PathBuf>>>,
}

impl ImageFolder {
    /// The folder `folder`.
    ///
    /// # Errors
    /// No such folder.
    pub fn open(folder: &Path) -> Result<Self, EvalError> {
        match std::fs::read_dir(folder) {
            Ok(_) => Ok(Self {
                folder: folder.into(),
                by_id: OnceLock::new(),
            }),
            Err(cause) => Err(EvalError::read(folder)(cause)),
        }
    }

    /// The file of the image that the dataset places at one of `paths` or calls `id`.
    ///
    /// Each path is tried as it is, without its folders but the last, and by its name alone; then
    /// any file below the folder whose name ends in the id, as mmpretrain finds VQAv2's images. No
    /// path leads out of the folder.
    ///
    /// # Errors
    /// No such file, one outside the folder, or two with the id. The error names `listed_in` and
    /// the id.
    pub fn find(&self, paths: &[String], id: &Id, listed_in: &Path) -> Result<PathBuf, EvalError> {
        let mut outside = None;
        for path in paths {
            let parts: Vec<&str> = path.split('/').collect();
            for keep in [parts.len(), 2, 1] {
                let file = self
                    .folder
                    .join(parts[parts.len().saturating_sub(keep)..].join("/"));
                if !file.is_file() {
                    continue;
                }
                if self.holds(&file) {
                    return Ok(file);
                }
                outside.get_or_insert(file);
            }
        }
        let wrong = |problem: String| EvalError::item(listed_in, format!("image {id}"), problem);
        if let Some(file) = outside {
            return Err(wrong(format!(
                "lies at {}, which is not in {}; pass the folder that has it as --images, or correct the file's name",
                file.display(),
                self.folder.display()
            )));
        }
        let files = match self.by_id.get() {
            Some(files) => files,
            None => {
                let files = index(&self.folder)?;
                self.by_id.get_or_init(|| files)
            }
        };
        match files.get(id).map(Vec::as_slice) {
            Some([file]) => Ok(file.clone()),
            Some([one, other, ..]) => Err(wrong(format!(
                "may be {} or {}; pass the folder that has only one of them",
                one.display(),
                other.display()
            ))),
            _ => {
                let named = paths
                    .first()
                    .map(|path| format!(" ({path})"))
                    .unwrap_or_default();
                Err(wrong(
                    format!(
                        "{named} is not in {}; check --images",
                        self.folder.display()
                    )
                    .trim_start()
                    .to_owned(),
                ))
            }
        }
    }
}

impl ImageFolder {
    /// Whether a path that a dataset gives stays in the folder. Links that somebody has put there
    /// may lead anywhere.
    fn holds(&self, file: &Path) -> bool {
        let plain = |rest: &Path| {
            let mut parts = rest.components();
            parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        };
        let within = || {
            let (file, folder) = (file.canonicalize().ok()?, self.folder.canonicalize().ok()?);
            Some(file.starts_with(folder))
        };
        file.strip_prefix(&self.folder).is_ok_and(plain) || within() == Some(true)
    }
}

/// All files below `folder` by the ids in their names.
fn index(folder: &Path) -> Result<HashMap<Id, Vec<PathBuf>>, EvalError> {
    let mut files: HashMap<Id, Vec<PathBuf>> = HashMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let read = |cause| EvalError::Read {
            file: folder.clone(),
            cause,
        };
        for entry in std::fs::read_dir(&folder).map_err(read)? {
            let entry = entry.map_err(read)?;
            if entry.file_type().map_err(read)?.is_dir() {
                folders.push(entry.path());
            } else if let Some(name) = entry.file_name().to_str() {
                files
                    .entry(id_in_name(name))
                    .or_default()
                    .push(entry.path());
            }
        }
    }
    Ok(files)
}
