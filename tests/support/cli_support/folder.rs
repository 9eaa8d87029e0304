//! A folder with images to caption and room for results.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Run, TINY, command, finish};

/// A folder with images to caption and room for results.
pub struct Folder {
    root: tempfile::TempDir,
}

impl Folder {
    /// `images/0.png` and so on: scenes of the demo model's world, all different.
    pub fn new(images: usize) -> Self {
        let folder = Self {
            root: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(folder.path("images")).unwrap();
        for index in 0..images {
            let scene = format!("tests/data/demo/scene_{index:02}.png");
            let scene = Path::new(env!("CARGO_MANIFEST_DIR")).join(scene);
            std::fs::copy(scene, folder.path(&format!("images/{index:02}.png"))).unwrap();
        }
        folder
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A file in it, as an argument.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A file's text.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Replaces a file.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// `caption images --out OUT FLAGS` in the folder, without --json.
    pub fn caption(&self, out: &str, flags: &[&str]) -> Run {
        let mut command = command(["caption", "--model", TINY, "images", "--out", out]);
        command.args(flags).current_dir(self.root.path());
        finish(command)
    }

    /// The objects of a results file, all of whose lines must be whole.
    pub fn lines(&self, name: &str) -> Vec<Map<String, Value>> {
        let text = self.read(name);
        assert!(text.is_empty() || text.ends_with('\n'), "{text}");
        let object = |line| serde_json::from_str(line).expect("an object");
        text.lines().map(object).collect()
    }

    /// The images of a results file's lines.
    pub fn images(&self, name: &str) -> Vec<String> {
        let image = |line: &Map<_, Value>| line["image"].as_str().unwrap().to_owned();
        self.lines(name).iter().map(image).collect()
    }
}
