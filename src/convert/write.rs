//! Writing the result: safetensors files a few megabytes at a time, in a folder that gets its name
//! last.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::gpu::WeightFormat;
use crate::weights::{Format, Part, Weight};

use super::error::ConvertError;
use super::outputs::{Encoding, Output};

/// Bytes of a stored tensor handled at a time. A multiple of every element size.
const CHUNK: usize = 4 << 20;
/// Elements converted at a time.
const STEP: usize = CHUNK / 8;

/// Refuses an `out` that is there already.
pub fn check_absent(out: &Path) -> Result<(), ConvertError> {
    match out.symlink_metadata() {
        Ok(_) => Err(ConvertError::Exists { out: out.into() }),
        Err(_) => Ok(()),
    }
}

/// Refuses an `out` that cannot be made.
pub fn check_place(out: &Path) -> Result<(), ConvertError> {
    check_absent(out)?;
    let folder = parent(out);
    if folder.is_dir() {
        return Ok(());
    }
    Err(ConvertError::refused(
        folder,
        "is no folder that is there",
        format!("make it first: {} is to lie in it", out.display()),
    ))
}

/// The folder that `out` lies in.
fn parent(out: &Path) -> &Path {
    match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Between the name of `OUT` and the number of the process that writes it.
const UNFINISHED: &str = ".unfinished-";

/// A file in an unfinished folder, locked as long as its process writes there.
const LOCK: &str = ".lock";

/// Where this process writes what is to become `out`; `None` where that is no name of a folder.
pub fn unfinished_folder(out: &Path) -> Option<PathBuf> {
    let mut name = out.file_name()?.to_owned();
    name.push(format!("{UNFINISHED}{}", std::process::id()));
    Some(out.with_file_name(name))
}

/// Removes what conversions into `out` left that were stopped before they could do so themselves.
fn remove_leftovers(out: &Path) {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let start = format!("{name}{UNFINISHED}");
    for entry in std::fs::read_dir(parent(out))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(&start));
        let Some(process) = process.and_then(|process| process.parse::<u32>().ok()) else {
            continue;
        };
        let path = entry.path();
        if !is_abandoned(&path, process) {
            continue;
        }
        let path = path.display();
        match std::fs::remove_dir_all(entry.path()) {
            Ok(()) => log::warn!("{path}: removed; a conversion that was stopped had left it"),
            Err(error) => log::warn!(
                "{path}: left by a conversion that was stopped ({error}); remove it, it only takes room"
            ),
        }
    }
}

/// Whether nobody writes to an unfinished folder any more.
fn is_abandoned(path: &Path, process: u32) -> bool {
    // Where there are no locks, or none was taken yet: does the process live?
    let gone =
        || cfg!(target_os = "linux") && !Path::new("/proc").join(process.to_string()).exists();
    match File::open(path.join(LOCK)).map(|lock| lock.try_lock()) {
        Ok(Ok(())) => true,
        Ok(Err(TryLockError::WouldBlock)) => false,
        Ok(Err(TryLockError::Error(_))) | Err(_) => gone(),
    }
}

/// A folder under a name of its own until it is whole. Dropped before, it is removed.
#[derive(Debug)]
pub struct Unfinished {
    out: PathBuf,
    path: PathBuf,
    lock: Option<File>,
    finished: bool,
}

impl Unfinished {
    /// Makes the folder beside `out`, and removes what earlier conversions have left there.
    pub fn create(out: &Path) -> Result<Self, ConvertError> {
        let Some(path) = unfinished_folder(out) else {
            return Err(ConvertError::refused(
                out,
                "names no folder to make",
                "name a new one",
            ));
        };
        remove_leftovers(out);
        std::fs::create_dir(&path).map_err(ConvertError::write(&path))?;
        let mut unfinished = Self {
            out: out.into(),
            path,
            lock: None,
            finished: false,
        };
        let lock = unfinished.path.join(LOCK);
        let file = File::create(&lock).map_err(ConvertError::write(&lock))?;
        // A file system without locks does without them.
        let _ = file.try_lock();
        unfinished.lock = Some(file);
        Ok(unfinished)
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the folder and gives it its name.
    pub fn finish(mut self) -> Result<(), ConvertError> {
        self.lock = None;
        let lock = self.path.join(LOCK);
        std::fs::remove_file(&lock).map_err(ConvertError::write(&lock))?;
        sync_folder(&self.path);
        check_absent(&self.out)?;
        std::fs::rename(&self.path, &self.out).map_err(ConvertError::write(&self.out))?;
        self.finished = true;
        if let Some(parent) = self.out.parent() {
            sync_folder(parent);
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.lock = None;
        if !self.finished {
            // An error is being returned already; what cannot be removed keeps its telling name.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Entries of a folder are durable once the folder is synced; not every system lets it be opened
/// for that.
fn sync_folder(path: &Path) {
    let path = if path == Path::new("") {
        Path::new(".")
    } else {
        path
    };
    if let Ok(folder) = File::open(path) {
        let _ = folder.sync_all();
    }
}

/// Writes a whole file and syncs it.
pub fn file(path: &Path, content: &[u8]) -> Result<(), ConvertError> {
    let mut file = File::create_new(path).map_err(ConvertError::write(path))?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(ConvertError::write(path))
}

/// Writes `model.safetensors`, or shards and their index; returns how many files hold tensors.
pub fn weights(
    folder: &Path,
    tensors: &[Output],
    shard_bytes: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<usize, ConvertError> {
    let total: u64 = tensors.iter().map(Output::bytes).sum();
    let mut done = 0;
    let mut advance = |bytes: u64| {
        done += bytes;
        progress(done, total);
    };
    let shards = split(tensors, shard_bytes);
    if let [only] = shards.as_slice() {
        shard(&folder.join("model.safetensors"), only, &mut advance)?;
        return Ok(1);
    }
    let mut weight_map = Map::new();
    for (number, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        shard(&folder.join(&name), tensors, &mut advance)?;
        weight_map.extend(
            tensors
                .iter()
                .map(|tensor| (tensor.name.clone(), name.clone().into())),
        );
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    let text = format!("{index:#}\n");
    file(
        &folder.join("model.safetensors.index.json"),
        text.as_bytes(),
    )?;
    Ok(shards.len())
}

/// Consecutive tensors of at most `shard_bytes` together; a larger one is alone.
fn split<'o, 't>(tensors: &'o [Output<'t>], shard_bytes: u64) -> Vec<Vec<&'o Output<'t>>> {
    let mut shards = vec![Vec::new()];
    let mut size = 0;
    for tensor in tensors {
        if size > 0 && size + tensor.bytes() > shard_bytes {
            shards.push(Vec::new());
            size = 0;
        }
        size += tensor.bytes();
        if let Some(last) = shards.last_mut() {
            last.push(tensor);
        }
    }
    shards
}

/// Writes a safetensors file: 8 bytes of header length, the header, the tensors. The format wants
/// every tensor aligned to its elements: wide ones go first.
fn shard(
    path: &Path,
    tensors: &[&Output],
    advance: &mut dyn FnMut(u64),
) -> Result<(), ConvertError> {
    let mut tensors = tensors.to_vec();
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for tensor in &tensors {
        let start = end;
        end += tensor.bytes();
        let entry =
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::from(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let write_error = |cause| ConvertError::Write {
        file: path.into(),
        cause,
    };
    let mut file = BufWriter::new(File::create_new(path).map_err(write_error)?);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .map_err(write_error)?;
    file.write_all(header.as_bytes()).map_err(write_error)?;
    for tensor in tensors {
        each_chunk(tensor, &mut |bytes| {
            advance(bytes.len() as u64);
            file.write_all(bytes).map_err(write_error)
        })?;
    }
    let file = file
        .into_inner()
        .map_err(|error| write_error(error.into_error()))?;
    file.sync_all().map_err(write_error)
}

/// What takes the bytes of a tensor.
type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), ConvertError> + 'a;

/// The bytes of a tensor in the result, a few megabytes at a time.
fn each_chunk(tensor: &Output, write: &mut Sink<'_>) -> Result<(), ConvertError> {
    match tensor.encoding {
        Encoding::Plain => each_plain(tensor.weight, tensor.dtype, write),
        Encoding::Values(format) => {
            each_quantised(tensor.weight, format, |values, _| write(values))
        }
        Encoding::Scales(format) => each_quantised(tensor.weight, format, |_, scales| {
            let bytes: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
            write(&bytes)
        }),
    }
}

/// The elements of a tensor in the type of the result.
fn each_plain(weight: &Weight, dtype: Dtype, write: &mut Sink<'_>) -> Result<(), ConvertError> {
    let format = if dtype == Dtype::F16 {
        Format::F16
    } else {
        Format::F32
    };
    let size = dtype.bitsize() / 8;
    let mut buffer = Vec::new();
    let mut first = 0;
    for part in weight.parts() {
        let count = part.elements();
        let stored = match part {
            Part::Stored { view, .. } if view.dtype == dtype => Some(view),
            _ => None,
        };
        // As it lies in the file: nothing is copied.
        if let Some(bytes) = stored.and_then(|view| view.row_major(0..count)) {
            bytes.chunks(CHUNK).try_for_each(&mut *write)?;
            first += count;
            continue;
        }
        for start in (0..count).step_by(STEP) {
            let length = STEP.min(count - start);
            buffer.clear();
            buffer.resize(length * size, 0);
            match (stored, part) {
                (Some(view), _) => view.copy(start, &mut buffer),
                (None, Part::Zeros(_)) => {}
                (None, _) => {
                    let start = first + start;
                    weight.write_elements(start..start + length, format, &mut buffer)?;
                }
            }
            write(&buffer)?;
        }
        first += count;
    }
    Ok(())
}

/// Quantises a matrix some rows at a time and hands on values and scales.
fn each_quantised(
    weight: &Weight,
    format: WeightFormat,
    mut write: impl FnMut(&[u8], &[f16]) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let [rows, columns] = weight.matrix();
    let step = (STEP / columns.max(1)).max(1);
    for first in (0..rows).step_by(step) {
        let here = first..rows.min(first + step);
        let mut values = vec![0; here.len() * format.row_bytes(columns)];
        let mut scales = vec![f16::ZERO; here.len() * format.row_scales(columns)];
        weight.quantise_rows(here, format, &mut values, &mut scales)?;
        write(&values, &scales)?;
    }
    Ok(())
}
