//! Where the parts of PyTorch's zip archives are in the file. PyTorch stores them as they are, so they are read in place.
//!
//! The reader of candle is not used: its zip 9.8 takes the directory to end at the end record. PyTorch has 76 bytes of
//! 64-bit records between the two. So candle refuses files whose stem has 21 letters (whose first header has 76 bytes).

use std::{collections::BTreeMap, ops::Range};

use super::source::Source;
use crate::{Error, Result};

/// Bytes of the directory that are read at most, which is some 300,000 tensors.
const MAX_DIRECTORY: u64 = 32 << 20;

/// The place of an entry's bytes in the file; `None` for a compressed one.
pub(super) type Entries = BTreeMap<String, Option<Range<u64>>>;

/// Every entry by name, each within the file and none over another.
///
/// # Errors
/// Not a whole zip file.
pub(super) fn entries(source: &Source) -> Result<Entries> {
    let broken = |what: &str| {
        Error::data(format!("{}: not a whole PyTorch file: {what}", source.path().display()))
            .hint("it may be truncated: copy or download it again")
    };
    let (count, start, size) = directory(source)?.ok_or_else(|| broken("no zip directory at its end"))?;
    if size > MAX_DIRECTORY {
        return Err(broken(&format!("a zip directory of {size} bytes, want at most {MAX_DIRECTORY}")));
    }
    let directory = source.bytes(start, size)?;
    let (mut entries, mut taken, mut at) = (Entries::new(), Vec::new(), 0);
    for number in 0..count {
        let entry =
            Entry::read(&directory, at).ok_or_else(|| broken(&format!("entry {number} of {count} is damaged")))?;
        at = entry.end;
        // The entry's own header again has a name and extra fields.
        let local = source.bytes(entry.header, 30)?;
        if !local.starts_with(b"PK\x03\x04") {
            return Err(broken(&format!("no entry `{}` where the directory has it", entry.name)));
        }
        let lengths = number_at(&local, 26, 2).unwrap_or_default() + number_at(&local, 28, 2).unwrap_or_default();
        let data = entry.header + 30 + lengths;
        let end = data.checked_add(entry.stored).filter(|end| *end <= source.length());
        let end = end.ok_or_else(|| broken(&format!("entry `{}` ends beyond the file", entry.name)))?;
        taken.push(entry.header..end);
        let place = (!entry.compressed).then_some(data..end);
        if entries.insert(entry.name.clone(), place).is_some() {
            return Err(broken(&format!("two entries `{}`", entry.name)));
        }
    }
    taken.sort_by_key(|range| range.start);
    if taken.windows(2).any(|pair| pair[1].start < pair[0].end) {
        return Err(broken("its zip entries overlap"));
    }
    Ok(entries)
}

/// Number of entries, start and size of the directory.
fn directory(source: &Source) -> Result<Option<(u64, u64, u64)>> {
    const END: usize = 22;
    let tail_size = source.length().min((END + usize::from(u16::MAX)) as u64 + 20);
    let tail_start = source.length() - tail_size;
    let tail = source.bytes(tail_start, tail_size)?;
    let Some(end) = tail.windows(4).rposition(|window| window == b"PK\x05\x06") else { return Ok(None) };
    let field = |at: usize, count: usize| number_at(&tail, end + at, count);
    let (Some(count), Some(size), Some(start), Some(comment)) =
        (field(10, 2), field(12, 4), field(16, 4), field(20, 2))
    else {
        return Ok(None);
    };
    if (end + END) as u64 + comment > tail.len() as u64 {
        return Ok(None);
    }
    let Some(locator) = end.checked_sub(20).filter(|locator| tail[*locator..].starts_with(b"PK\x06\x07")) else {
        return Ok(Some((count, start, size)));
    };
    let Some(record) = number_at(&tail, locator + 8, 8) else { return Ok(None) };
    let record = source.bytes(record, 56)?;
    let wide = |at: usize| number_at(&record, at, 8);
    Ok(wide(32).zip(wide(48)).zip(wide(40)).map(|((count, start), size)| (count, start, size)))
}

/// A line of the directory.
struct Entry {
    name: String,
    compressed: bool,
    stored: u64,
    header: u64,
    end: usize,
}

impl Entry {
    fn read(directory: &[u8], at: usize) -> Option<Self> {
        let fixed = directory.get(at..)?.get(..46)?;
        if !fixed.starts_with(b"PK\x01\x02") {
            return None;
        }
        let short = |at: usize| number_at(fixed, at, 2).map(|number| number as usize);
        let name_end = at + 46 + short(28)?;
        let name = std::str::from_utf8(directory.get(at + 46..name_end)?).ok()?.to_owned();
        let extra_end = name_end + short(30)?;
        // What does not fit into 32 bits stands in the extra field 1, in this order.
        let mut extra = name_end;
        while extra < extra_end && number_at(directory, extra, 2)? != 1 {
            extra += 4 + number_at(directory, extra + 2, 2)? as usize;
        }
        let mut wide = extra + 4;
        let mut whole = |at: usize| match number_at(fixed, at, 4)? {
            0xffff_ffff => {
                wide += 8;
                number_at(directory, wide - 8, 8)
            }
            narrow => Some(narrow),
        };
        let (size, stored, header) = (whole(24)?, whole(20)?, whole(42)?);
        let compressed = short(10)? != 0;
        (compressed || size == stored).then_some(())?;
        Some(Self { name, compressed, stored, header, end: extra_end + short(32)? })
    }
}

/// `count` little-endian bytes as a number.
fn number_at(bytes: &[u8], at: usize, count: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(count)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
}
