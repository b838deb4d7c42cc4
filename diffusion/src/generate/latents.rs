//! Latents in and out: `--latents`, `--save-latents`, `--save-final-latents`. A file holds one tensor, `latents`
//! `[N, channels, height / 8, width / 8]`, prompt-major, N = prompts × images per prompt.

use std::path::{Path, PathBuf};

use reward::{
    files::replace_file,
    weights::{file::TensorFile, save::named_tensors},
};
use tch::Tensor;

use super::plan::PlannedImage;
use crate::{Error, Result};

/// The tensor's name.
const NAME: &str = "latents";

/// Reads initial noise for `count` images of latent shape `shape`.
///
/// # Errors
/// The file cannot be read; a usage error if it has no such tensor or one of another shape.
pub fn read(path: &Path, count: usize, shape: [i64; 3]) -> Result<Tensor> {
    let file = TensorFile::open(path)?;
    let wanted: Vec<usize> = std::iter::once(count).chain(shape.iter().map(|size| *size as usize)).collect();
    let Some(found) = file.shapes().get(NAME) else {
        let names: Vec<&str> = file.shapes().keys().take(5).map(String::as_str).collect();
        return Err(Error::usage(format!("{} has no tensor `{NAME}` (it has: {})", path.display(), names.join(", "))));
    };
    if *found != wanted {
        return Err(Error::usage(format!("{}: tensor `{NAME}` has shape {found:?}, want {wanted:?}", path.display()))
            .hint("prompts x images per prompt, then channels, height / 8, width / 8"));
    }
    let wanted: Vec<i64> = wanted.iter().map(|size| *size as i64).collect();
    Ok(Tensor::from_slice(&file.read(NAME)?).reshape(wanted))
}

/// Writes latents `[N, channels, height, width]`.
///
/// # Errors
/// The disk is full or not writable.
pub fn write(path: &Path, latents: &Tensor) -> Result<()> {
    let shape = latents.size().iter().map(|size| *size as usize).collect();
    named_tensors(path, vec![(NAME.to_owned(), shape, Box::new(|| values(latents)))])
}

fn values(latents: &Tensor) -> Result<Vec<f32>> {
    let flat = latents.to_device(tch::Device::Cpu).to_kind(tch::Kind::Float).flatten(0, -1);
    Vec::try_from(flat).map_err(|error| Error::data("latents").caused_by(error))
}

/// Final latents on their way into one file: a piece for every finished image, so that a run that goes on has them all.
pub struct FinalLatents {
    file: PathBuf,
    pieces: PathBuf,
    count: usize,
    shape: [i64; 3],
    /// The file is there already, from this run.
    complete: bool,
}

impl FinalLatents {
    /// For a run of `count` images in `folder` that writes `file`.
    pub fn new(file: &Path, folder: &Path, count: usize, shape: [i64; 3]) -> Self {
        let complete = file.exists() && read(file, count, shape).is_ok();
        Self { file: file.to_owned(), pieces: folder.join(".final-latents"), count, shape, complete }
    }

    fn piece(&self, number: usize) -> PathBuf {
        self.pieces.join(format!("{number}.f32"))
    }

    /// Whether the latents of a finished image are known.
    pub fn has(&self, image: &PlannedImage) -> bool {
        self.complete || self.piece(image.number).is_file()
    }

    /// Keeps the latents `[channels, height, width]` of an image.
    ///
    /// # Errors
    /// The disk is full or not writable.
    pub fn keep(&self, image: &PlannedImage, latents: &Tensor) -> Result<()> {
        fs_err::create_dir_all(&self.pieces)?;
        let bytes: Vec<u8> = values(latents)?.iter().flat_map(|value| value.to_le_bytes()).collect();
        replace_file(&self.piece(image.number), |partial| Ok(fs_err::write(partial, bytes)?))
    }

    /// Puts the pieces together.
    ///
    /// # Errors
    /// A piece is missing or damaged, or the disk is full or not writable.
    pub fn finish(&self) -> Result<()> {
        if !self.pieces.is_dir() {
            return Ok(());
        }
        let size = self.shape.iter().product::<i64>() as usize;
        let mut all = if self.complete { values(&read(&self.file, self.count, self.shape)?)? } else { Vec::new() };
        all.resize(size * self.count, 0.0);
        for (number, values) in all.chunks_mut(size).enumerate() {
            let path = self.piece(number);
            if self.complete && !path.is_file() {
                continue;
            }
            let bytes = fs_err::read(&path)?;
            if bytes.len() != size * size_of::<f32>() {
                return Err(Error::data(format!("{}: damaged", path.display())));
            }
            let read = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            values.iter_mut().zip(read).for_each(|(value, read)| *value = read);
        }
        let shape: Vec<i64> = std::iter::once(self.count as i64).chain(self.shape).collect();
        write(&self.file, &Tensor::from_slice(&all).reshape(shape))?;
        Ok(fs_err::remove_dir_all(&self.pieces)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn latents_are_read_as_written_and_other_shapes_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latents.safetensors");
        let latents = Tensor::arange(2 * 4 * 2 * 3, (Kind::Float, Device::Cpu)).view([2, 4, 2, 3]);
        write(&path, &latents).unwrap();
        assert!(read(&path, 2, [4, 2, 3]).unwrap().equal(&latents));
        let error = read(&path, 1, [4, 2, 3]).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Usage);
        assert!(error.to_string().ends_with("tensor `latents` has shape [2, 4, 2, 3], want [1, 4, 2, 3]"), "{error}");
    }

    #[test]
    fn final_latents_survive_a_stop_and_a_lost_image() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("final.safetensors");
        let latents = Tensor::arange(3 * 4, (Kind::Float, Device::Cpu)).view([3, 4, 1, 1]);
        let images = super::super::plan::all(3, 1, 0);
        let open = || FinalLatents::new(&file, folder.path(), 3, [4, 1, 1]);
        for image in &images {
            assert!(!open().has(image));
            open().keep(image, &latents.get(image.number as i64)).unwrap();
            assert!(open().has(image));
        }
        open().finish().unwrap();
        assert!(read(&file, 3, [4, 1, 1]).unwrap().equal(&latents));
        assert!(!folder.path().join(".final-latents").exists());
        open().keep(&images[1], &(latents.get(1) * 2.0)).unwrap();
        open().finish().unwrap();
        let changed = read(&file, 3, [4, 1, 1]).unwrap();
        assert!(changed.get(1).equal(&(latents.get(1) * 2.0)) && changed.get(2).equal(&latents.get(2)));
    }
}
