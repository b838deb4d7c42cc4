//! Writing a CLIP: a Hugging Face folder, or a state dict in OpenAI's (and open_clip's) layout.

use std::{borrow::Cow, cell::RefCell, os::unix::fs::PermissionsExt, path::Path};

use safetensors::{Dtype, View};

use super::{
    layout::{Layout, Stored},
    transposed,
};
use crate::{
    Error, Result,
    clip::{config::ClipConfig, description::Description, tokenizer::Tokenizer},
    output::{folder_of, followed},
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

/// Calls `write` with a temporary sibling of `path`, then puts the file on disk and renames it: what was at `path` stays
/// whole until the new file is. The temporary name is this call's own, so that two processes may write one file: the later
/// one stays. A link is followed; a device or a pipe is written to as it is.
///
/// Whoever writes it (safetensors makes files that only their owner may read), the file has the permissions of the one that
/// it replaces, or of any new file.
///
/// # Errors
/// What `write` says, or the disk is full or not writable: nothing temporary is left then. What
/// [`followed`] refuses.
pub fn replace_file(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = followed(path)?;
    let earlier = fs_err::metadata(&place).ok();
    if earlier.as_ref().is_some_and(|found| !found.is_file() && !found.is_dir()) {
        return write(&place);
    }
    let cannot = |error: std::io::Error| Error::data(format!("{} cannot be written: {error}", path.display()));
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    // Removed when it is dropped, unless it was renamed.
    let partial = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(".partial")
        .permissions(PermissionsExt::from_mode(0o666))
        .tempfile_in(folder_of(&place))
        .map_err(|error| cannot(error.kind().into()))?
        .into_temp_path();
    let like = match earlier {
        Some(earlier) => earlier,
        None => fs_err::metadata(&partial)?,
    };
    let shown = partial.display().to_string();
    write(&partial)
        .and_then(|()| Ok(fs_err::set_permissions(&partial, like.permissions())?))
        .and_then(|()| Ok(fs_err::File::open(&*partial)?.sync_all()?))
        .map_err(|error| error.renamed(&shown, &path.display().to_string()))?;
    partial.persist(&place).map_err(|failed| cannot(failed.error))
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

/// Writes pretty JSON through [`replace_file`].
///
/// # Errors
/// As [`replace_file`].
pub fn json_file(path: &Path, value: &serde_json::Value) -> Result<()> {
    replace_file(path, |partial| Ok(fs_err::write(partial, format!("{value:#}\n"))?))
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

    fn contents(folder: &Path) -> Vec<String> {
        let names = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_cannot_be_written_stays_whole_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.csv");
        fs_err::write(&path, "earlier").unwrap();
        let failed = replace_file(&path, |partial| {
            fs_err::write(partial, "half")?;
            Err(Error::data(format!("failed to write to file `{}`: disk full", partial.display())))
        });
        let wanted = format!("failed to write to file `{}`: disk full", path.display());
        assert_eq!(failed.unwrap_err().to_string(), wanted);
        assert_eq!(
            (fs_err::read(&path).unwrap(), contents(folder.path())),
            (b"earlier".to_vec(), vec!["s.csv".into()])
        );
        let full = replace_file(Path::new("/dev/full"), |partial| Ok(fs_err::write(partial, "x")?));
        assert!(full.unwrap_err().to_string().contains("`/dev/full`"), "the device is named");
        let none = replace_file(Path::new("/proc/none"), |_| Ok(())).unwrap_err().to_string();
        assert!(none.starts_with("/proc/none cannot be written: "), "{none}");
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        fs_err::write(&file, "earlier").unwrap();
        fs_err::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        replace_file(&link, |partial| Ok(fs_err::write(partial, "new")?)).unwrap();
        assert_eq!(fs_err::read(&file).unwrap(), b"new");
        assert!(fs_err::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs_err::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        fs_err::remove_file(&file).unwrap();
        let dangling = replace_file(&link, |_| Ok(())).unwrap_err().to_string();
        assert!(dangling.ends_with("link is a link to file, which does not exist"), "{dangling}");
    }

    /// Both ran into one temporary name: one wrote into the other's file, or found it gone.
    #[test]
    fn writers_of_one_file_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::thread::scope(|scope| {
            for writer in 0..8_u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        replace_file(path, |partial| Ok(fs_err::write(partial, [writer; 4096])?)).unwrap();
                    }
                });
            }
        });
        let found = fs_err::read(&path).unwrap();
        assert!(found.len() == 4096 && found.iter().all(|byte| *byte == found[0]));
        assert_eq!(contents(folder.path()), ["x"]);
    }
}
