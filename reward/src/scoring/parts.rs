//! `OUTPUT.parts/`: what is scored of a table that is not finished, so that no end of the process loses it.
//!
//! A part has the scores of all rows of a range of the distinct images. It is a line of JSON, then fp32 numbers, little-endian,
//! NaN where an image could not be read. Ranges are of images because they are what is computed; any number of processes could
//! share them out. A part says by hashes which model scored and which rows, so that it is only used where it belongs.

use std::{
    cell::OnceCell,
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    files::{followed, replace_file},
    weights::sha256::{of_bytes, of_file},
};

/// A part is written once this share of the time so far has passed, within [`LEAST`] and [`MOST`].
const SHARE: u32 = 20;
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(30);
const EXTENSION: &str = "part";

/// The first line of a part.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// Hash of the model, its device and how images are prepared.
    model: String,
    /// Hash of the rows: prompts, paths, and size and time of the image files.
    rows: String,
    /// First image and the one behind the last.
    images: [usize; 2],
    /// Hash of the numbers.
    scores: String,
}

/// What scores depend on beside the rows.
pub struct Model<'a> {
    /// The weight files, in order.
    pub files: Vec<PathBuf>,
    /// All else: architecture, preprocessing, device, and for random weights name and seed.
    pub settings: &'a str,
}

impl Model<'_> {
    fn hash(&self) -> Result<String> {
        let files = self.files.iter().map(|file| of_file(file)).collect::<Result<Vec<_>>>()?;
        Ok(of_bytes(format!("{} {}", files.join(" "), self.settings).as_bytes()))
    }
}

/// The folder of parts beside an output, and when the next part is due.
pub struct Parts<'a> {
    folder: PathBuf,
    model: Model<'a>,
    /// Hashed when it is first needed: most runs end before a part is due.
    hash: OnceCell<String>,
    /// Held against other processes while there is a folder.
    lock: Option<fs_err::File>,
    /// Whether other processes score other parts of the same table.
    shared: bool,
    /// Whether another process keeps its parts here.
    taken: bool,
    started: Instant,
    written: Instant,
    at_once: bool,
}

impl<'a> Parts<'a> {
    /// The parts of `output`, of which there may be none yet. `shared`: other processes keep theirs there too.
    ///
    /// # Errors
    /// A link that leads nowhere.
    pub fn of(output: &Path, model: Model<'a>, shared: bool) -> Result<Self> {
        let output = followed(output)?;
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let folder = output.with_file_name(format!("{name}.parts"));
        let (started, hash) = (Instant::now(), OnceCell::new());
        let mut parts =
            Self { folder, model, hash, lock: None, shared, taken: false, started, written: started, at_once: false };
        if parts.folder.is_dir() {
            parts.claim()?;
        }
        Ok(parts)
    }

    /// Where they lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether another process keeps its parts here, so that this one keeps none.
    pub fn taken(&self) -> bool {
        self.taken
    }

    /// Writes a part whenever there is anything to write.
    #[must_use]
    pub fn at_once(mut self) -> Self {
        self.at_once = true;
        self
    }

    /// Whether it is time for another part.
    pub(super) fn due(&self) -> bool {
        let share = (self.started.elapsed() / SHARE).clamp(LEAST, MOST);
        !self.taken && (self.at_once || self.written.elapsed() >= share)
    }

    /// The parts that belong to these rows and this model, by their images, none of which come twice; and how many others lie
    /// there. `rows` gives the hash of the rows of a range of images, and their number.
    ///
    /// # Errors
    /// The folder, a part, or the model's files cannot be read.
    pub(super) fn read(&self, rows: impl Fn(Range<usize>) -> Option<(String, usize)>) -> Result<(Found, usize)> {
        let (mut found, mut others): (Found, usize) = (Vec::new(), 0);
        if self.taken {
            return Ok((found, others));
        }
        for path in self.files(|name| name.ends_with(&format!(".{EXTENSION}")))? {
            let bytes = match fs_err::read(&path) {
                // Another part of the table was the last, and has written it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                bytes => bytes?,
            };
            let part = parsed(&bytes);
            let part = part.filter(|(header, scores)| {
                rows(header.images[0]..header.images[1])
                    .is_some_and(|(hash, count)| header.rows == hash && scores.len() == count)
            });
            match part {
                Some((header, scores)) if header.model == *self.model()? => {
                    found.push((header.images[0]..header.images[1], scores));
                }
                _ => others += 1,
            }
        }
        found.sort_by_key(|(images, _)| (images.start, images.end));
        let mut end = 0;
        found.retain(|(images, _)| {
            let next = images.start >= end;
            if next {
                end = images.end;
            }
            next
        });
        Ok((found, others))
    }

    /// Writes the scores of the rows of these images. `rows`: the hash of the rows.
    ///
    /// # Errors
    /// The disk is full or not writable.
    pub(super) fn add(&mut self, images: Range<usize>, rows: String, scores: &[f32]) -> Result<()> {
        self.claim()?;
        if self.taken {
            return Ok(());
        }
        let numbers: Vec<u8> = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        let model = self.model()?.clone();
        let header = Header { model, rows, images: [images.start, images.end], scores: of_bytes(&numbers) };
        let header = serde_json::to_string(&header).map_err(|error| Error::data("part").caused_by(error))?;
        fs_err::create_dir_all(&self.folder)?;
        let path = self.folder.join(format!("{:08}-{:08}.{EXTENSION}", images.start, images.end));
        let bytes = [header.as_bytes(), b"\n", &numbers].concat();
        replace_file(&path, |partial| Ok(fs_err::write(partial, bytes)?))?;
        self.written = Instant::now();
        Ok(())
    }

    /// Removes the parts, and the folder if nothing else is in it. What cannot be removed stays: all scores are elsewhere.
    pub fn remove(self) {
        if self.lock.is_none() {
            return;
        }
        let ours = |name: &str| {
            name.ends_with(&format!(".{EXTENSION}")) || name.starts_with('.') && name.ends_with(".partial")
        };
        for path in self.files(ours).unwrap_or_default() {
            fs_err::remove_file(path).ok();
        }
        fs_err::remove_dir(&self.folder).ok();
    }

    /// Makes the folder and takes it for this process, if no other has it.
    fn claim(&mut self) -> Result<()> {
        if self.lock.is_none() && !self.taken {
            fs_err::create_dir_all(&self.folder)?;
            // The folder's own lock leaves no file behind; where the file system has no locks, nobody can hold one. If another
            // process has just removed the folder, this one goes on without a lock: parts are checked whoever wrote them.
            let folder = fs_err::File::open(&self.folder).ok();
            let lock = |folder: &fs_err::File| match self.shared {
                true => folder.file().try_lock_shared(),
                false => folder.file().try_lock(),
            };
            let lock = folder.as_ref().map(lock);
            self.taken = matches!(lock, Some(Err(std::fs::TryLockError::WouldBlock)));
            if self.taken && self.shared {
                let text = format!("{}: another process scores the whole table", self.folder.display());
                return Err(Error::data(text).hint("wait for it to end, or give another --output"));
            }
            self.lock = folder.filter(|_| !self.taken);
        }
        Ok(())
    }

    fn model(&self) -> Result<&String> {
        match self.hash.get() {
            Some(hash) => Ok(hash),
            None => {
                let hash = self.model.hash()?;
                Ok(self.hash.get_or_init(|| hash))
            }
        }
    }

    fn files(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        if self.folder.is_dir() {
            let entries = match fs_err::read_dir(&self.folder) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(files),
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                if wanted(&entry.file_name().to_string_lossy()) {
                    files.push(entry.path());
                }
            }
        }
        Ok(files)
    }
}

/// Ranges of images with the scores of their rows.
pub(super) type Found = Vec<(Range<usize>, Vec<f32>)>;

/// A part's header and scores; nothing where it is damaged.
fn parsed(bytes: &[u8]) -> Option<(Header, Vec<f32>)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(&bytes[..end]).ok()?;
    let numbers = &bytes[end + 1..];
    let whole = of_bytes(numbers) == header.scores && header.images[0] < header.images[1];
    let (numbers, _) = numbers.as_chunks::<4>();
    whole.then(|| (header, numbers.iter().map(|number| f32::from_le_bytes(*number)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Model = Model { files: Vec::new(), settings: "model" };

    #[test]
    fn a_part_with_any_byte_changed_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = Parts::of(&folder.path().join("s.csv"), MODEL, false).unwrap();
        parts.add(2..4, "rows".to_owned(), &[0.5, f32::NAN]).unwrap();
        let path = folder.path().join("s.csv.parts/00000002-00000004.part");
        let valid = fs_err::read(&path).unwrap();
        let rows = |images: Range<usize>| (images == (2..4)).then(|| ("rows".to_owned(), 2));
        let bits = |(found, others): (Found, usize)| {
            let scores = found.iter().flat_map(|(_, scores)| scores.iter().map(|score| score.to_bits())).collect();
            (scores, others)
        };
        let wanted: (Vec<u32>, usize) = (vec![0.5_f32.to_bits(), f32::NAN.to_bits()], 0);
        assert_eq!(bits(parts.read(rows).unwrap()), wanted);
        for (place, byte) in valid.iter().enumerate() {
            let mut damaged = valid.clone();
            damaged[place] = byte ^ 4;
            fs_err::write(&path, damaged).unwrap();
            assert_eq!(bits(parts.read(rows).unwrap()), (Vec::new(), 1), "byte {place}");
        }
        for length in 0..valid.len() {
            fs_err::write(&path, &valid[..length]).unwrap();
            assert_eq!(bits(parts.read(rows).unwrap()), (Vec::new(), 1), "{length} bytes");
        }
    }

    #[test]
    fn parts_belong_to_one_process_and_what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("s.csv");
        let mut first = Parts::of(&output, MODEL, false).unwrap();
        assert!(!first.folder().exists(), "no folder before there is a part");
        first.add(0..1, String::new(), &[1.0]).unwrap();
        let mut second = Parts::of(&output, MODEL, false).unwrap();
        assert!(second.taken() && !first.taken());
        second.add(1..2, String::new(), &[1.0]).unwrap();
        second.remove();
        assert_eq!(fs_err::read_dir(first.folder()).unwrap().count(), 1);
        fs_err::write(first.folder().join("notes.txt"), "mine").unwrap();
        first.remove();
        let left: Vec<_> = fs_err::read_dir(folder.path().join("s.csv.parts")).unwrap().collect();
        assert_eq!(left.len(), 1);
    }
}
