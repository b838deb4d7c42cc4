//! One tensor file, opened without loading it: memory-mapped safetensors and PyTorch archives (`.pth`, `.pt`, `.ckpt`), and
//! TorchScript archives through libtorch.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use half::{bf16, f16, slice::HalfFloatSliceExt};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

use super::{
    misfits,
    pickle::{self, PickledTensor},
};
use crate::{Error, Result};

/// A named collection of tensors on disk (or, for random weights, made on demand).
pub struct TensorFile {
    path: PathBuf,
    content: Content,
    shapes: BTreeMap<String, Vec<usize>>,
}

/// The stored elements of one tensor, row-major and little-endian.
pub struct RawTensor<'a> {
    /// As stored: a part of the memory map, except where a pickle's tensor is strided.
    pub bytes: Cow<'a, [u8]>,
    /// The type of an element.
    pub dtype: Dtype,
}

enum Content {
    Safetensors {
        map: memmap2::Mmap,
        start: usize,
        metadata: Metadata,
    },
    Pickle {
        map: memmap2::Mmap,
        tensors: HashMap<String, PickledTensor>,
    },
    #[cfg(feature = "torch")]
    TorchScript(BTreeMap<String, std::sync::Mutex<tch::Tensor>>),
}

impl TensorFile {
    /// Opens by content, not by extension.
    ///
    /// # Errors
    /// Unreadable or truncated file, a format that is none of the three, a pickle without tensors.
    pub fn open(path: &Path) -> Result<Self> {
        let mut magic = [0; 9];
        let mut file = fs_err::File::open(path)?;
        let length = file.metadata()?.len();
        if length == 0 {
            return Err(Error::data(format!("{}: empty file, want tensors", path.display())));
        }
        file.read_exact(&mut magic[..length.min(9) as usize])?;
        match &magic {
            // JSON after its length, whose first bytes may look like a pickle's.
            [.., b'{'] => Self::open_safetensors(path),
            [b'P', b'K', 3, 4, ..] => Self::open_zip(path),
            // A pickle that is no zip: the format of PyTorch before 1.6.
            [0x80, 2..=5, ..] => {
                Err(Error::data(format!("{}: a PyTorch file in the format before 1.6", path.display()))
                    .hint("load it once in Python and save it with safetensors.torch.save_file"))
            }
            _ => Self::open_safetensors(path),
        }
    }

    fn open_safetensors(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            Error::data(format!("{}: not a complete safetensors file", path.display()))
                .caused_by(error)
                .hint("the file may be truncated: copy or download it again")
        })?;
        let shapes = metadata.tensors().into_iter().map(|(name, info)| (name, info.shape.clone())).collect();
        Ok(Self {
            path: path.to_owned(),
            content: Content::Safetensors { start: header + size_of::<u64>(), map, metadata },
            shapes,
        })
    }

    fn open_zip(path: &Path) -> Result<Self> {
        let map = map(path)?;
        match pickle::tensors(&map) {
            Ok(tensors) if !tensors.is_empty() => {
                let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
                Ok(Self { path: path.to_owned(), content: Content::Pickle { map, tensors }, shapes })
            }
            Err(error) if !is_torch_script(path) => {
                Err(Error::data(format!("{}: cannot be read as a PyTorch checkpoint", path.display()))
                    .caused_by(error)
                    .hint("the file may be truncated; else save it in Python with safetensors.torch.save_file"))
            }
            _ => Self::open_torch_script(path),
        }
    }

    #[cfg(feature = "torch")]
    fn open_torch_script(path: &Path) -> Result<Self> {
        let module = is_torch_script(path).then(|| tch::CModule::load(path)).and_then(Result::ok);
        let Some(parameters) = module.and_then(|module| module.named_parameters().ok()) else {
            return Err(no_tensors(path));
        };
        let shapes = parameters
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.size().iter().map(|size| *size as usize).collect()));
        let shapes = shapes.collect();
        let parameters = parameters.into_iter().map(|(name, tensor)| (name, std::sync::Mutex::new(tensor))).collect();
        Ok(Self { path: path.to_owned(), content: Content::TorchScript(parameters), shapes })
    }

    #[cfg(not(feature = "torch"))]
    fn open_torch_script(path: &Path) -> Result<Self> {
        if is_torch_script(path) {
            return Err(Error::data(format!("{}: a TorchScript archive, which needs libtorch", path.display()))
                .hint("use the full build, or convert it with `social-reward reward export` there"));
        }
        Err(no_tensors(path))
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor's shape by name.
    pub fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// A text in the header of a safetensors file.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        match &self.content {
            Content::Safetensors { metadata, .. } => metadata.metadata().as_ref()?.get(key).map(String::as_str),
            _ => None,
        }
    }

    /// Whether it is a TorchScript archive.
    pub fn is_torch_script(&self) -> bool {
        #[cfg(feature = "torch")]
        return matches!(self.content, Content::TorchScript(_));
        #[cfg(not(feature = "torch"))]
        false
    }

    /// Checks that the file holds exactly `wanted`, names with shapes, but for what `ignored` says may stand beside them.
    ///
    /// # Errors
    /// Tensors missing, unexpected or of another shape: one error.
    pub fn check(&self, wanted: &[(String, Vec<usize>)], ignored: impl Fn(&str) -> bool) -> Result<()> {
        let shapes = self.shapes();
        let mut problems = Vec::new();
        for (name, shape) in wanted {
            match shapes.get(name) {
                None => problems.push(format!("`{name}` is missing")),
                Some(found) if found != shape => {
                    problems.push(format!("`{name}` has shape {found:?}, want {shape:?}"));
                }
                Some(_) => {}
            }
        }
        let known: BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
        let unexpected = shapes.keys().filter(|name| !known.contains(name.as_str()) && !ignored(name));
        problems.extend(unexpected.map(|name| format!("`{name}` is unexpected")));
        misfits(&self.path().display().to_string(), &problems)
    }

    /// The values of tensor `name` as fp32, row-major. The file's pages stop counting as this process's memory.
    ///
    /// # Errors
    /// No such tensor, or an element type that is no float.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let raw = self.raw(name)?;
        let dtype = raw.dtype;
        let values = floats(&raw.bytes, dtype);
        self.release(raw);
        values.ok_or_else(|| self.failed(name, &format!("type {dtype:?}, want F32, F16, BF16 or F64")))
    }

    /// The elements of tensor `name` as they are stored, without a copy where they lie in one piece.
    ///
    /// # Errors
    /// No such tensor, a storage that ends too soon, or (in a pickle) an element type that is no float.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let missing = || self.failed(name, "missing");
        match &self.content {
            Content::Safetensors { map, start, metadata } => {
                let info = metadata.info(name).ok_or_else(missing)?;
                let bytes = &map[start + info.data_offsets.0..start + info.data_offsets.1];
                Ok(RawTensor { bytes: Cow::Borrowed(bytes), dtype: info.dtype })
            }
            Content::Pickle { map, tensors } => {
                let tensor = tensors.get(name).ok_or_else(missing)?;
                let (bytes, dtype) =
                    tensor.raw(map).ok_or_else(|| self.failed(name, "cut off, or of a type that is no float"))?;
                Ok(RawTensor { bytes, dtype })
            }
            #[cfg(feature = "torch")]
            Content::TorchScript(tensors) => {
                let tensor = tensors.get(name).ok_or_else(missing)?;
                let tensor = tensor.lock().map_err(|_| self.failed(name, "poisoned"))?;
                let values =
                    Vec::<f32>::try_from(tensor.to_kind(tch::Kind::Float).to_device(tch::Device::Cpu).flatten(0, -1))
                        .map_err(|error| self.failed(name, "cannot be read").caused_by(error))?;
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Ok(RawTensor { bytes: Cow::Owned(bytes), dtype: Dtype::F32 })
            }
        }
    }

    /// Says that `raw` is not needed any more: its pages of the memory map stop counting as this process's memory. They
    /// are read from the file again if they are touched again.
    #[allow(unsafe_code, reason = "memmap2 marks all advice that may drop changed pages as unsafe")]
    pub fn release(&self, raw: RawTensor) {
        let map = match &self.content {
            Content::Safetensors { map, .. } | Content::Pickle { map, .. } => map,
            #[cfg(feature = "torch")]
            Content::TorchScript(_) => return,
        };
        let Cow::Borrowed(bytes) = raw.bytes else { return };
        let offset = bytes.as_ptr().addr() - map.as_ptr().addr();
        // SAFETY: the map is of a file and read-only, so a dropped page holds nothing that the file does not.
        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes.len()) }.ok();
    }

    fn failed(&self, name: &str, what: &str) -> Error {
        Error::data(format!("{}: tensor `{name}`: {what}", self.path.display()))
    }
}

#[allow(unsafe_code, reason = "a memory map is the only way to open 4 GB of weights without reading them")]
fn map(path: &Path) -> Result<memmap2::Mmap> {
    let file = fs_err::File::open(path)?;
    // SAFETY: the map is read-only and private; a file that shrinks under us ends the process, as for every mmap reader.
    unsafe { memmap2::Mmap::map(file.file()) }.map_err(|error| Error::data(format!("{}: {error}", path.display())))
}

/// The list of files at the end of a TorchScript archive has a `constants.pkl`; a state dict's has none.
fn is_torch_script(path: &Path) -> bool {
    let tail = || -> std::io::Result<Vec<u8>> {
        let mut file = fs_err::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(1 << 20)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(tail)
    };
    tail().is_ok_and(|tail| tail.windows(14).any(|window| window == b"/constants.pkl"))
}

fn no_tensors(path: &Path) -> Error {
    Error::data(format!("{}: a pickle that holds no tensors; nothing in it was executed", path.display()))
        .hint("convert it in Python where you trust it: safetensors.torch.save_file(state_dict, \"model.safetensors\")")
}

/// Little-endian bytes of a float type as fp32; `None` for another type.
pub(super) fn floats(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    fn parse<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
        bytes.as_chunks::<N>().0.iter().copied()
    }
    match dtype {
        Dtype::F32 => Some(parse(bytes).map(f32::from_le_bytes).collect()),
        Dtype::F64 => Some(parse(bytes).map(|chunk| f64::from_le_bytes(chunk) as f32).collect()),
        Dtype::F16 => Some(parse(bytes).map(f16::from_le_bytes).collect::<Vec<_>>().to_f32_vec()),
        Dtype::BF16 => Some(parse(bytes).map(bf16::from_le_bytes).collect::<Vec<_>>().to_f32_vec()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 640 and 1152 begin with the bytes of a pickle, 80 02 and 80 04.
    #[test]
    fn the_length_of_a_safetensors_header_is_no_pickle() {
        let folder = tempfile::tempdir().unwrap();
        for length in [640_u64, 1152] {
            let path = folder.path().join("x.safetensors");
            let header = r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
            let header = format!("{header:<width$}", width = length as usize);
            fs_err::write(&path, [&length.to_le_bytes(), header.as_bytes(), &1.5_f32.to_le_bytes()].concat()).unwrap();
            assert_eq!(TensorFile::open(&path).unwrap().read("x").unwrap(), [1.5]);
        }
    }
}
