//! Where a dataset's images lie.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use crate::cli::shared::inputs::has_image_extension;
use crate::eval::{EvalError, Id};
use crate::files::walk::{Met, walk};

/// A folder of images, found by the names that dataset files give them, else by ids.
#[derive(Debug)]
pub struct ImageFolder {
    folder: PathBuf,
    /// Paths of the dataset's images, whole and trimmed, by the image that each stands for; `None` where it
    /// would stand for several.
    listed: HashMap<String, Option<String>>,
    /// Images by the id in their name; made when first needed, for the folder may be large.
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
                listed: HashMap::new(),
                by_id: OnceLock::new(),
            }),
            Err(cause) => Err(EvalError::read(folder)(cause)),
        }
    }

    /// Notes the paths of all images of a dataset, so that no file stands for two of them.
    pub fn note<'a>(&mut self, images: impl IntoIterator<Item = &'a [String]>) {
        for paths in images {
            let Some(image) = paths.first() else { continue };
            for path in paths.iter().flat_map(|path| trims(path)) {
                let place = self
                    .listed
                    .entry(path)
                    .or_insert_with(|| Some(image.clone()));
                *place = place.take().filter(|other| other == image);
            }
        }
    }

    /// The file of the image that the dataset places at one of `paths` or, where it places it nowhere,
    /// calls `id`.
    ///
    /// Each path is tried as it is, without its folders but the last, and by its name alone, where these are
    /// no other image's too. An image
    /// that has only an id, as VQAv2's, is the one below the folder whose name is the id, or ends in it as
    /// COCO's do (`COCO_val2014_000000391895.jpg`). No path leads out of the folder.
    ///
    /// # Errors
    /// No such file, one outside the folder, or two with the id. The error names `listed_in` and
    /// the id.
    pub fn find(&self, paths: &[String], id: &Id, listed_in: &Path) -> Result<PathBuf, EvalError> {
        let wrong = |problem: String| EvalError::item(listed_in, format!("image {id}"), problem);
        let Some(first) = paths.first() else {
            return self.find_by_id(id, wrong);
        };
        let mut outside = None;
        for path in paths {
            let of_several = |trimmed: &String| {
                trimmed != path && self.listed.get(trimmed).is_some_and(Option::is_none)
            };
            for trimmed in trims(path).into_iter().filter(|it| !of_several(it)) {
                let file = self.folder.join(trimmed);
                if !file.is_file() {
                    continue;
                }
                if self.holds(&file) {
                    return Ok(file);
                }
                outside.get_or_insert(file);
            }
        }
        let folder = self.folder.display();
        let leads_out = first.split('/').any(|part| part == "..");
        Err(wrong(match outside {
            None if leads_out => format!(
                "({first}) is not in {folder}, out of which its path leads; pass the folder that has it as --images, or correct the file's name"
            ),
            Some(file) => format!(
                "lies at {}, which is not in {folder}; pass the folder that has it as --images, or correct the file's name",
                file.display(),
            ),
            None if id.to_string() == *first => format!("is not in {folder}; check --images"),
            None => format!("({first}) is not in {folder}; check --images"),
        }))
    }

    fn find_by_id(
        &self,
        id: &Id,
        wrong: impl Fn(String) -> EvalError,
    ) -> Result<PathBuf, EvalError> {
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
            _ => Err(wrong(format!(
                "is not in {}: no image there is called {id}, nor as COCO's with that number (COCO_val2014_{:0>12}.jpg); check --images",
                self.folder.display(),
                id.to_string()
            ))),
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

/// A path as it is, with its last folder alone, and by its name alone; one that leads upwards as it is.
fn trims(path: &str) -> Vec<String> {
    let parts: Vec<&str> = path.split('/').collect();
    let kept = match parts.contains(&"..") {
        true => vec![parts.len()],
        false => vec![parts.len(), 2, 1],
    };
    let trimmed = |keep: usize| parts[parts.len().saturating_sub(keep)..].join("/");
    let mut trims: Vec<String> = kept.into_iter().map(trimmed).collect();
    trims.dedup();
    trims
}

/// The images below `folder` by the ids that their names are, or have as COCO's have them.
fn index(folder: &Path) -> Result<HashMap<Id, Vec<PathBuf>>, EvalError> {
    let mut files: HashMap<Id, Vec<PathBuf>> = HashMap::new();
    for (file, met) in walk(folder) {
        match met {
            Met::File if has_image_extension(&file) => {}
            // A link that leads nowhere is not the image that is looked for.
            Met::Unread(cause) if !file.is_symlink() => {
                return Err(EvalError::Read { file, cause });
            }
            _ => continue,
        }
        let Some(stem) = file.file_stem().and_then(OsStr::to_str) else {
            continue;
        };
        let (whole, coco) = (Id::new(stem), coco_number(stem));
        for id in coco.into_iter().chain([whole]) {
            files.entry(id).or_default().push(file.clone());
        }
    }
    Ok(files)
}

/// The number in a name of COCO's pattern: twelve digits, alone or after the split.
fn coco_number(stem: &str) -> Option<Id> {
    let (_, digits) = stem.rsplit_once('_').unwrap_or(("", stem));
    let is_number = digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = is_number.then(|| digits.parse().ok())?;
    number.map(Id::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name` of a folder that holds `files`, looked for by `paths`, or else by the id 77.
    fn find(files: &[&str], paths: &[&str]) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let file = folder.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, b"x").unwrap();
        }
        let images = ImageFolder::open(folder.path()).unwrap();
        let paths: Vec<String> = paths.iter().map(|&path| path.to_owned()).collect();
        let found = images.find(&paths, &Id::Number(77), Path::new("list.json"));
        let name = |file: PathBuf| {
            let below = file.strip_prefix(folder.path()).unwrap();
            below.display().to_string()
        };
        found.map(name).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_counts_alone() {
        let files = ["val/0077.png", "77.png", "COCO_val2014_000000000077.jpg"];
        let error = find(&files, &["test/0077.png"]).unwrap_err();
        assert!(
            error.contains("image 77 (test/0077.png) is not in"),
            "{error}"
        );
        for path in ["val/0077.png", "png/val/0077.png"] {
            assert_eq!(find(&files, &[path]), Ok("val/0077.png".into()));
        }
        assert_eq!(find(&files, &["no.png", "x/77.png"]), Ok("77.png".into()));
    }

    #[test]
    fn no_file_stands_for_two_images() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["0001.png", "0002.png"] {
            std::fs::write(folder.path().join(file), b"x").unwrap();
        }
        let mut images = ImageFolder::open(folder.path()).unwrap();
        let listed = [
            "val/0001.png",
            "test/0001.png",
            "0002.png",
            "val/0002.png",
            "val/0003.png",
        ];
        let listed = listed.map(|path| [path.to_owned()]);
        images.note(listed.iter().map(<[String; 1]>::as_slice));
        let find = |path: &str| {
            let found = images.find(&[path.to_owned()], &Id::Number(1), Path::new("l.json"));
            found.map_err(|error| error.to_string())
        };
        for path in ["val/0001.png", "test/0001.png", "val/0002.png"] {
            assert!(find(path).unwrap_err().contains("is not in"), "{path}");
        }
        assert!(find("0002.png").is_ok());
        std::fs::write(folder.path().join("0003.png"), b"x").unwrap();
        assert!(find("val/0003.png").is_ok());
        assert!(
            find("../0003.png")
                .unwrap_err()
                .contains("out of which its path leads")
        );
    }

    #[test]
    fn an_id_alone_is_found_by_cocos_names() {
        let others = [
            "a77.png",
            "x_77.png",
            "VizWiz_val_00000077.jpg",
            "0077.png",
            "77.txt",
        ];
        let error = find(&others, &[]).unwrap_err();
        assert!(
            error.contains("is not in") && error.contains("COCO_val2014_000000000077.jpg"),
            "{error}"
        );
        for name in [
            "77.png",
            "val2014/COCO_val2014_000000000077.jpg",
            "000000000077.jpg",
        ] {
            let files = [&others[..], &[name]].concat();
            assert_eq!(find(&files, &[]), Ok(name.into()));
        }
        let both = ["77.png", "COCO_val2014_000000000077.jpg"];
        assert!(find(&both, &[]).unwrap_err().contains("may be"));
    }
}
