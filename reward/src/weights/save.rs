//! Writing a CLIP: a Hugging Face folder, or a state dict in OpenAI's (and open_clip's) layout.

use std::{borrow::Cow, cell::RefCell, path::Path};

use safetensors::{Dtype, View};

use super::{
    layout::{Layout, Stored},
    transposed,
};
use crate::{
    Error, Result,
    clip::{config::ClipConfig, description::Description, tokenizer::Tokenizer},
    files::{json_file, replace_file},
};

/// Gives the values of a parameter by its OpenAI key and shape.
pub type ReadParameter<'a> = dyn Fn(&str, &[usize]) -> Result<Vec<f32>> + 'a;

/// fp32 values that are read when their turn to be written comes, so that a model is never in memory twice.
struct Lazy<'a> {
    shape: Vec<usize>,
    read: ReadValues<'a>,
    failed: &'a RefCell<Option<Error>>,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let values = (self.read)().unwrap_or_else(|error| {
            *self.failed.borrow_mut() = Some(error);
            vec![0.0; self.shape.iter().product()]
        });
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

/// Key in the header of a state dict under which [`Description::note`] lies.
pub(super) const NOTE: &str = "social_reward.clip";

/// Writes a state dict in `layout` as safetensors; without a `config.json` beside it, its header says what the model is.
///
/// # Errors
/// As [`replace_file`], or a parameter that cannot be read.
pub fn state_dict(path: &Path, config: &ClipConfig, layout: Layout, read: &ReadParameter) -> Result<()> {
    let failed = RefCell::new(None);
    let mut tensors: Vec<(String, Lazy)> = Vec::new();
    for (key, shape) in config.parameters() {
        let stored = layout.stored(&key);
        let canonical = shape.clone();
        let whole = move || read(&key, &canonical);
        let failed = &failed;
        match stored {
            Stored::Same(name) => tensors.push((name, Lazy { shape, read: Box::new(whole), failed })),
            Stored::Transposed(name) => {
                let [rows, columns] = [shape[0], shape[1]];
                let read = Box::new(move || Ok(transposed(&whole()?, [rows, columns])));
                tensors.push((name, Lazy { shape: vec![columns, rows], read, failed }));
            }
            Stored::Split(names) => {
                let shape = [&[shape[0].div_euclid(3)], &shape[1..]].concat();
                let count: usize = shape.iter().product();
                for (part, name) in names.into_iter().enumerate() {
                    let whole = whole.clone();
                    let read = Box::new(move || Ok(whole()?[part * count..(part + 1) * count].to_vec()));
                    tensors.push((name, Lazy { shape: shape.clone(), read, failed }));
                }
            }
        }
    }
    // One entry, as several come in any order, and the same model is to give the same bytes.
    let entry = match layout {
        Layout::HuggingFace => FORMAT.map(str::to_owned),
        Layout::OpenAi | Layout::OpenClipCustomText => [NOTE.to_owned(), Description::note(config)],
    };
    write_lazy(path, tensors, entry, &failed)
}

/// What transformers wants in the header.
const FORMAT: [&str; 2] = ["format", "pt"];

/// Reads a tensor's values when they are to be written.
pub type ReadValues<'a> = Box<dyn Fn() -> Result<Vec<f32>> + 'a>;

/// Writes named fp32 tensors with their shapes as safetensors.
///
/// # Errors
/// As [`replace_file`], or a tensor that cannot be read.
pub fn named_tensors(path: &Path, tensors: Vec<(String, Vec<usize>, ReadValues)>) -> Result<()> {
    let failed = RefCell::new(None);
    let lazy = tensors.into_iter().map(|(name, shape, read)| (name, Lazy { shape, read, failed: &failed }));
    write_lazy(path, lazy.collect(), FORMAT.map(str::to_owned), &failed)
}

fn write_lazy(
    path: &Path,
    tensors: Vec<(String, Lazy)>,
    [key, value]: [String; 2],
    failed: &RefCell<Option<Error>>,
) -> Result<()> {
    replace_file(path, |partial| {
        let metadata = Some([(key, value)].into());
        safetensors::serialize_to_file(tensors, metadata, partial)
            .map_err(|error| Error::data(format!("cannot write {}", path.display())).caused_by(error))?;
        failed.take().map_or(Ok(()), Err)
    })
}

/// Writes a folder that `transformers.CLIPModel.from_pretrained` opens: `config.json`, `model.safetensors`,
/// `preprocessor_config.json` and the tokenizer.
///
/// # Errors
/// As [`state_dict`].
pub fn hugging_face_folder(folder: &Path, config: &ClipConfig, read: &ReadParameter) -> Result<()> {
    fs_err::create_dir_all(folder)?;
    state_dict(&folder.join("model.safetensors"), config, Layout::HuggingFace, read)?;
    json_file(&folder.join("config.json"), &config.to_hugging_face())?;
    let preprocessor = config.preprocessing.to_hugging_face(config.image_size);
    json_file(&folder.join("preprocessor_config.json"), &preprocessor)?;
    Tokenizer::openai().write_files(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_as_readable_as_any_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let [plain, tensors] = ["plain", "tensors"].map(|name| folder.path().join(name));
        fs_err::write(&plain, "x").unwrap();
        named_tensors(&tensors, vec![("t".to_owned(), vec![1], Box::new(|| Ok(vec![1.0])))]).unwrap();
        let permissions = |path: &Path| fs_err::metadata(path).unwrap().permissions();
        assert_eq!(permissions(&tensors), permissions(&plain));
    }
}
