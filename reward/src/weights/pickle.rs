//! PyTorch's zip archives (`.pt`, `.pth`, `.ckpt`): where the tensors of a state dict are in the file.
//!
//! candle's reader turns the pickle into a tree of names and values and executes nothing. PyTorch stores the tensors'
//! bytes as they are, so they are read from a memory map as in a safetensors file.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use candle_core::{
    DType, Error, Layout, Result,
    pickle::{Object, Stack},
};
use safetensors::Dtype;

/// A state dict may sit at the top or under one of these keys, as trainers save it.
const STATE_DICT_KEYS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];

/// A tensor in an archive.
pub(super) struct PickledTensor {
    /// Where its storage is in the file.
    storage: Range<usize>,
    /// Its place within the storage.
    layout: Layout,
    dtype: DType,
}

impl PickledTensor {
    pub(super) fn shape(&self) -> &[usize] {
        self.layout.dims()
    }

    /// Its elements, row-major, given the whole file; `None` for a type that is no float, or a storage that ends too soon.
    pub(super) fn raw<'a>(&self, archive: &'a [u8]) -> Option<(Cow<'a, [u8]>, Dtype)> {
        let dtype = match self.dtype {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            _ => return None,
        };
        let (shape, stride) = (self.layout.shape(), self.layout.stride());
        let last: usize = shape.dims().iter().zip(stride).map(|(size, stride)| size.saturating_sub(1) * stride).sum();
        let elements = if shape.elem_count() == 0 { 0 } else { last + 1 };
        let size = self.dtype.size_in_bytes();
        let storage = archive.get(self.storage.clone())?.get(self.layout.start_offset()..)?;
        let bytes = storage.get(..elements * size)?;
        if self.layout.is_contiguous() {
            return Some((Cow::Borrowed(bytes), dtype));
        }
        let place = |element: usize| {
            let (mut rest, mut at) = (element, 0);
            for (size, stride) in shape.dims().iter().zip(stride).rev() {
                at += rest % size * stride;
                rest = rest.div_euclid(*size);
            }
            at
        };
        let elements = (0..shape.elem_count()).flat_map(|element| &bytes[place(element) * size..][..size]).copied();
        Some((Cow::Owned(elements.collect()), dtype))
    }
}

/// Every tensor of the state dict by name; none where the pickle is something else.
///
/// # Errors
/// `archive` is no whole zip file, or its pickle cannot be understood.
pub(super) fn tensors(archive: &[u8]) -> Result<HashMap<String, PickledTensor>> {
    let entries = entries(archive).ok_or_else(|| Error::msg("not a whole zip file"))?;
    let (name, pickle) = entries
        .iter()
        .find(|(name, _)| name.ends_with("/data.pkl"))
        .ok_or_else(|| Error::msg("no data.pkl in the zip file"))?;
    let folder = name.trim_end_matches(".pkl");
    let Object::Dict(top) = root(archive.get(pickle.clone()).unwrap_or_default())? else { return Ok(HashMap::new()) };
    let below = STATE_DICT_KEYS.iter().filter_map(|key| match top.iter().find(|(name, _)| is(name, key))? {
        (_, Object::Dict(state_dict)) => Some(state_dict),
        _ => None,
    });
    for state_dict in std::iter::once(&top).chain(below) {
        let mut found = HashMap::new();
        for (name, value) in state_dict {
            // What is no tensor, or of a type that no parameter has, may stand beside the parameters.
            let Ok(Some(info)) = value.clone().into_tensor_info(name.clone(), folder.as_ref()) else { continue };
            let storage = entries.get(info.path.as_str()).cloned();
            let storage = storage.ok_or_else(|| Error::msg(format!("no {} in the zip file", info.path)))?;
            found.insert(info.name, PickledTensor { storage, layout: info.layout, dtype: info.dtype });
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(HashMap::new())
}

fn is(name: &Object, key: &str) -> bool {
    matches!(name, Object::Unicode(name) if name == key)
}

/// The object at the root of a pickle. Instances of unknown classes (Lightning's hyper-parameters are a subclass of `dict`)
/// stay inert even where the pickle fills them like a dict or a list, which candle's reader refuses: there their content
/// becomes the argument of a `BUILD`, which it keeps as it is.
fn root(mut pickle: &[u8]) -> Result<Object> {
    const BUILD: u8 = b'b';
    const TUPLE: u8 = b't';
    const TUPLE_OF_2: u8 = 0x86;
    let mut stack = Stack::empty();
    loop {
        let objects = stack.stack();
        let below_top = |count: usize| objects.get(objects.len().checked_sub(count)?);
        let below_mark = || objects.get(objects.iter().rposition(|object| *object == Object::Mark)?.checked_sub(1)?);
        let (target, inert): (Option<&Object>, &[u8]) = match pickle.first() {
            Some(b's') => (below_top(3), &[TUPLE_OF_2, BUILD]),
            Some(b'a') => (below_top(2), &[BUILD]),
            Some(b'u' | b'e') => (below_mark(), &[TUPLE, BUILD]),
            _ => (None, &[]),
        };
        if matches!(target, Some(Object::Reduce { .. } | Object::Build { .. })) {
            pickle = &pickle[1..];
            for mut operation in inert.chunks(1) {
                stack.read(&mut operation)?;
            }
        } else if stack.read(&mut pickle)? {
            return stack.finalize();
        }
    }
}

/// Where the bytes of each uncompressed entry of a zip file are, by name. `None`: not a whole zip file.
///
/// Not by candle's own reader: its zip 9.8 takes the directory to end at the end record, where PyTorch has 76 bytes of
/// 64-bit records between the two, and so refuses files whose stem has 21 letters (whose first header has 76 bytes).
fn entries(archive: &[u8]) -> Option<HashMap<&str, Range<usize>>> {
    let bytes = |at: usize, count: usize| archive.get(at..at.checked_add(count)?);
    let number = |at: usize, count: usize| {
        let little_endian = bytes(at, count)?.iter().rev();
        usize::try_from(little_endian.fold(0_u64, |number, byte| (number << 8) | u64::from(*byte))).ok()
    };
    // The end record is 22 bytes and a comment long.
    let start = archive.len().saturating_sub(22 + usize::from(u16::MAX));
    let end = start + archive[start..].windows(4).rposition(|window| window == b"PK\x05\x06")?;
    bytes(end + 22, number(end + 20, 2)?)?;
    let (mut count, mut header) = (number(end + 10, 2)?, number(end + 16, 4)?);
    if let Some(locator) = end.checked_sub(20).filter(|locator| bytes(*locator, 4) == Some(b"PK\x06\x07")) {
        let record = number(locator + 8, 8)?;
        (count, header) = (number(record.checked_add(32)?, 8)?, number(record.checked_add(48)?, 8)?);
    }
    let mut entries = HashMap::new();
    for _ in 0..count {
        if !bytes(header, 46)?.starts_with(b"PK\x01\x02") {
            return None;
        }
        let name_end = header + 46 + number(header + 28, 2)?;
        let name = std::str::from_utf8(archive.get(header + 46..name_end)?).ok()?;
        let extra_end = name_end + number(header + 30, 2)?;
        // What does not fit into 32 bits stands in the extra field 1, in this order.
        let mut extra = name_end;
        while extra < extra_end && number(extra, 2)? != 1 {
            extra += 4 + number(extra + 2, 2)?;
        }
        let mut wide = extra + 4;
        let mut whole = |at: usize| match number(at, 4)? {
            0xffff_ffff => {
                wide += 8;
                number(wide - 8, 8)
            }
            narrow => Some(narrow),
        };
        let (size, _compressed, offset) = (whole(header + 24)?, whole(header + 20)?, whole(header + 42)?);
        let uncompressed = number(header + 10, 2)? == 0;
        // The entry's own header again has a name and extra fields.
        let local = |at: usize| number(offset.checked_add(at)?, 2);
        let data = local(26)? + local(28)? + offset + 30;
        if uncompressed {
            bytes(data, size)?;
            entries.insert(name, data..data + size);
        }
        header = extra_end + number(header + 32, 2)?;
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_view_behind_an_offset_is_read_in_its_own_order() {
        let storage: Vec<u8> = (0..7).flat_map(|number| (number as f32).to_le_bytes()).collect();
        let tensor = |length: usize| PickledTensor {
            storage: 0..length,
            layout: Layout::new((3, 2).into(), vec![1, 3], 4),
            dtype: DType::F32,
        };
        let (bytes, dtype) = tensor(28).raw(&storage).unwrap();
        assert_eq!(super::super::file::floats(&bytes, dtype).unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert!(tensor(24).raw(&storage).is_none());
        assert!(tensor(32).raw(&storage).is_none());
    }
}
