//! The files below a folder, each once, whatever links lie there.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// What a walk met.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Files, sorted by path. A linked file is there by the link's name.
    pub(crate) files: Vec<PathBuf>,
    /// Folders and links that cannot be looked at; a link that leads nowhere is one.
    pub(crate) errors: Vec<(PathBuf, io::Error)>,
}

/// Walks `folder` and the folders below it. A linked folder is entered like any other, but no folder
/// twice: a link to a folder above ends there, and a folder has its own name before a link's.
pub(crate) fn walk(folder: &Path) -> Found {
    let mut walk = Walk::default();
    walk.enter(folder);
    // Links last, so that a folder within reach goes by its own name.
    while let Some(link) = walk.links.pop() {
        walk.enter(&link);
    }
    walk.found.files.sort();
    walk.found
}

#[derive(Default)]
struct Walk {
    found: Found,
    entered: HashSet<Identity>,
    links: Vec<PathBuf>,
}

impl Walk {
    fn enter(&mut self, folder: &Path) {
        let entries = identity(folder).and_then(|identity| {
            let is_new = self.entered.insert(identity);
            is_new.then(|| std::fs::read_dir(folder)).transpose()
        });
        let entries = match entries {
            Ok(None) => return,
            Ok(Some(entries)) => entries,
            Err(error) => return self.found.errors.push((folder.into(), error)),
        };
        let mut entries: Vec<_> = entries
            .filter_map(|entry| match entry {
                Ok(entry) => Some(entry.path()),
                Err(error) => {
                    self.found.errors.push((folder.into(), error));
                    None
                }
            })
            .collect();
        entries.sort();
        entries.into_iter().for_each(|path| self.add(path));
    }

    fn add(&mut self, path: PathBuf) {
        let is_link = path.is_symlink();
        match std::fs::metadata(&path) {
            Ok(what) if what.is_dir() && is_link => self.links.push(path),
            Ok(what) if what.is_dir() => self.enter(&path),
            Ok(_) => self.found.files.push(path),
            Err(error) => self.found.errors.push((path, error)),
        }
    }
}

/// What tells a folder from every other.
#[cfg(unix)]
type Identity = (u64, u64);
#[cfg(not(unix))]
type Identity = PathBuf;

/// The device and number of the folder that `path` leads to.
#[cfg(unix)]
pub(crate) fn identity(path: &Path) -> io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|folder| (folder.dev(), folder.ino()))
}

/// The path of the folder itself that `path` leads to.
#[cfg(not(unix))]
pub(crate) fn identity(path: &Path) -> io::Result<Identity> {
    path.canonicalize()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn each_folder_is_entered_once_by_its_own_name() {
        let root = tempfile::tempdir().expect("a folder");
        let at = |name: &str| root.path().join(name);
        let elsewhere = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(at("z/deep")).expect("folders");
        for file in ["z/1.png", "z/deep/2.png"] {
            std::fs::write(at(file), b"x").expect("a file");
        }
        std::fs::write(elsewhere.path().join("3.png"), b"x").expect("a file");
        symlink(elsewhere.path(), at("linked")).expect("a link");
        symlink(elsewhere.path(), at("linked_again")).expect("a link");
        symlink(root.path(), at("z/deep/above")).expect("a link");
        symlink(at("z"), at("a")).expect("a link");
        symlink(at("z/1.png"), at("file.png")).expect("a link");
        symlink(at("gone"), at("nowhere")).expect("a link");
        symlink(at("itself"), at("itself")).expect("a link");

        let found = walk(root.path());
        let name = |path: &Path| {
            let path = path.strip_prefix(root.path()).expect("below the root");
            path.display().to_string()
        };
        let files: Vec<_> = found.files.iter().map(|path| name(path)).collect();
        assert_eq!(files.len(), 4, "{files:?}");
        assert_eq!(files[0], "file.png");
        assert!(files[1].starts_with("linked") && files[1].ends_with("3.png"));
        assert_eq!(files[2..], ["z/1.png", "z/deep/2.png"]);
        let errors: Vec<_> = found.errors.iter().map(|(path, _)| name(path)).collect();
        assert_eq!(errors, ["itself", "nowhere"]);
    }
}
