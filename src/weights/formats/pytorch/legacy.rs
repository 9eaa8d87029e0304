//! Files of PyTorch before 1.6 (and of `_use_new_zipfile_serialization=False`): five pickles, then
//! the storages.
//!
//! Magic number, protocol version, the machine's properties, the object, the storages' keys in
//! their order; then a storage each: the number of elements as 8 bytes, and the elements. As
//! `torch/serialization.py` writes it (`_legacy_save`).

use std::collections::HashMap;

use super::pickle::{Node, Pickle};
use super::state_dict::{Storage, Storages, storage};
use super::{NOT_A_CHECKPOINT, Problem};

const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const PROTOCOL: i128 = 1001;

/// Bytes of the pickled magic number at most: protocol, opcode, length, ten digits, stop.
const MAGIC_BYTES: usize = 32;

/// Whether a file begins with PyTorch's magic number.
pub fn is_legacy(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(MAGIC_BYTES)];
    Pickle::read(start).is_ok_and(|pickle| pickle.int(pickle.root()) == Some(MAGIC))
}

/// The object's pickle, and where the storages lie.
pub fn read(bytes: &[u8]) -> Result<(Pickle<'_>, Storages), Problem> {
    let mut at = 0;
    let mut next = || -> Result<Pickle, Problem> {
        let pickle = Pickle::read(bytes.get(at..).unwrap_or_default())?;
        at += pickle.length();
        Ok(pickle)
    };
    next()?; // the magic number
    let protocol = next()?;
    if protocol.int(protocol.root()) != Some(PROTOCOL) {
        return Err(Problem::new(
            "is of an unknown version of PyTorch's old format",
            NOT_A_CHECKPOINT,
        ));
    }
    let machine = next()?;
    let little_endian = machine.value(machine.root(), "little_endian");
    if little_endian.and_then(|id| machine.int(id)) == Some(0) {
        return Err(Problem::new(
            "was saved on a big-endian machine",
            "load it with PyTorch on a little-endian one and save it again",
        ));
    }
    let object = next()?;
    let keys = next()?;
    let storages = storages(bytes, at, &object, &keys)?;
    Ok((object, storages))
}

/// Walks the storages, which follow each other from `at` in the order of `keys`.
fn storages(
    bytes: &[u8],
    mut at: usize,
    object: &Pickle,
    keys: &Pickle,
) -> Result<Storages, Problem> {
    let mut described: HashMap<&str, Storage> = HashMap::new();
    for node in object.nodes() {
        if let Node::Persistent(description) = node
            && let Some(storage) = storage(object, *description)
        {
            described.entry(storage.key).or_insert(storage);
        }
    }
    let Some(order) = keys.items(keys.root()) else {
        return Err(Problem::damaged("lacks the list of its storages"));
    };
    let mut storages = Storages::new();
    for &key in order {
        let Some(storage) = keys.text(key).and_then(|key| described.get(key)) else {
            return Err(Problem::damaged(
                "lists a storage that none of its tensors has, so where the others lie is unknown",
            ));
        };
        let cut_off = || Problem::damaged(format!("ends inside storage {:?}", storage.key));
        let rest = bytes.get(at..).unwrap_or_default();
        let (count, values) = rest.split_first_chunk::<8>().ok_or_else(cut_off)?;
        let length = usize::try_from(u64::from_le_bytes(*count))
            .ok()
            .and_then(|count| storage.bytes(count));
        let length = length
            .filter(|&length| length <= values.len())
            .ok_or_else(cut_off)?;
        let start = at + count.len();
        storages.insert(storage.key.to_owned(), start..start + length);
        at = start + length;
    }
    Ok(storages)
}
