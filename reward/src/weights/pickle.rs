//! Pickles as inert data: names, numbers and what holds them. Nothing is imported, called or built.
//!
//! Every object is a place in one list and is referred to by its index. So what is shared costs nothing, cycles do no harm, and
//! no depth overflows the stack. A byte of the pickle makes at most one object, and their number is bounded.

use std::collections::HashMap;

/// Objects of a pickle at most; a checkpoint with an optimizer's state has some 100,000.
const MAX_OBJECTS: usize = 2_000_000;

/// The index of an object.
pub(super) type Id = u32;

/// The one object of everything that has neither a name, a whole number nor parts: `None`, truth values, floats, bytes.
const OTHER: Id = 0;

/// An object of a pickle.
#[derive(Debug)]
pub(super) enum Object<'a> {
    Other,
    Number(i64),
    Text(&'a str),
    /// A class or a function by module and name.
    Global(&'a str, &'a str),
    /// A tuple, list or set.
    Sequence(Vec<Id>),
    /// A dictionary.
    Pairs(Vec<(Id, Id)>),
    /// What calling a global with arguments would give.
    Instance(Box<Instance>),
    /// A reference to what is stored outside of the pickle.
    Persistent(Id),
}

/// A call that is not made, and what the pickle fills its result with.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) class: Id,
    pub(super) arguments: Id,
    pub(super) sequence: Vec<Id>,
    pub(super) pairs: Vec<(Id, Id)>,
    pub(super) state: Option<Id>,
}

/// The objects of one pickle.
#[derive(Debug)]
pub(super) struct Objects<'a> {
    all: Vec<Object<'a>>,
    pub(super) root: Id,
    /// Where the pickle ends in the bytes given.
    pub(super) end: usize,
}

impl<'a> Objects<'a> {
    /// Reads the pickle that `bytes` begins with.
    ///
    /// # Errors
    /// What cannot be understood, with its place.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut machine = Machine {
            bytes,
            at: 0,
            all: vec![Object::Other],
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { all: machine.all, root, end: machine.at }),
                Err(problem) => return Err(format!("byte {at} of its pickle: {problem}")),
            }
        }
    }

    pub(super) fn get(&self, id: Id) -> &Object<'a> {
        &self.all[id as usize]
    }

    pub(super) fn all(&self) -> &[Object<'a>] {
        &self.all
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number that counts something.
    pub(super) fn count(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Object::Number(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.get(id) {
            Object::Global(module, name) => Some((module, name)),
            _ => None,
        }
    }

    /// The parts of a tuple or list; none of anything else.
    pub(super) fn sequence(&self, id: Id) -> &[Id] {
        match self.get(id) {
            Object::Sequence(parts) => parts,
            Object::Instance(instance) => &instance.sequence,
            _ => &[],
        }
    }

    /// The entries of a dictionary, or of an instance filled like one; none of anything else.
    pub(super) fn pairs(&self, id: Id) -> &[(Id, Id)] {
        match self.get(id) {
            Object::Pairs(pairs) => pairs,
            Object::Instance(instance) => &instance.pairs,
            _ => &[],
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    all: Vec<Object<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// One operation; the root object if it was the last.
    fn step(&mut self) -> Result<Option<Id>, String> {
        let operation = self.take(1)?[0];
        match operation {
            0x80 => drop(self.take(1)?),                  // PROTO
            0x95 => drop(self.take(8)?),                  // FRAME
            b'.' => return self.pop().map(Some),          // STOP
            b'(' => self.marks.push(self.stack.len()),    // MARK
            b'0' => drop(self.pop()?),                    // POP
            b'1' => drop(self.above_mark()?),             // POP_MARK
            b'2' => self.stack.push(self.top()?),         // DUP
            b'N' | 0x88 | 0x89 => self.stack.push(OTHER), // NONE, NEWTRUE, NEWFALSE
            b'G' => self.opaque(8)?,                      // BINFLOAT
            b'K' => self.number::<1>()?,                  // BININT1
            b'M' => self.number::<2>()?,                  // BININT2
            b'J' => {
                let bytes = self.array::<4>()?;
                self.push(Object::Number(i64::from(i32::from_le_bytes(bytes))))?; // BININT
            }
            0x8a | 0x8b => {
                // LONG1, LONG4
                let count = if operation == 0x8a { self.length(1)? } else { self.length(4)? };
                self.long(count)?;
            }
            b'X' => self.read_text(4)?,   // BINUNICODE
            0x8c => self.read_text(1)?,   // SHORT_BINUNICODE
            0x8d => self.read_text(8)?,   // BINUNICODE8
            b'T' => self.read_text(4)?,   // BINSTRING
            b'U' => self.read_text(1)?,   // SHORT_BINSTRING
            b'B' => self.skip(4)?,        // BINBYTES
            b'C' => self.skip(1)?,        // SHORT_BINBYTES
            0x8e | 0x96 => self.skip(8)?, // BINBYTES8, BYTEARRAY8
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Object::Global(module, name))?; // GLOBAL
            }
            0x93 => {
                // STACK_GLOBAL
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id: Id| match self.all[id as usize] {
                    Object::Text(text) => Ok(text),
                    _ => Err("a class whose name is no text".to_owned()),
                };
                let (module, name) = (text(module)?, text(name)?);
                self.push(Object::Global(module, name))?;
            }
            b']' | b')' | 0x8f => self.push(Object::Sequence(Vec::new()))?, // EMPTY_LIST, EMPTY_TUPLE, EMPTY_SET
            b'}' => self.push(Object::Pairs(Vec::new()))?,                  // EMPTY_DICT
            b't' | b'l' | 0x91 => {
                // TUPLE, LIST, FROZENSET
                let parts = self.above_mark()?;
                self.push(Object::Sequence(parts))?;
            }
            0x85..=0x87 => {
                // TUPLE1, TUPLE2, TUPLE3
                let count = usize::from(operation - 0x84);
                let start = self.stack.len().checked_sub(count).filter(|start| *start >= self.floor());
                let parts = self.stack.split_off(start.ok_or_else(empty)?);
                self.push(Object::Sequence(parts))?;
            }
            b'd' => {
                // DICT
                let pairs = pairs(&self.above_mark()?);
                self.push(Object::Pairs(pairs))?;
            }
            b'a' => {
                // APPEND
                let part = self.pop()?;
                self.extend(&[part])?;
            }
            b'e' | 0x90 => {
                // APPENDS, ADDITEMS
                let parts = self.above_mark()?;
                self.extend(&parts)?;
            }
            b's' => {
                // SETITEM
                let (value, key) = (self.pop()?, self.pop()?);
                self.fill(&[key, value])?;
            }
            b'u' => {
                // SETITEMS
                let parts = self.above_mark()?;
                self.fill(&parts)?;
            }
            b'R' | 0x81 => {
                // REDUCE, NEWOBJ
                let (arguments, class) = (self.pop()?, self.pop()?);
                self.instance(class, arguments)?;
            }
            0x92 => {
                // NEWOBJ_EX
                let (_, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.instance(class, arguments)?;
            }
            b'b' => {
                // BUILD
                let (state, target) = (self.pop()?, self.top()?);
                if let Object::Instance(instance) = &mut self.all[target as usize] {
                    instance.state = Some(state);
                }
            }
            b'Q' => {
                // BINPERSID
                let reference = self.pop()?;
                self.push(Object::Persistent(reference))?;
            }
            b'q' => self.remember(1)?, // BINPUT
            b'r' => self.remember(4)?, // LONG_BINPUT
            0x94 => {
                // MEMOIZE
                let (index, top) = (self.memo.len() as u32, self.top()?);
                self.memo.insert(index, top);
            }
            b'h' => self.recall(1)?, // BINGET
            b'j' => self.recall(4)?, // LONG_BINGET
            other => return Err(format!("{other:#04x} is no operation that PyTorch writes")),
        }
        Ok(None)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let taken = &self.bytes[self.at..end.ok_or("it ends too soon")?];
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| empty())
    }

    /// A length of `bytes` bytes; whether so much is there is seen when it is taken.
    fn length(&mut self, bytes: usize) -> Result<usize, String> {
        let number = self.take(bytes)?.iter().rev().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
        usize::try_from(number).map_err(|_| "it ends too soon".to_owned())
    }

    fn push(&mut self, object: Object<'a>) -> Result<(), String> {
        if self.all.len() > MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} objects"));
        }
        self.stack.push(self.all.len() as Id);
        self.all.push(object);
        Ok(())
    }

    /// Where the stack above the last mark begins.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, String> {
        if self.stack.len() > self.floor() { self.stack.last().copied().ok_or_else(empty) } else { Err(empty()) }
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn above_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or_else(empty)?;
        Ok(self.stack.split_off(mark))
    }

    fn opaque(&mut self, count: usize) -> Result<(), String> {
        self.take(count)?;
        self.stack.push(OTHER);
        Ok(())
    }

    fn skip(&mut self, bytes: usize) -> Result<(), String> {
        let count = self.length(bytes)?;
        self.opaque(count)
    }

    fn number<const N: usize>(&mut self) -> Result<(), String> {
        let number = self.length(N)?;
        self.push(Object::Number(number as i64))
    }

    fn long(&mut self, count: usize) -> Result<(), String> {
        let bytes = self.take(count)?;
        let sign = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
        let mut whole = [sign; 8];
        if count > whole.len() {
            self.stack.push(OTHER);
            return Ok(());
        }
        whole[..count].copy_from_slice(bytes);
        self.push(Object::Number(i64::from_le_bytes(whole)))
    }

    fn read_text(&mut self, bytes: usize) -> Result<(), String> {
        let count = self.length(bytes)?;
        let text = self.take(count)?;
        self.push(std::str::from_utf8(text).map_or(Object::Other, Object::Text))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("it ends too soon")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a class whose name is no text".to_owned())
    }

    fn instance(&mut self, class: Id, arguments: Id) -> Result<(), String> {
        let (sequence, pairs) = (Vec::new(), Vec::new());
        self.push(Object::Instance(Box::new(Instance { class, arguments, sequence, pairs, state: None })))
    }

    /// What cannot be filled stays as it is.
    fn extend(&mut self, parts: &[Id]) -> Result<(), String> {
        let target = self.top()?;
        match &mut self.all[target as usize] {
            Object::Sequence(sequence) => sequence.extend(parts),
            Object::Instance(instance) => instance.sequence.extend(parts),
            _ => {}
        }
        Ok(())
    }

    fn fill(&mut self, parts: &[Id]) -> Result<(), String> {
        let target = self.top()?;
        match &mut self.all[target as usize] {
            Object::Pairs(all) => all.extend(pairs(parts)),
            Object::Instance(instance) => instance.pairs.extend(pairs(parts)),
            _ => {}
        }
        Ok(())
    }

    fn remember(&mut self, bytes: usize) -> Result<(), String> {
        let (index, top) = (self.length(bytes)?, self.top()?);
        self.memo.insert(index as u32, top);
        Ok(())
    }

    fn recall(&mut self, bytes: usize) -> Result<(), String> {
        let index = self.length(bytes)?;
        let known = self.memo.get(&(index as u32)).copied();
        self.stack.push(known.ok_or_else(|| format!("object {index} is used before it is there"))?);
        Ok(())
    }
}

fn empty() -> String {
    "it takes what is not there".to_owned()
}

fn pairs(parts: &[Id]) -> Vec<(Id, Id)> {
    parts.as_chunks().0.iter().map(|[key, value]| (*key, *value)).collect()
}

#[cfg(test)]
mod tests;
