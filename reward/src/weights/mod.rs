//! Strict weights: a [`Checkpoint`] knows its architecture and gives every parameter by its OpenAI key, or says in one error
//! which tensors are missing, unexpected or of another shape. Nothing is ever initialised and then overwritten.

pub mod file;
pub mod layout;
mod pickle;
pub mod random;
pub mod save;
pub mod sha256;
mod stated;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    Error, Result,
    clip::{
        config::{Activation, ClipConfig},
        description::{Description, HUGGING_FACE_WEIGHTS, OPEN_CLIP_WEIGHTS},
    },
};
use file::TensorFile;
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

/// Tokens of OpenAI's CLIP vocabulary.
const VOCABULARY: usize = 49408;

enum Source {
    Random { seed: u64 },
    Files { files: Vec<TensorFile>, place: BTreeMap<String, (usize, String)>, layout: Layout },
}

/// What the user may say beside the path.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions<'a> {
    /// Overrides the activation that the config or the shapes give.
    pub activation: Option<Activation>,
    /// Seed of `random:` weights.
    pub seed: u64,
    /// Architecture to use for a state dict instead of inferring it from shapes.
    pub architecture: Option<&'a ClipConfig>,
}

/// The base of the original.
pub const DEFAULT_MODEL: &str = "openai/clip-vit-large-patch14";

impl Checkpoint {
    /// Opens what `--checkout-path` and `--model` name: the checkpoint if there is one, with the architecture of the model
    /// if that is named too; else the model; else [`DEFAULT_MODEL`].
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_base(checkout_path: Option<&str>, model: Option<&str>, options: OpenOptions) -> Result<Self> {
        let Some(path) = checkout_path else { return Self::open(model.unwrap_or(DEFAULT_MODEL), options) };
        let architecture = model.map(|model| Self::architecture(model, options)).transpose()?;
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

    /// Opens `random:NAME`, a Hugging Face CLIP folder (ours included), a state dict in OpenAI or open_clip layout, or a
    /// hub id (downloaded once, then used offline).
    ///
    /// # Errors
    /// Nothing there, an architecture that cannot be told, tensors missing, unexpected or mis-shaped.
    pub fn open(model: &str, options: OpenOptions) -> Result<Self> {
        let mut checkpoint = Self::locate(model, options)?;
        checkpoint.decide_activation(model, options.activation);
        checkpoint.check(model)?;
        Ok(checkpoint)
    }

    fn locate(model: &str, options: OpenOptions) -> Result<Self> {
        if let Some(name) = model.strip_prefix("random:") {
            let config = ClipConfig::preset(name).ok_or_else(|| {
                Error::usage(format!("`{model}`: no such random model"))
                    .hint("known: random:tiny, random:toy, random:vit-b-32, random:vit-l-14, random:vit-h-14")
            })?;
            let source = Source::Random { seed: options.seed };
            return Ok(Self { config, warnings: Vec::new(), source, stated: Stated::Known, folder: None });
        }
        let path = Path::new(model);
        if path.is_dir() {
            return Self::folder(path);
        }
        if path.is_file() {
            return Self::state_dict(path, options.architecture);
        }
        let is_hub_id = model.split('/').count() == 2 && !model.starts_with(['.', '/', '~']);
        let looks_like_file = [".pt", ".pth", ".safetensors", ".ckpt"].iter().any(|end| model.ends_with(end));
        if !is_hub_id || looks_like_file {
            return Err(Error::data(format!("{model}: no such file or folder")).hint(
                "a model is a Hugging Face CLIP folder, a .pth/.pt/.safetensors state dict, a hub id, or random:tiny",
            ));
        }
        Self::folder(&download(model)?)
    }

    fn folder(folder: &Path) -> Result<Self> {
        let weights = weight_files(folder);
        let name = weights.as_ref().ok().and_then(|files| files.first()?.file_name()?.to_str());
        // What is wrong with the config comes first, which of the two is missing.
        let described = Description::of_folder(folder, name)?;
        let files = weights?.iter().map(|path| TensorFile::open(path)).collect::<Result<_>>()?;
        Ok(Self::described(described, Source::of(files)))
    }

    fn described(description: Description, source: Source) -> Self {
        let Description { config, place, folder, warnings } = description;
        Self { config, warnings, source, stated: Stated::By(place), folder }
    }

    fn state_dict(path: &Path, architecture: Option<&ClipConfig>) -> Result<Self> {
        let source = Source::of(vec![TensorFile::open(path)?]);
        if let Some(config) = architecture {
            let (config, stated) = (config.clone(), Stated::By("--model".to_owned()));
            return Ok(Self { config, warnings: Vec::new(), source, stated, folder: None });
        }
        let Source::Files { files, place, layout } = &source else { unreachable!("made from a file") };
        if let Some(described) = Description::beside(path, *layout == Layout::HuggingFace)? {
            return Ok(Self::described(described, source));
        }
        if let Some(note) = files[0].metadata(save::NOTE) {
            return Ok(Self::described(Description::noted(path, note)?, source));
        }
        if *layout == Layout::HuggingFace {
            return Err(Error::data(format!("{}: Hugging Face keys without their config.json", path.display()))
                .hint("give the folder that holds it, not the file"));
        }
        let unprefix = |name: &str| match layout {
            Layout::OpenClipCustomText => name.strip_prefix("text.").unwrap_or(name).to_owned(),
            _ => name.to_owned(),
        };
        let shapes = place.iter().map(|(name, (file, stored))| (unprefix(name), files[*file].shapes()[stored].clone()));
        let config = ClipConfig::from_shapes(&shapes.collect()).map_err(|error| {
            let hint = error.hint_text().unwrap_or_default().to_owned();
            Error::data(format!("{}: {error}", path.display())).hint(hint)
        })?;
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
        misfits(&described, &problems).map_err(|error| {
            error.hint(
                "is this a checkpoint of another architecture? --model gives the architecture where shapes cannot",
            )
        })
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
            let (file, stored) = place.get(name).ok_or_else(|| Error::data(format!("tensor `{name}` is missing")))?;
            files[*file].read(stored)
        };
        match layout.stored(name) {
            Stored::Same(name) => read(&name),
            Stored::Transposed(name) => Ok(transposed(&read(&name)?, [shape[1], shape[0]])),
            Stored::Split(names) => Ok(names.iter().map(read).collect::<Result<Vec<_>>>()?.concat()),
        }
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

impl Source {
    /// Index by name without the wrappers that trainers add (`module.`, `model.`).
    fn of(files: Vec<TensorFile>) -> Self {
        let mut place = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for stored in file.shapes().keys() {
                let mut name = stored.as_str();
                while let Some(rest) =
                    ["module.", "model.", "_orig_mod."].iter().find_map(|prefix| name.strip_prefix(prefix))
                {
                    name = rest;
                }
                place.insert(name.to_owned(), (index, stored.clone()));
            }
        }
        let layout = Layout::detect(place.keys().map(String::as_str));
        Self::Files { files, place, layout }
    }
}

/// `[rows, columns]` row-major to `[columns, rows]`.
pub(crate) fn transposed(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// The weights in a folder; where open_clip's alone are described, those that it looks for first.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (transformers, open_clip) = (&HUGGING_FACE_WEIGHTS[..], &OPEN_CLIP_WEIGHTS[..]);
    let index = folder.join("model.safetensors.index.json");
    let order = match folder.join("config.json").is_file() {
        true if index.is_file() => [transformers, &[]],
        true => [transformers, open_clip],
        false => [open_clip, transformers],
    };
    if let Some(path) = order.concat().iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(vec![path]);
    }
    if !index.is_file() {
        return Err(Error::data(format!("{}: no model.safetensors in this folder", folder.display())).hint(
            "looked for model.safetensors, model.safetensors.index.json, pytorch_model.bin, open_clip_pytorch_model.bin",
        ));
    }
    let parsed: Value = crate::json::read(&index)?;
    let shards = parsed["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str());
    let shards: std::collections::BTreeSet<_> = shards.map(|file| folder.join(file)).collect();
    Ok(shards.into_iter().collect())
}

/// Fetches config and weights of a hub repository into the Hugging Face cache.
fn download(id: &str) -> Result<PathBuf> {
    let failed = |error: hf_hub::api::sync::ApiError| {
        Error::data(format!("{id}: not a local file or folder, and the hub did not give it"))
            .caused_by(error)
            .hint("offline? download the folder elsewhere and pass its path; nothing needs a hub id")
    };
    let cached = hf_hub::Cache::from_env().model(id.to_owned());
    let config = match cached.get("config.json").filter(|_| cached.get("model.safetensors").is_some()) {
        Some(config) => config,
        None => {
            let api = hf_hub::api::sync::ApiBuilder::from_env().with_progress(false).build().map_err(failed)?;
            let repository = api.model(id.to_owned());
            repository.get("model.safetensors").map_err(failed)?;
            // Not every repository has them.
            for name in ["preprocessor_config.json", "processor_config.json"] {
                drop(repository.get(name));
            }
            repository.get("config.json").map_err(failed)?
        }
    };
    config.parent().map(Path::to_owned).ok_or_else(|| Error::data(format!("{id}: the hub cache has no folder for it")))
}
