//! From a pickle's value to tensors by name.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use safetensors::Dtype;

use super::globals::Meaning;
use super::pickle::{Id, Node, Pickle, Rebuild};
use super::{Entry, NOT_A_CHECKPOINT, Problem, SAVE_DENSE};

/// Keys under which training programs put the state dict: LAVIS, OpenMMLab and Lightning,
/// DeepSpeed.
const CONTAINERS: [&str; 3] = ["model", "state_dict", "module"];

/// Dimensions a tensor may have.
const MAX_DIMENSIONS: usize = 16;

/// Where the storages lie in the file, by key.
pub type Storages = HashMap<String, Range<usize>>;

/// What a pickle says about a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Its name among the file's storages.
    pub key: &'a str,
    /// Elements.
    pub elements: usize,
    /// Elements before it in the storage of that key: old files have views.
    pub offset: usize,
}

impl Storage<'_> {
    /// Bytes of `count` elements.
    pub fn bytes(&self, count: usize) -> Option<usize> {
        count.checked_mul(self.dtype.bitsize() / 8)
    }
}

/// The storage that a persistent id describes: `("storage", class, key, device, elements[, view])`.
pub fn storage<'a>(pickle: &Pickle<'a>, description: Id) -> Option<Storage<'a>> {
    let [kind, class, key, _, elements, view @ ..] = pickle.items(description)? else {
        return None;
    };
    if pickle.text(*kind) != Some("storage") {
        return None;
    }
    let Node::Name(Meaning::Storage(dtype)) = pickle.node(*class) else {
        return None;
    };
    let offset = match view.first().and_then(|&view| pickle.items(view)) {
        Some(&[_, offset, _]) => size(pickle, offset)?,
        _ => 0,
    };
    Some(Storage {
        dtype: *dtype,
        key: pickle.text(*key)?,
        elements: size(pickle, *elements)?,
        offset,
    })
}

/// The tensors of a pickle's state dict.
pub fn read(pickle: &Pickle, storages: &Storages) -> Result<BTreeMap<String, Entry>, Problem> {
    let root = pickle.root();
    if pickle.entries(root).is_none() {
        return Err(Problem::new(
            "holds no dictionary of tensors",
            NOT_A_CHECKPOINT,
        ));
    }
    let inner = CONTAINERS.into_iter().find_map(|key| {
        let inner = pickle.value(root, key)?;
        pickle.entries(inner).map(|_| inner)
    });
    let dictionary = inner.unwrap_or(root);
    let mut tensors = BTreeMap::new();
    for &(key, value) in pickle.entries(dictionary).unwrap_or_default() {
        let Some(name) = pickle.text(key) else {
            continue;
        };
        if let Some(kind) = unsupported(pickle, value) {
            return Err(Problem::new(
                format!("tensor {name:?} is {kind}"),
                SAVE_DENSE,
            ));
        }
        let entry = tensor(pickle, value, storages)
            .map_err(|what| Problem::damaged(format!("tensor {name:?} {what}")))?;
        tensors.extend(entry.map(|entry| (name.to_owned(), entry)));
    }
    if tensors.is_empty() {
        let keys = pickle.entries(dictionary).unwrap_or_default().iter();
        let keys: Vec<&str> = keys
            .filter_map(|(key, _)| pickle.text(*key))
            .take(5)
            .collect();
        return Err(Problem::new(
            format!("holds no tensors; it has {keys:?}"),
            NOT_A_CHECKPOINT,
        ));
    }
    Ok(tensors)
}

/// What a tensor is that cannot be read, whole file or not.
fn unsupported(pickle: &Pickle, id: Id) -> Option<&'static str> {
    let inner = match pickle.node(id) {
        Node::Rebuilt(Rebuild::Parameter, arguments) => *pickle.items(*arguments)?.first()?,
        _ => id,
    };
    match pickle.node(inner) {
        Node::Rebuilt(Rebuild::Unsupported(function), _) => Some(match *function {
            "_rebuild_sparse_tensor" => "sparse",
            "_rebuild_qtensor" => "quantised",
            "_rebuild_tensor_v3" => {
                "of an element type that weights do not have (float8 or the like)"
            }
            "_rebuild_meta_tensor_no_storage" => "a meta tensor, which has no values",
            _ => "of a kind that is not read here",
        }),
        _ => None,
    }
}

/// Where the tensor `id` lies; `None` where it is none.
fn tensor(pickle: &Pickle, id: Id, storages: &Storages) -> Result<Option<Entry>, String> {
    let (rebuild, arguments) = match pickle.node(id) {
        // A parameter wraps a tensor once; a parameter of a parameter is nothing PyTorch writes.
        Node::Rebuilt(Rebuild::Parameter, arguments) => {
            match pickle.items(*arguments).and_then(|items| items.first()) {
                Some(&inner) => match pickle.node(inner) {
                    Node::Rebuilt(rebuild, arguments) => (*rebuild, *arguments),
                    _ => return Ok(None),
                },
                None => return Ok(None),
            }
        }
        Node::Rebuilt(rebuild, arguments) => (*rebuild, *arguments),
        _ => return Ok(None),
    };
    match rebuild {
        Rebuild::Tensor => plain_tensor(pickle, arguments, storages).map(Some),
        Rebuild::Parameter => Err("is a parameter of a parameter".into()),
        Rebuild::Unsupported(function) => Err(format!("is made by torch._utils.{function}")),
    }
}

fn plain_tensor(pickle: &Pickle, arguments: Id, storages: &Storages) -> Result<Entry, String> {
    let &[source, offset, shape, strides, ..] = pickle.items(arguments).unwrap_or_default() else {
        return Err("has too few properties".into());
    };
    let storage = match pickle.node(source) {
        Node::Persistent(description) => storage(pickle, *description),
        _ => None,
    };
    let storage = storage.ok_or("has no storage of a known kind")?;
    let sizes = |id: Id| -> Option<Vec<usize>> {
        let items = pickle.items(id)?;
        let items = items.get(..=MAX_DIMENSIONS).unwrap_or(items); // enough to see that they are too many
        items.iter().map(|&item| size(pickle, item)).collect()
    };
    let offset = size(pickle, offset).ok_or("has a negative or huge offset")?;
    let shape = sizes(shape).ok_or("has a shape that is no list of sizes")?;
    let strides = sizes(strides).ok_or("has strides that are negative or huge")?;
    if shape.len() != strides.len() || shape.len() > MAX_DIMENSIONS {
        return Err(format!(
            "has {} dimensions and {} strides",
            shape.len(),
            strides.len()
        ));
    }
    let last = last_element(&shape, &strides).and_then(|last| last.checked_add(offset));
    let elements = shape.iter().try_fold(1, |a: usize, &b| a.checked_mul(b));
    let outside = || {
        format!(
            "of shape {shape:?} and strides {strides:?} does not lie in its storage of {} elements",
            storage.elements
        )
    };
    // More elements than the storage has would repeat some: a small file that becomes a huge one.
    match (last, elements) {
        (Some(last), Some(elements))
            if last <= storage.elements && elements <= storage.elements => {}
        _ => return Err(outside()),
    }
    let bytes = storages.get(storage.key).ok_or_else(|| {
        format!(
            "lies in storage {:?}, which the file does not have",
            storage.key
        )
    })?;
    let start = storage
        .offset
        .checked_add(offset)
        .and_then(|count| storage.bytes(count));
    let length = storage.bytes(last.unwrap_or(0) - offset);
    match start
        .zip(length)
        .map(|(start, length)| (start, start.checked_add(length)))
    {
        Some((start, Some(end))) if end <= bytes.len() => Ok(Entry {
            dtype: storage.dtype,
            strides: (!is_row_major(&shape, &strides)).then_some(strides),
            shape,
            bytes: (bytes.start + start) as u64..(bytes.start + end) as u64,
        }),
        _ => Err(outside()),
    }
}

/// Whether elements that follow each other in row-major order lie next to each other.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    let mut dimensions = shape.iter().zip(strides).rev();
    shape.contains(&0)
        || dimensions.all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected = expected.saturating_mul(size);
            fits
        })
}

/// One past the last element that a tensor reaches to, from its first.
fn last_element(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let steps = shape.iter().zip(strides);
    let mut steps = steps.map(|(&size, &stride)| (size - 1).checked_mul(stride));
    steps.try_fold(1usize, |sum, step| sum.checked_add(step?))
}

fn size(pickle: &Pickle, id: Id) -> Option<usize> {
    usize::try_from(pickle.int(id)?).ok()
}
