//! `checksums.json` of a checkpoint: length and CRC-32C of every file in it. A damaged file is seen before a run goes on from it.
//! Not for secrets: whoever can change a file can change its checksum.

use std::{collections::BTreeMap, os::unix::fs::FileExt, path::Path};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, files::json_file, text};

/// The file's name.
pub const FILE: &str = "checksums.json";

/// Bytes that one thread takes at a time, and bytes read at once.
const PIECE: u64 = 64 << 20;
const BUFFER: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checksums {
    /// By path within the folder.
    files: BTreeMap<String, Checksum>,
    /// The CRC-32C of `files` as compact JSON: the list may be damaged too.
    crc32c: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checksum {
    bytes: u64,
    /// Eight hexadecimal digits.
    crc32c: String,
}

/// Writes the checksums of all that is in `folder`: the last thing before it gets its name.
///
/// # Errors
/// A file cannot be read, or the disk is full.
pub fn write(folder: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    collect(folder, "", &mut files)?;
    let crc32c = of_list(&files);
    json_file(&folder.join(FILE), &serde_json::json!(Checksums { files, crc32c }))
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Checksum>) -> Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            collect(&path, &format!("{name}/"), files)?;
        } else if name != FILE {
            files.insert(name, of_file(&path)?);
        }
    }
    Ok(())
}

/// Compares the files of `folder` with their checksums; false if it has none (an earlier version wrote it).
///
/// # Errors
/// A file is missing or not as it was written (named), or the list itself is damaged.
pub fn verify(folder: &Path) -> Result<bool> {
    let list = folder.join(FILE);
    if fs_err::symlink_metadata(&list).is_err() {
        return Ok(false);
    }
    let damaged = || Error::data(format!("{} is damaged", list.display()));
    let Checksums { files, crc32c } =
        serde_json::from_str(&text::read(&list, "checksums")?).map_err(|error| damaged().caused_by(error))?;
    if crc32c != of_list(&files) {
        return Err(damaged());
    }
    for (name, written) in &files {
        let path = folder.join(name);
        let found = match fs_err::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::data(format!("{} is missing", path.display())));
            }
            Ok(metadata) if metadata.len() != written.bytes => {
                let (found, bytes) = (metadata.len(), written.bytes);
                return Err(Error::data(format!("{} is damaged: {found} bytes, {bytes} were written", path.display())));
            }
            _ => of_file(&path)?,
        };
        if found != *written {
            return Err(Error::data(format!(
                "{} is damaged: its CRC-32C is {}, written was {}",
                path.display(),
                found.crc32c,
                written.crc32c
            )));
        }
    }
    Ok(true)
}

fn of_list(files: &BTreeMap<String, Checksum>) -> String {
    hexadecimal(crc32c::crc32c(serde_json::json!(files).to_string().as_bytes()))
}

/// Large files by pieces, on all threads.
fn of_file(path: &Path) -> Result<Checksum> {
    let file = fs_err::File::open(path)?;
    let bytes = file.metadata()?.len();
    let piece = |index: u64| -> Result<(u32, usize)> {
        let (start, end) = (index * PIECE, bytes.min((index + 1) * PIECE));
        let mut buffer = vec![0; BUFFER.min((end - start) as usize)];
        let (mut sum, mut at) = (0, start);
        while at < end {
            let part = &mut buffer[..BUFFER.min((end - at) as usize)];
            file.file().read_exact_at(part, at).map_err(|error| Error::data(format!("{}: {error}", path.display())))?;
            sum = crc32c::crc32c_append(sum, part);
            at += part.len() as u64;
        }
        Ok((sum, (end - start) as usize))
    };
    let pieces = (0..bytes.div_ceil(PIECE)).into_par_iter().map(piece).collect::<Result<Vec<_>>>()?;
    let whole = pieces.into_iter().fold(0, |sum, (next, length)| crc32c::crc32c_combine(sum, next, length));
    Ok(Checksum { bytes, crc32c: hexadecimal(whole) })
}

fn hexadecimal(sum: u32) -> String {
    format!("{sum:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4: 32 bytes of zeros give 8a9136aa.
    #[test]
    fn the_sum_of_the_standard_whole_and_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zeros");
        fs_err::write(&path, [0; 32]).unwrap();
        assert_eq!(of_file(&path).unwrap(), Checksum { bytes: 32, crc32c: "8a9136aa".to_owned() });
        let long: Vec<u8> = (0..PIECE as usize + 5).map(|index| (index % 251) as u8).collect();
        fs_err::write(&path, &long).unwrap();
        assert_eq!(of_file(&path).unwrap().crc32c, hexadecimal(crc32c::crc32c(&long)));
    }

    #[test]
    fn a_changed_cut_or_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(!verify(folder.path()).unwrap(), "an older checkpoint has none");
        fs_err::create_dir(at("images")).unwrap();
        fs_err::write(at("images/0.png"), "picture").unwrap();
        fs_err::write(at("progress.json"), "{}").unwrap();
        write(folder.path()).unwrap();
        assert!(verify(folder.path()).unwrap());
        fs_err::write(at("notes.txt"), "mine").unwrap();
        assert!(verify(folder.path()).unwrap(), "what came later is nobody's business");
        let list = fs_err::read_to_string(at(FILE)).unwrap();
        for (name, content, said) in [
            ("images/0.png", Some("pictuse"), "images/0.png is damaged: its CRC-32C is"),
            ("images/0.png", Some("pict"), "images/0.png is damaged: 4 bytes, 7 were written"),
            ("progress.json", None, "progress.json is missing"),
            (FILE, Some("{"), "checksums.json is damaged"),
            (FILE, Some(""), "checksums.json is damaged"),
            (FILE, Some(list.replace("images/0", "images/1").as_str()), "checksums.json is damaged"),
        ] {
            let before = fs_err::read(at(name)).unwrap();
            match content {
                Some(content) => fs_err::write(at(name), content).unwrap(),
                None => fs_err::remove_file(at(name)).unwrap(),
            }
            let error = verify(folder.path()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
            fs_err::write(at(name), before).unwrap();
        }
    }
}
