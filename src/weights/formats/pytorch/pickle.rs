//! A reader of Python pickles that executes nothing.
//!
//! A pickle is a program for a stack machine, and one of its instructions calls any function by
//! name: opening an untrusted one in Python can do anything. This reader builds plain data instead.
//! A few names that tensors are made of are understood, some harmless ones (numbers of training,
//! dates, paths) become [`Node::Opaque`], and a pickle with any other name is refused. Nodes lie in
//! a list and refer to each other by number, so neither depth nor cycles cost anything: nothing
//! here or above walks them recursively.
//!
//! Instructions as in CPython's `Lib/pickletools.py`, protocols 2 to 5; of the older text protocols
//! only what is needed to name what they ask for.

use std::collections::HashMap;

use super::globals::{Meaning, meaning};

/// More objects than this are no checkpoint: the largest have tens of thousands.
const MAX_NODES: usize = 4 << 20;

/// More instructions than this are no checkpoint. Each puts one thing at most on the stack or into the memo,
/// many of which take far more memory there than in the file.
const MAX_INSTRUCTIONS: usize = 2 * MAX_NODES;

/// Names of tensors and storages are shorter. What is longer is no name but a text of a training run, and not
/// kept: a small file could otherwise refer to a huge text millions of times.
const MAX_TEXT_BYTES: usize = 1 << 10;

/// More bytes than this of instructions are no checkpoint (tensors' values lie outside).
const MAX_BYTES: usize = 256 << 20;

/// Where a node lies in [`Pickle::nodes`].
pub type Id = usize;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    /// `None`.
    None,
    /// A number without fraction, or a truth value.
    Int(i128),
    /// A number with fraction; none is of use here.
    Float,
    /// Text of at most [`MAX_TEXT_BYTES`]. Python 2's byte strings, which it used for text, are here as well.
    Text(&'a str),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    /// A dictionary of any kind: key, value, in the order they were set.
    Dict(Vec<(Id, Id)>),
    /// A function or class whose meaning is known.
    Name(Meaning),
    /// Something that lies outside the pickle; the node says what (PyTorch: a storage).
    Persistent(Id),
    /// A call of a tensor-making function with the arguments in a tuple.
    Rebuilt(Rebuild, Id),
    /// A value of no interest; it was not made.
    Opaque,
}

/// Functions that make tensors, as PyTorch's `torch/_utils.py` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuild {
    /// `(storage, offset, shape, strides, …)`.
    Tensor,
    /// `(tensor, …)`.
    Parameter,
    /// A kind of tensor that has no plain storage (quantised, sparse); its function's name.
    Unsupported(&'static str),
}

/// Why a pickle cannot be read: the rest of a sentence that begins with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is cut off or no pickle.
    Broken(String),
    /// It asks for a name that no checkpoint needs.
    Name(String),
}

/// A pickle's value and all that it refers to.
#[derive(Debug)]
pub struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
    length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that `bytes` begin with.
    ///
    /// # Errors
    /// [`Refusal`]; never a panic, whatever the bytes.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let mut machine = Machine {
            bytes: &bytes[..bytes.len().min(MAX_BYTES)],
            at: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            copied: 0,
        };
        let root = machine.run()?;
        Ok(Self {
            root,
            length: machine.at,
            nodes: machine.nodes,
        })
    }

    /// The value of the whole.
    pub fn root(&self) -> Id {
        self.root
    }

    /// Bytes it takes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The node of a number.
    pub fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node<'a>] {
        &self.nodes
    }

    /// The number's value where it is one.
    pub fn int(&self, id: Id) -> Option<i128> {
        match self.node(id) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The text where it is one.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// The entries of a dictionary.
    pub fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value under a text key of a dictionary; the last one set.
    pub fn value(&self, dictionary: Id, key: &str) -> Option<Id> {
        let entries = self.entries(dictionary)?.iter().rev();
        let mut found = entries.filter(|(k, _)| self.text(*k) == Some(key));
        found.next().map(|(_, value)| *value)
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack where a mark lies.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Entries of dictionaries that were copied from lists.
    copied: usize,
}

fn broken(problem: impl Into<String>) -> Refusal {
    Refusal::Broken(problem.into())
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, Refusal> {
        for _ in 0..MAX_INSTRUCTIONS {
            let start = self.at;
            let [code] = self.array()?;
            if code == b'.' {
                return self.pop();
            }
            self.step(code).map_err(|refusal| match refusal {
                Refusal::Broken(problem) => {
                    broken(format!("{problem} (instruction at byte {start})"))
                }
                name => name,
            })?;
        }
        Err(broken(format!(
            "holds more than {MAX_INSTRUCTIONS} instructions, which no checkpoint does"
        )))
    }

    /// Executes one instruction.
    fn step(&mut self, code: u8) -> Result<(), Refusal> {
        match code {
            0x80 => self.protocol(),
            0x95 => self.array::<8>().map(|_| ()), // a frame's length, of use to a stream only
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(|_| ()),
            b'1' => self.pop_to_mark().map(|_| ()),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Int(1)),
            0x89 => self.push(Node::Int(0)),
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))
            }
            b'K' => {
                let [value] = self.array()?;
                self.push(Node::Int(value.into()))
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))
            }
            0x8a | 0x8b => self.long(code),
            b'G' => {
                self.array::<8>()?;
                self.push(Node::Float)
            }
            b'X' | 0x8c | 0x8d | b'T' | b'U' => self.text(code),
            b'B' | b'C' | 0x8e | 0x96 => {
                let length = self.length(code)?;
                self.take(length)?;
                self.push(Node::Opaque)
            }
            b')' => self.push(Node::Tuple(Vec::new())),
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let items = self.pop_last(count)?;
                self.push(Node::Tuple(items))
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items))
            }
            b']' | 0x8f => self.push(Node::List(Vec::new())),
            b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Node::List(items))
            }
            b'a' => {
                let items = self.pop_last(1)?;
                self.append(items)
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(items)
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Dict(Vec::new()))?;
                self.set_items(items)
            }
            b's' => {
                let items = self.pop_last(2)?;
                self.set_items(items)
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)
            }
            b'c' | b'i' | 0x93 => self.name(code),
            b'R' | 0x81 => {
                let arguments = self.pop()?;
                self.call(arguments)
            }
            0x92 => {
                self.pop()?; // keyword arguments
                let arguments = self.pop()?;
                self.call(arguments)
            }
            b'o' => {
                self.pop_to_mark()?;
                self.push(Node::Opaque)
            }
            b'b' => self.pop().map(|_| ()), // an object's attributes, such as a state dict's _metadata
            b'Q' => {
                let what = self.pop()?;
                self.push(Node::Persistent(what))
            }
            b'q' | b'r' | 0x94 => self.put(code),
            b'h' | b'j' => self.get(code),
            b'P' | b'I' | b'L' | b'F' | b'S' | b'V' | b'p' | b'g' => Err(broken(
                "is written in the text form of pickles, which torch.save does not use by itself",
            )),
            _ => Err(broken(format!("holds an unknown instruction {code:#04x}"))),
        }
    }

    fn protocol(&mut self) -> Result<(), Refusal> {
        match self.array()? {
            [version @ 0..=5] => {
                let _ = version;
                Ok(())
            }
            [version] => Err(broken(format!(
                "is of pickle protocol {version}, unknown here"
            ))),
        }
    }

    /// The next `N` bytes.
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let bytes = self.take(N as u64)?;
        // `take` gave N bytes.
        Ok(bytes.first_chunk().copied().unwrap_or([0; N]))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Refusal> {
        let end = usize::try_from(count)
            .ok()
            .and_then(|count| self.at.checked_add(count));
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(broken(format!(
                "ends inside its pickle: {count} more bytes are due after byte {}",
                self.at
            ))),
        }
    }

    /// Up to the end of the line, which is left out.
    fn line(&mut self) -> Result<&'a str, Refusal> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(broken("ends inside its pickle"));
        };
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| broken("holds a name that is no text"))
    }

    /// The length before a text or byte string, by its instruction.
    fn length(&mut self, code: u8) -> Result<u64, Refusal> {
        Ok(match code {
            0x8c | b'U' | b'C' => {
                let [length] = self.array()?;
                length.into()
            }
            0x8d | 0x8e | 0x96 => u64::from_le_bytes(self.array()?),
            _ => u32::from_le_bytes(self.array()?).into(),
        })
    }

    fn text(&mut self, code: u8) -> Result<(), Refusal> {
        let length = self.length(code)?;
        match std::str::from_utf8(self.take(length)?) {
            Ok(text) if text.len() <= MAX_TEXT_BYTES => self.push(Node::Text(text)),
            _ => self.push(Node::Opaque), // Python 2's bytes, or lone surrogates: no tensor's name
        }
    }

    /// A little-endian number in two's complement of any length.
    fn long(&mut self, code: u8) -> Result<(), Refusal> {
        let length = if code == 0x8a {
            let [length] = self.array()?;
            length.into()
        } else {
            u32::from_le_bytes(self.array()?).into()
        };
        let digits = self.take(length)?;
        if digits.len() > 16 {
            return self.push(Node::Opaque);
        }
        let negative = digits.last().is_some_and(|&digit| digit >= 0x80);
        let mut all = [if negative { 0xff } else { 0 }; 16];
        all[..digits.len()].copy_from_slice(digits);
        self.push(Node::Int(i128::from_le_bytes(all)))
    }

    fn push(&mut self, node: Node<'a>) -> Result<(), Refusal> {
        if self.nodes.len() >= MAX_NODES {
            return Err(broken(format!(
                "holds more than {MAX_NODES} objects, which no checkpoint does"
            )));
        }
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    /// Height of the stack that instructions may not reach below.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, Refusal> {
        match self.stack.pop() {
            Some(id) if self.stack.len() >= self.floor() => Ok(id),
            _ => Err(broken("is no valid pickle: its stack runs empty")),
        }
    }

    fn top(&self) -> Result<Id, Refusal> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err(broken("is no valid pickle: its stack runs empty")),
        }
    }

    fn pop_last(&mut self, count: usize) -> Result<Vec<Id>, Refusal> {
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= self.floor() => Ok(self.stack.split_off(start)),
            _ => Err(broken("is no valid pickle: its stack runs empty")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Refusal> {
        let start = self.marks.pop();
        start
            .map(|start| self.stack.split_off(start))
            .ok_or_else(|| broken("is no valid pickle: a mark is missing"))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Refusal> {
        let list = self.top()?;
        match &mut self.nodes[list] {
            Node::List(list) => list.extend(items),
            Node::Opaque => {}
            _ => return Err(broken("is no valid pickle: it appends to what is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<(), Refusal> {
        let dictionary = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(broken("is no valid pickle: a key without a value"));
        }
        match &mut self.nodes[dictionary] {
            Node::Dict(entries) => entries.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Node::Opaque => {}
            _ => {
                return Err(broken(
                    "is no valid pickle: it sets a key of what is no dictionary",
                ));
            }
        }
        Ok(())
    }

    /// A function or class, by its module and name.
    fn name(&mut self, code: u8) -> Result<(), Refusal> {
        let (module, name) = if code == 0x93 {
            let pair = self.pop_last(2)?;
            match (&self.nodes[pair[0]], &self.nodes[pair[1]]) {
                (Node::Text(module), Node::Text(name)) => (*module, *name),
                _ => return Err(broken("is no valid pickle: a name that is no text")),
            }
        } else {
            (self.line()?, self.line()?)
        };
        let Some(meaning) = meaning(module, name) else {
            return Err(Refusal::Name(format!("{module}.{name}")));
        };
        if code == b'i' {
            self.pop_to_mark()?;
            return self.push(Node::Opaque);
        }
        self.push(Node::Name(meaning))
    }

    /// What a call stands for. Nothing is called.
    fn call(&mut self, arguments: Id) -> Result<(), Refusal> {
        let function = self.pop()?;
        let node = match self.nodes[function] {
            Node::Name(Meaning::Dict) => {
                let entries = self.dict_arguments(arguments);
                self.copied += entries.len();
                if self.copied > MAX_NODES {
                    return Err(broken("repeats a list of keys, which no checkpoint does"));
                }
                Node::Dict(entries)
            }
            Node::Name(Meaning::Rebuild(rebuild)) => Node::Rebuilt(rebuild, arguments),
            _ => Node::Opaque,
        };
        self.push(node)
    }

    /// The entries of `OrderedDict([[key, value], …])`, as Python 2 pickled it.
    fn dict_arguments(&self, arguments: Id) -> Vec<(Id, Id)> {
        let items = |id: Id| match &self.nodes[id] {
            Node::Tuple(items) | Node::List(items) => items.as_slice(),
            _ => &[],
        };
        let list = items(arguments)
            .first()
            .map_or(&[][..], |&list| items(list));
        list.iter()
            .filter_map(|&pair| match items(pair) {
                [key, value] => Some((*key, *value)),
                _ => None,
            })
            .collect()
    }

    fn put(&mut self, code: u8) -> Result<(), Refusal> {
        let key = match code {
            0x94 => self.memo.len() as u64,
            _ => self.memo_key(code == b'q')?,
        };
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn get(&mut self, code: u8) -> Result<(), Refusal> {
        let key = self.memo_key(code == b'h')?;
        match self.memo.get(&key) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => Err(broken(
                "is no valid pickle: it refers to an object it has not made",
            )),
        }
    }

    fn memo_key(&mut self, short: bool) -> Result<u64, Refusal> {
        if short {
            let [key] = self.array()?;
            return Ok(key.into());
        }
        Ok(u32::from_le_bytes(self.array()?).into())
    }
}

#[cfg(test)]
mod tests;
