//! Files for readers that want a path. `TMPDIR` decides where they lie; `run.sh` puts them in memory.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use blip2_wgpu::weights::Checkpoint;

/// The folder of this process, made at its first use.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let name = format!("blip2-wgpu-fuzz-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a folder for the files of this run");
        folder
    })
}

/// A file of this name that holds `bytes`.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("a file of this run");
    path
}

/// The parts of an input that stands for several files: they are parted by zero bytes.
pub fn parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|&byte| byte == 0)
}

/// Lets panics within these crates pass, where the library turns them into errors; any other ends the run.
pub fn let_panics_pass(crates: &'static [&'static str]) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let file = panic.location().map_or("", |location| location.file());
        if !crates.iter().any(|name| file.contains(name)) {
            hook(panic);
        }
    }));
}

/// Opens a file of weights and reads each of its tensors, where they are small.
pub fn weights(name: &str, bytes: &[u8]) {
    let Ok(checkpoint) = Checkpoint::open(file(name, bytes)) else {
        return;
    };
    let _ = checkpoint.kind();
    let _ = checkpoint.total_bytes();
    for tensor in checkpoint.tensors() {
        if let Ok(weight) = checkpoint.weight(tensor.name, tensor.shape)
            && weight.elements() < 1 << 12
        {
            let _ = weight.to_f32();
        }
    }
}
