//! The files below a folder, each once, whatever links lie there.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// What stands at a path.
#[derive(Debug)]
pub(crate) enum Met {
    /// A file, or a link to one.
    File,
    /// A pipe, socket or device, or a link to one.
    Other,
    /// Something that cannot be looked at. A link that leads nowhere is one.
    Unread(io::Error),
}

/// What stands at `path`, which is no folder.
pub(crate) fn met_at(path: PathBuf) -> (PathBuf, Met) {
    let met = match std::fs::metadata(&path) {
        Ok(what) if what.is_file() => Met::File,
        Ok(_) => Met::Other,
        Err(error) => Met::Unread(error),
    };
    (path, met)
}

/// All that is in `folder` and the folders below it, sorted by path. A linked folder is entered like any other,
/// but no folder twice: a link to a folder above ends there, and a folder has its own name before a link's.
pub(crate) fn walk(folder: &Path) -> Vec<(PathBuf, Met)> {
    walk_all(vec![folder.into()])
}

/// [`walk`] of several folders, which may be below each other: none is entered twice, and each goes by its
/// shortest name.
pub(crate) fn walk_all(mut folders: Vec<PathBuf>) -> Vec<(PathBuf, Met)> {
    let mut walk = Walk::default();
    folders.sort_by_key(|folder| folder.components().count());
    folders.iter().for_each(|folder| walk.enter(folder));
    // Links last, so that a folder within reach goes by its own name.
    while let Some(link) = walk.links.pop() {
        walk.enter(&link);
    }
    walk.met.sort_by(|a, b| a.0.cmp(&b.0));
    walk.met
}

#[derive(Default)]
struct Walk {
    met: Vec<(PathBuf, Met)>,
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
            Err(error) => return self.met.push((folder.into(), Met::Unread(error))),
        };
        let mut paths = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => paths.push(entry.path()),
                Err(error) => self.met.push((folder.into(), Met::Unread(error))),
            }
        }
        paths.sort();
        paths.into_iter().for_each(|path| self.add(path));
    }

    fn add(&mut self, path: PathBuf) {
        match std::fs::metadata(&path) {
            Ok(what) if what.is_dir() && path.is_symlink() => self.links.push(path),
            Ok(what) if what.is_dir() => self.enter(&path),
            _ => self.met.push(met_at(path)),
        }
    }
}

/// What tells a folder from every other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity(#[cfg(unix)] (u64, u64), #[cfg(not(unix))] PathBuf);

/// The device and number of the folder that `path` leads to.
#[cfg(unix)]
pub(crate) fn identity(path: &Path) -> io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|folder| Identity((folder.dev(), folder.ino())))
}

/// The path of the folder itself that `path` leads to.
#[cfg(not(unix))]
pub(crate) fn identity(path: &Path) -> io::Result<Identity> {
    path.canonicalize().map(Identity)
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

        let name = |path: &Path| {
            let path = path.strip_prefix(root.path()).expect("below the root");
            path.display().to_string()
        };
        let (files, others): (Vec<_>, Vec<_>) =
            (walk(root.path()).into_iter()).partition(|(_, met)| matches!(met, Met::File));
        let files: Vec<_> = files.iter().map(|(path, _)| name(path)).collect();
        assert_eq!(files.len(), 4, "{files:?}");
        assert_eq!(files[0], "file.png");
        assert!(files[1].starts_with("linked") && files[1].ends_with("3.png"));
        assert_eq!(files[2..], ["z/1.png", "z/deep/2.png"]);
        let others: Vec<_> = others.iter().map(|(path, _)| name(path)).collect();
        assert_eq!(others, ["itself", "nowhere"]);
    }
}
