//! Strict weights: a [`Checkpoint`] knows its architecture and gives every parameter by its OpenAI key. Or it says in one error
//! which tensors are missing, unexpected or of another shape. Nothing is ever initialised and then overwritten.

mod archive;
pub mod file;
mod floats;
mod folder;
pub mod layout;
mod named;
mod pickle;
mod place;
pub mod random;
pub mod save;
pub mod sha256;
pub mod shards;
mod source;
mod stated;
mod tensors;
#[cfg(test)]
mod tests;
pub mod wrappers;
mod zip;

use std::path::{Path, PathBuf};

use crate::{
    Error, Result,
    clip::{
        config::{Activation, ClipConfig},
        description::Description,
    },
    foreign, hub,
};
use file::{Places, TensorFile};
use folder::{download, weight_files};
use layout::{Layout, Stored, is_buffer};
use stated::Stated;

/// A CLIP on disk (or random): what it is, and its parameters, read on demand.
pub struct Checkpoint {
    /// Architecture and preprocessing.
    pub config: ClipConfig,
    /// What a user should know of how it was read, each a line; [`Self::announce`] says them.
    pub warnings: Vec<String>,
    source: Source,
    /// Who states the activation, if its weights do not go without it.
    stated: Stated,
    /// The folder whose tokenizer files are its own.
    folder: Option<PathBuf>,
}

/// A key of every CLIP in each layout, by which it is found under whatever wraps it.
const ANCHORS: [&str; 2] = ["visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"];

/// Tokens of OpenAI's CLIP vocabulary.
const VOCABULARY: usize = 49408;

enum Source {
    Random { seed: u64 },
    Files { files: Vec<TensorFile>, place: Places, layout: Layout },
}

/// What the user may say beside the path.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions<'a> {
    /// Overrides the activation that the config or the shapes give.
    pub activation: Option<Activation>,
    /// Seed of `random:` weights.
    pub seed: u64,
    /// Which model of a file that holds several: a path of keys, as `PATH#NAME` says it.
    pub weights: Option<&'a str>,
    /// Architecture to use for a state dict instead of inferring it from shapes.
    pub architecture: Option<&'a ClipConfig>,
}

/// The base of the original.
pub const DEFAULT_MODEL: &str = "openai/clip-vit-large-patch14";

impl Checkpoint {
    /// Opens what `--checkout-path` and `--model` name: the checkpoint if there is one, else the model, else [`DEFAULT_MODEL`].
    /// The checkpoint takes the architecture of the model if that is named too.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_base(checkout_path: Option<&str>, model: Option<&str>, options: OpenOptions) -> Result<Self> {
        let Some(path) = checkout_path else { return Self::open(model.unwrap_or(DEFAULT_MODEL), options) };
        let base = OpenOptions { weights: None, ..options };
        let architecture = model.map(|model| Self::architecture(model, base)).transpose()?;
        Self::open(path, OpenOptions { architecture: architecture.as_ref(), ..options })
    }

    /// The architecture of a model; of a folder, only `config.json` is read.
    fn architecture(model: &str, options: OpenOptions) -> Result<ClipConfig> {
        let folder = Path::new(model);
        if folder.is_dir() {
            let weights = weight_files(folder).ok();
            let name = weights.as_ref().and_then(|files| files.first()?.file_name()?.to_str());
            Ok(Description::of_folder(folder, name)?.config)
        } else {
            Ok(Self::locate(model, options)?.config)
        }
    }

    /// Opens `random:NAME`, a Hugging Face CLIP folder (ours included), a state dict in OpenAI or open_clip layout, or a hub id.
    /// A hub id is downloaded once, then used offline. `PATH#NAME` chooses one of several models in a file by the dictionary or
    /// the prefix of its keys.
    ///
    /// # Errors
    /// Nothing there, an architecture that cannot be told, tensors missing, unexpected or mis-shaped, several models and no
    /// choice.
    pub fn open(model: &str, options: OpenOptions) -> Result<Self> {
        let mut checkpoint = Self::locate(model, options)?;
        checkpoint.decide_activation(model, options.activation);
        checkpoint.check(model).map_err(|error| checkpoint.source.named(model, error))?;
        Ok(checkpoint)
    }

    fn locate(model: &str, options: OpenOptions) -> Result<Self> {
        if let Some(name) = model.strip_prefix("random:") {
            refuse_choice(model, options.weights)?;
            let config = ClipConfig::preset(name).ok_or_else(|| {
                Error::usage(format!("`{model}`: no such random model"))
                    .hint("known: random:tiny, random:toy, random:vit-b-32, random:vit-l-14, random:vit-h-14")
            })?;
            let source = Source::Random { seed: options.seed };
            return Ok(Self { config, warnings: Vec::new(), source, stated: Stated::Known, folder: None });
        }
        let (path, choice) = wrappers::split(model);
        let (path, choice) = (Path::new(path), options.weights.or(choice));
        if path.is_dir() {
            return Self::folder(path, choice);
        }
        if path.is_file() {
            return Self::state_dict(path, choice, options.architecture);
        }
        const WANTED: &str =
            "a model is a Hugging Face CLIP folder, a .pth/.pt/.safetensors state dict, a hub id, or random:tiny";
        if let Some(error) = foreign::url(model, "a model") {
            return Err(error);
        }
        if !hub::is_id(model) {
            return Err(Error::data(format!("{model}: no such file or folder")).hint(WANTED));
        }
        Self::folder(&download(model)?, choice)
    }

    fn folder(folder: &Path, choice: Option<&str>) -> Result<Self> {
        named::check_folder(folder)?;
        let weights = weight_files(folder);
        let name = weights.as_ref().ok().and_then(|files| files.first()?.file_name()?.to_str());
        // What is wrong with the config comes first, which of the two is missing.
        let described = Description::of_folder(folder, name)?;
        let files = weights?.iter().map(|path| open(path)).collect::<Result<_>>()?;
        Ok(Self::described(described, Source::of(files, choice)?))
    }

    fn described(description: Description, source: Source) -> Self {
        let Description { config, place, folder, warnings } = description;
        Self { config, warnings, source, stated: Stated::By(place), folder }
    }

    fn state_dict(path: &Path, choice: Option<&str>, architecture: Option<&ClipConfig>) -> Result<Self> {
        let source = Source::of(vec![open(path)?], choice)?;
        if let Some(config) = architecture {
            let (config, stated) = (config.clone(), Stated::By("--model".to_owned()));
            return Ok(Self { config, warnings: Vec::new(), source, stated, folder: None });
        }
        let Source::Files { files, layout, .. } = &source else { unreachable!("made from a file") };
        if let Some(described) = Description::beside(path, *layout == Layout::HuggingFace)? {
            return Ok(Self::described(described, source));
        }
        if let Some(note) = files[0].metadata(save::NOTE) {
            return Ok(Self::described(Description::noted(path, note)?, source));
        }
        let config = source.config(path)?;
        // Only OpenAI publishes such archives.
        let stated = if files[0].is_torch_script() { Stated::Known } else { Stated::Not };
        Ok(Self { config, warnings: Vec::new(), source, stated, folder: None })
    }

    /// Compares what is there with what the architecture wants.
    fn check(&self, model: &str) -> Result<()> {
        let Source::Files { files, place, layout } = &self.source else { return Ok(()) };
        let mut problems = Vec::new();
        let mut known = std::collections::BTreeSet::new();
        for (name, shape) in self.config.parameters() {
            let stored = layout.stored(&name);
            let wanted: Vec<usize> = match &stored {
                Stored::Same(_) => shape,
                Stored::Transposed(_) => shape.into_iter().rev().collect(),
                Stored::Split(_) => [&[shape[0].div_euclid(3)], &shape[1..]].concat(),
            };
            for name in stored.names() {
                known.insert(name.clone());
                match place.get(name).map(|(file, stored)| &files[*file].shapes()[stored]) {
                    None => problems.push(format!("`{name}` is missing")),
                    // `logit_scale` is [] or [1], depending on the library.
                    Some(found) if *found != wanted && !(wanted.is_empty() && found == &[1]) => {
                        problems.push(format!("`{name}` has shape {found:?}, want {wanted:?}"));
                    }
                    Some(_) => {}
                }
            }
        }
        let unexpected = place.keys().filter(|name| !known.contains(*name) && !is_buffer(name));
        problems.extend(unexpected.map(|name| format!("`{name}` is unexpected")));
        let described = match &self.stated {
            Stated::By(place) => format!("{model}, as {place} describes it"),
            Stated::Known | Stated::Not => model.to_owned(),
        };
        let other_shapes = problems.iter().any(|problem| problem.contains(" has shape "));
        let missing = problems.iter().any(|problem| problem.ends_with(" is missing"));
        misfits(&described, &problems).map_err(|error| {
            error.hint(match (other_shapes, missing) {
                (true, _) => {
                    "is this a checkpoint of another architecture? --model gives the architecture where shapes cannot"
                }
                (false, true) => "was only a part of the model saved? want the state dict of a whole CLIP",
                (false, false) => "want the state dict of a CLIP and nothing else among its tensors",
            })
        })
    }

    /// How errors name it: by its file, or the folder of its files.
    pub fn label(&self) -> String {
        match &self.files()[..] {
            [] => "random weights".to_owned(),
            [file] => file.display().to_string(),
            [file, ..] => file.parent().unwrap_or(file).display().to_string(),
        }
    }

    /// The files its parameters are read from; none of random weights.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.source {
            Source::Random { .. } => Vec::new(),
            Source::Files { files, .. } => files.iter().map(|file| file.path().to_owned()).collect(),
        }
    }

    /// Checks that OpenAI's tokenizer fits the model.
    ///
    /// # Errors
    /// Another vocabulary size, or other tokenizer files beside it.
    pub fn check_vocabulary(&self) -> Result<()> {
        if self.config.vocab_size == VOCABULARY {
            return self.folder.as_deref().map_or(Ok(()), Description::check_tokenizer);
        }
        Err(Error::data(format!(
            "the model has {} tokens, OpenAI's CLIP vocabulary {VOCABULARY}",
            self.config.vocab_size
        ))
        .hint("models with another tokenizer are not supported"))
    }

    /// The values of the parameter with OpenAI key `name`, fp32, row-major in the OpenAI shape.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (files, place, layout) = match &self.source {
            Source::Random { seed } => return Ok(random::parameter(&self.config, name, shape, *seed)),
            Source::Files { files, place, layout } => (files, place, layout),
        };
        let read = |name: &String| {
            let (file, stored) = place.get(name).ok_or_else(|| missing(name))?;
            files[*file].read(stored)
        };
        match layout.stored(name) {
            Stored::Same(name) => read(&name),
            Stored::Transposed(name) => Ok(transposed(&read(&name)?, [shape[1], shape[0]])),
            Stored::Split(names) => Ok(names.iter().map(read).collect::<Result<Vec<_>>>()?.concat()),
        }
    }

    /// [`Self::read`] as a tensor on the CPU, into which the file is read piece by piece: nothing of its size lies beside it.
    ///
    /// # Errors
    /// As [`Self::read`].
    #[cfg(feature = "torch")]
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<tch::Tensor> {
        let sizes: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        let Source::Files { files, place, layout } = &self.source else {
            return Ok(tch::Tensor::from_slice(&self.read(name, shape)?).reshape(sizes));
        };
        let names = match layout.stored(name) {
            Stored::Transposed(_) => return Ok(tch::Tensor::from_slice(&self.read(name, shape)?).reshape(sizes)),
            stored => stored.names().to_vec(),
        };
        let tensor = tch::Tensor::empty(&sizes, (tch::Kind::Float, tch::Device::Cpu));
        let (flat, mut start) = (tensor.view(-1), 0);
        for name in names {
            let (file, stored) = place.get(&name).ok_or_else(|| missing(&name))?;
            files[*file].values(stored, |piece| {
                let count = piece.len() as i64;
                flat.narrow(0, start, count).copy_(&tch::Tensor::from_slice(piece));
                start += count;
                Ok(())
            })?;
        }
        Ok(tensor)
    }

    /// Every parameter with its shape and values, in the order of [`ClipConfig::parameters`], one at a time.
    pub fn parameters(&self) -> impl Iterator<Item = Result<(String, Vec<usize>, Vec<f32>)>> + '_ {
        self.config.parameters().into_iter().map(|(name, shape)| {
            let values = self.read(&name, &shape)?;
            Ok((name, shape, values))
        })
    }
}

/// One error for all tensors of `model` that do not fit, if there are any.
fn misfits(model: &str, problems: &[String]) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let shown = problems.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
    let more = problems.len().saturating_sub(5);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(Error::data(format!("{model}: {} tensor(s) do not fit this architecture: {shown}{more}", problems.len())))
}

fn missing(name: &str) -> Error {
    Error::data(format!("tensor `{name}` is missing"))
}

/// Up to five names, as an error lists them.
pub(crate) fn listed(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<String> = names.iter().take(5).map(|name| format!("`{}`", name.as_ref())).collect();
    let more = if names.len() > shown.len() { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// A choice among models of a file is not for what has no file.
fn refuse_choice(model: &str, choice: Option<&str>) -> Result<()> {
    let refused = |name: &str| Err(Error::usage(format!("--weights {name}: {model} has no weights to choose from")));
    choice.map_or(Ok(()), refused)
}

/// Opens a file of weights with all that is in it; one process's part of a checkpoint is named as such.
fn open(path: &Path) -> Result<TensorFile> {
    TensorFile::open_all(path).map_err(|error| named::part(path).unwrap_or(error))
}

impl Source {
    fn of(files: Vec<TensorFile>, choice: Option<&str>) -> Result<Self> {
        let place = wrappers::find(&files, &ANCHORS, choice)?;
        let layout = Layout::detect(place.keys().map(String::as_str));
        Ok(Self::Files { files, place, layout })
    }

    /// The architecture of the state dict in file `path`, told from its shapes.
    fn config(&self, path: &Path) -> Result<ClipConfig> {
        let Self::Files { files, place, layout } = self else { unreachable!("made from a file") };
        let label = path.display();
        if *layout == Layout::HuggingFace {
            let error = Error::data(format!("{label}: Hugging Face keys without their config.json"))
                .hint("give the folder that holds it, not the file");
            return Err(self.named(&label.to_string(), error));
        }
        let unprefix = |name: &str| match layout {
            Layout::OpenClipCustomText => name.strip_prefix("text.").unwrap_or(name).to_owned(),
            _ => name.to_owned(),
        };
        let shapes = place.iter().map(|(name, (file, stored))| (unprefix(name), files[*file].shapes()[stored].clone()));
        ClipConfig::from_shapes(&shapes.collect()).map_err(|error| {
            let hint = error.hint_text().unwrap_or_default().to_owned();
            self.named(&label.to_string(), Error::data(format!("{label}: {error}")).hint(hint))
        })
    }

    /// What these weights are, if they are known for another model; else `error`.
    fn named(&self, label: &str, error: Error) -> Error {
        let Self::Files { files, .. } = self else { return error };
        let keys = files.iter().flat_map(|file| file.shapes().keys().map(String::as_str));
        let part = || files.iter().find_map(|file| named::part(file.path()));
        named::other(label, keys).or_else(part).unwrap_or(error)
    }
}

/// `[rows, columns]` row-major to `[columns, rows]`.
pub(crate) fn transposed(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}
