//! One tensor file, opened without loading it: safetensors and PyTorch's archives (`.pth`, `.pt`, `.ckpt`, `.bin`), of which
//! nothing is executed. Every size in it is held against the file before anything is allocated.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    path::Path,
};

use safetensors::{Dtype, tensor::Metadata};

use super::{archive, floats, misfits, place::Place, source::Source, tensors::joined};
use crate::{Error, Result};

/// Bytes that are read at a time: they stay in the processor's cache while they are checked and converted.
const PIECE: usize = 256 << 10;

/// Bytes of a safetensors header at most, which is the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Where each key of a model is stored: index of the file, and name there.
pub type Places = BTreeMap<String, (usize, String)>;

/// A named collection of tensors on disk.
pub struct TensorFile {
    source: Source,
    tensors: BTreeMap<String, Stored>,
    shapes: BTreeMap<String, Vec<usize>>,
    metadata: HashMap<String, String>,
    is_torch_script: bool,
}

struct Stored {
    place: Place,
    /// Bytes of the name that are the path of the tensor's dictionary.
    dictionary: usize,
}

impl TensorFile {
    /// Opens by content, not by extension. Of an archive with several dictionaries, the one with most tensors.
    ///
    /// # Errors
    /// Unreadable or truncated file, a format that is none of these, a pickle without tensors, two dictionaries alike.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = Self::open_all(path)?;
        let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
        for name in file.shapes.keys() {
            *sizes.entry(file.dictionary(name)).or_default() += 1;
        }
        let most = sizes.values().max().copied().unwrap_or_default();
        let largest: Vec<&str> = sizes.into_iter().filter(|(_, size)| *size == most).map(|(path, _)| path).collect();
        if largest.len() > 1 {
            return Err(Error::data(format!("{}: holds {} sets of tensors", path.display(), super::listed(&largest)))
                .hint("save the one that is meant by itself, with safetensors.torch.save_file"));
        }
        let chosen = largest.first().map(|path| (*path).to_owned()).unwrap_or_default();
        file.tensors.retain(|name, stored| name[..stored.dictionary] == chosen);
        let relative = |(name, stored): (String, Stored)| {
            (key(&name, stored.dictionary).to_owned(), Stored { dictionary: 0, ..stored })
        };
        file.tensors = file.tensors.into_iter().map(relative).collect();
        file.shapes = file.tensors.iter().map(|(name, stored)| (name.clone(), stored.place.shape.clone())).collect();
        Ok(file)
    }

    /// Opens with all dictionaries of an archive: a name is the path of its dictionary and its key there.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_all(path: &Path) -> Result<Self> {
        let source = Source::open(path)?;
        let head = source.bytes(0, source.length().min(9))?;
        let (mut metadata, mut is_torch_script) = (HashMap::new(), false);
        let found = match &head[..] {
            // JSON after its length, whose first bytes may look like a pickle's.
            [.., b'{'] if head.len() == 9 => of_safetensors(&source, &mut metadata)?,
            [b'P', b'K', 3, 4, ..] => archive::of_zip(&source, &mut is_torch_script)?,
            [0x80, 2..=5, ..] => archive::of_pickles(&source)?,
            _ => return Err(no_weights(path, &head)),
        };
        let mut tensors = BTreeMap::new();
        for archive::Found { dictionary, key, place } in found {
            let name = joined(&dictionary, &key);
            if tensors.insert(name, Stored { place, dictionary: dictionary.len() }).is_some() {
                let name = joined(&dictionary, &key);
                return Err(Error::data(format!("{}: two tensors `{name}`", path.display())));
            }
        }
        let shapes = tensors.iter().map(|(name, stored)| (name.clone(), stored.place.shape.clone())).collect();
        let file = Self { source, tensors, shapes, metadata, is_torch_script };
        file.refuse_scales()?;
        Ok(file)
    }

    /// Only these tensors, under these keys.
    pub(super) fn renamed(mut self, places: Places) -> Self {
        let tensors = places
            .into_iter()
            .filter_map(|(key, (_, name))| Some((key, Stored { dictionary: 0, ..self.tensors.remove(&name)? })));
        self.tensors = tensors.collect();
        self.shapes = self.tensors.iter().map(|(name, stored)| (name.clone(), stored.place.shape.clone())).collect();
        self
    }

    /// Weights of fp8 with factors of their own beside them would be read without these.
    fn refuse_scales(&self) -> Result<()> {
        const SCALES: [&str; 5] = ["scaled_fp8", "scale_weight", "weight_scale", "weight_scale_inv", "scale_input"];
        let is_scale = |name: &&String| name.rsplit('.').next().is_some_and(|last| SCALES.contains(&last));
        let has_fp8 = self.tensors.values().any(|stored| floats::is_fp8(stored.place.dtype));
        match self.tensors.keys().find(is_scale).filter(|_| has_fp8) {
            None => Ok(()),
            Some(name) => Err(Error::data(format!(
                "{}: fp8 weights with scales of their own (`{name}`) are not supported",
                self.path().display()
            ))
            .hint("take the fp16 or fp32 file of the same model")),
        }
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// A text in the header of a safetensors file.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Whether it is a TorchScript archive.
    pub fn is_torch_script(&self) -> bool {
        self.is_torch_script
    }

    /// Every tensor's shape by name.
    pub fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// The path of the dictionary that tensor `name` is in; empty for the top.
    pub(super) fn dictionary<'a>(&self, name: &'a str) -> &'a str {
        &name[..self.tensors.get(name).map_or(0, |stored| stored.dictionary)]
    }

    /// The key of tensor `name` in its dictionary.
    pub(super) fn key<'a>(&self, name: &'a str) -> &'a str {
        key(name, self.dictionary(name).len())
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

    /// The values of tensor `name` as fp32, row-major.
    ///
    /// # Errors
    /// No such tensor, an element type that is no float, a value that is not finite, a file that was shortened.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let elements = self.place(name)?.elements;
        let mut values = Vec::with_capacity(elements);
        self.each(name, 0..elements, |bytes, dtype| {
            floats::append(bytes, dtype, &mut values);
            Ok(())
        })?;
        Ok(values)
    }

    /// The values of tensor `name` if it holds whole numbers (I64 or I32), as fp32.
    ///
    /// # Errors
    /// No such tensor, or a file that was shortened.
    pub fn whole_numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Place { start, dtype, elements, strides, .. } = self.place(name)?;
        let size = dtype.bitsize().div_euclid(8);
        if !matches!(dtype, Dtype::I64 | Dtype::I32) || strides.is_some() {
            return Ok(None);
        }
        let bytes = self.source.bytes(*start, (elements * size) as u64)?;
        let number = |bytes: &[u8]| match bytes {
            [a, b, c, d] => i32::from_le_bytes([*a, *b, *c, *d]) as f32,
            [a, b, c, d, e, f, g, h] => i64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]) as f32,
            _ => f32::NAN,
        };
        Ok(Some(bytes.chunks_exact(size).map(number).collect()))
    }

    /// Hands the values that [`Self::read`] gives to `take`, some hundred thousand at a time.
    ///
    /// # Errors
    /// As [`Self::read`], or what `take` says.
    pub fn values(&self, name: &str, mut take: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let mut values = Vec::new();
        self.each(name, 0..self.place(name)?.elements, |bytes, dtype| {
            values.clear();
            floats::append(bytes, dtype, &mut values);
            take(&values)
        })
    }

    /// The type that [`Self::pieces`] hands out: as stored, but fp32 of fp8.
    ///
    /// # Errors
    /// No such tensor, or an element type that is no float.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        let dtype = self.place(name)?.dtype;
        match floats::size(dtype) {
            None => Err(self.failed(name, &format!("type {dtype:?}, want F32, F16, BF16, F64, F8_E4M3 or F8_E5M2"))),
            Some(_) if floats::is_fp8(dtype) => Ok(Dtype::F32),
            Some(_) => Ok(dtype),
        }
    }

    /// Hands `elements` of tensor `name`, row-major and little-endian, to `take`, some hundred thousand at a time.
    ///
    /// # Errors
    /// As [`Self::read`], or what `take` says.
    pub fn pieces(&self, name: &str, elements: Range<usize>, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut values = Vec::new();
        self.each(name, elements, |bytes, dtype| {
            if !floats::is_fp8(dtype) {
                return take(bytes);
            }
            values.clear();
            floats::append(bytes, dtype, &mut values);
            take(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
        })
    }

    fn each(&self, name: &str, elements: Range<usize>, mut take: impl FnMut(&[u8], Dtype) -> Result<()>) -> Result<()> {
        self.dtype(name)?;
        let place = self.place(name)?;
        let size = place.dtype.bitsize().div_euclid(8);
        if elements.end > place.elements {
            return Err(self.failed(name, &format!("{} elements, want {}", place.elements, elements.end)));
        }
        let gathered = place.strides.as_ref().map(|strides| self.gathered(place, strides)).transpose()?;
        let mut buffer = vec![0; PIECE.min(elements.len() * size)];
        for start in elements.clone().step_by(PIECE.div_euclid(size)) {
            let bytes = &mut buffer[..PIECE.min((elements.end - start) * size)];
            match &gathered {
                Some(gathered) => bytes.copy_from_slice(&gathered[start * size..][..bytes.len()]),
                None => self.source.read(place.start + (start * size) as u64, bytes)?,
            }
            if let Some(at) = floats::first_not_finite(bytes, place.dtype) {
                return Err(self
                    .failed(name, &format!("element {} is NaN, infinite or too large for fp32", start + at))
                    .hint("a run that diverged leaves such values: take an earlier checkpoint"));
            }
            take(bytes, place.dtype)?;
        }
        Ok(())
    }

    /// The elements of a tensor that do not lie in their order, in that order.
    fn gathered(&self, place: &Place, strides: &[usize]) -> Result<Vec<u8>> {
        let size = place.dtype.bitsize().div_euclid(8);
        let last: usize = place.shape.iter().zip(strides).map(|(side, stride)| (side - 1) * stride).sum();
        let stored = self.source.bytes(place.start, ((last + 1) * size) as u64)?;
        let at = |element: usize| {
            let sides = place.shape.iter().zip(strides).rev();
            sides.fold((element, 0), |(rest, at), (side, stride)| (rest.div_euclid(*side), at + rest % side * stride)).1
        };
        Ok((0..place.elements).flat_map(|element| &stored[at(element) * size..][..size]).copied().collect())
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.tensors.get(name).map(|stored| &stored.place).ok_or_else(|| self.failed(name, "missing"))
    }

    fn failed(&self, name: &str, what: &str) -> Error {
        Error::data(format!("{}: tensor `{name}`: {what}", self.path().display()))
    }
}

/// What follows the path of a dictionary, which has `dictionary` bytes.
fn key(name: &str, dictionary: usize) -> &str {
    if dictionary == 0 { name } else { name.get(dictionary + 1..).unwrap_or_default() }
}

/// Every tensor of a safetensors file.
fn of_safetensors(source: &Source, texts: &mut HashMap<String, String>) -> Result<Vec<archive::Found>> {
    let incomplete = |problem: String| {
        Error::data(format!("{}: not a complete safetensors file: {problem}", source.path().display()))
            .hint("the file may be truncated: copy or download it again")
    };
    let mut size = [0; 8];
    source.read(0, &mut size)?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER.min(source.length() - 8) {
        return Err(incomplete(format!("a header of {size} bytes in a file of {}", source.length())));
    }
    let header = source.bytes(8, size)?;
    // Reading it checks that shapes, types and offsets agree and that nothing overlaps.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| incomplete(error.to_string()))?;
    let start = 8 + size;
    if (metadata.data_len() as u64).checked_add(start) != Some(source.length()) {
        let found = source.length() - start;
        return Err(incomplete(format!("{} bytes of tensors, {found} in the file", metadata.data_len())));
    }
    texts.extend(metadata.metadata().clone().unwrap_or_default());
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (shape, elements) = (info.shape.clone(), info.shape.iter().product());
        let place =
            Place { start: start + info.data_offsets.0 as u64, dtype: info.dtype, shape, elements, strides: None };
        archive::Found { dictionary: String::new(), key: name, place }
    });
    Ok(tensors.collect())
}

/// What begins like none of the formats that are read.
fn no_weights(path: &Path, head: &[u8]) -> Error {
    let other = match head {
        [b'G', b'G', b'U', b'F', ..] => "a GGUF file (llama.cpp's and ComfyUI's quantised weights)",
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "a NumPy array",
        _ if head.len() < 9 => "too short for weights",
        _ => "neither a safetensors nor a PyTorch file",
    };
    Error::data(format!("{}: {other}", path.display()))
        .hint("weights are .safetensors, or what torch.save writes; a file that was one may be damaged: copy it again")
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

    #[test]
    fn a_transposed_view_behind_an_offset_is_read_in_its_own_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("storage");
        fs_err::write(&path, (0..7).flat_map(|number| (number as f32).to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        let place = |bytes: u64| Place::within(0..bytes, 28, Dtype::F32, 1, vec![3, 2], vec![1, 3]);
        let tensors = BTreeMap::from([("x".to_owned(), Stored { place: place(28).unwrap(), dictionary: 0 })]);
        let file = TensorFile {
            source: Source::open(&path).unwrap(),
            tensors,
            shapes: BTreeMap::new(),
            metadata: HashMap::new(),
            is_torch_script: false,
        };
        assert_eq!(file.read("x").unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert!(place(24).is_err());
        for (offset, shape, strides) in [
            (usize::MAX, vec![1], vec![1]),
            (0, vec![1 << 62, 4], vec![0, 0]),
            (0, vec![8], vec![0]),
            (0, vec![2], vec![usize::MAX]),
            (1, vec![7], vec![1]),
        ] {
            assert!(
                Place::within(0..28, 28, Dtype::F32, offset, shape.clone(), strides).is_err(),
                "{offset} {shape:?}"
            );
        }
        assert!(Place::within(0..0, 28, Dtype::F32, 0, vec![0, 1 << 40], vec![1, 1]).is_ok());
    }
}
