//! What `--model` names, opened: configs, weights, tokenizer and scheduler settings of one Stable Diffusion.

use std::path::{Path, PathBuf};

use reward::{
    event::Observer,
    weights::{file::TensorFile, wrappers},
};
use serde_json::Value;

use crate::{
    Error, ErrorKind, Result,
    config::{PRESETS, TextConfig, UnetConfig, VaeConfig},
    folder::{self, Component},
    hub,
    lora::Layers,
    remark::Remark,
    schedule::{PredictionType, Sampler, SamplerName, SchedulerConfig},
    single_file::{Family, SingleFile},
    text::TextEncoder,
    tokenizer::{LENGTH, Tokenizer},
    unet::Unet,
    weights::Weights,
};

/// Ids of a prompt of `random:sd-toy`: the demo's have ten at most. Padded to 77, most of what the UNet attends to would be
/// padding.
const TOY_LENGTH: usize = 10;

/// What the user may say beside the name.
#[derive(Debug, Clone, Copy, Default)]
pub struct SourceOptions {
    /// Seed of `random:` weights.
    pub seed: u64,
    /// What the UNet predicts, over what the scheduler's config says; a single file does not say.
    pub prediction_type: Option<PredictionType>,
}

/// An opened Stable Diffusion model. Weights are read when they are asked for.
pub struct Source {
    model: String,
    kind: Kind,
    options: SourceOptions,
}

enum Kind {
    Random { preset: String },
    Folder(PathBuf),
    SingleFile(Box<SingleFile>),
}

impl Source {
    /// Opens a diffusers folder, a single LDM file (`.safetensors`, `.ckpt`), a hub id (downloaded once, then used offline) or
    /// `random:NAME` of one of [`PRESETS`].
    ///
    /// # Errors
    /// Nothing there, another architecture (named), a file that is missing or truncated.
    pub fn open(model: &str, options: SourceOptions) -> Result<Self> {
        Ok(Self { model: model.to_owned(), kind: Kind::of(model)?, options })
    }

    /// The name it was opened by.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether it is `random:NAME`.
    pub fn is_random(&self) -> bool {
        matches!(self.kind, Kind::Random { .. })
    }

    /// Tells what the user should know of how the files are read: what they do not say, and what of them is not followed.
    ///
    /// # Errors
    /// As [`Source::unet_config`] and [`Source::scheduler`].
    pub fn tell(&self, observer: &dyn Observer) -> Result<()> {
        self.remarks()?.iter().for_each(|remark| remark.tell(observer));
        Ok(())
    }

    /// What [`Source::tell`] tells.
    ///
    /// # Errors
    /// As [`Source::tell`].
    pub fn remarks(&self) -> Result<Vec<Remark>> {
        let asked = self.options.prediction_type;
        match &self.kind {
            Kind::Random { .. } => Ok(Vec::new()),
            Kind::SingleFile(single) => single.remarks(asked),
            Kind::Folder(folder) => {
                let path = folder::config_path(folder, Component::Unet);
                let (_, remarks) =
                    self.named(Component::Unet, UnetConfig::read(&folder::config(folder, Component::Unet)?))?;
                let warning = |text: String| Remark::Warning(format!("{}: {text}", path.display()));
                let mut remarks: Vec<Remark> = remarks.into_iter().map(warning).collect();
                let path = folder::scheduler_path(folder);
                let config = self.scheduler_of(folder)?;
                let says = config.prediction_type;
                let (_, changed) = config.in_pipeline();
                if !changed.is_empty() {
                    remarks.push(Remark::Warning(format!(
                        "{}: {} (as the pipeline of diffusers does for Stable Diffusion 1.x and 2.x)",
                        path.display(),
                        changed.join(", ")
                    )));
                }
                if let Some(asked) = asked.filter(|asked| *asked != says) {
                    let (asked, says) = (asked.as_str(), says.as_str());
                    let text = format!("prediction type: {asked}, as asked ({} says {says})", path.display());
                    remarks.push(Remark::Note(text));
                }
                Ok(remarks)
            }
        }
    }

    /// The UNet's architecture and weights.
    ///
    /// # Errors
    /// A file that is missing, truncated, or a config value that is not supported.
    pub fn unet(&self) -> Result<(UnetConfig, Weights)> {
        Ok((self.unet_config()?, self.weights(Component::Unet)?))
    }

    /// The VAE's architecture and weights.
    ///
    /// # Errors
    /// As [`Source::unet`].
    pub fn vae(&self) -> Result<(VaeConfig, Weights)> {
        let config = match &self.kind {
            Kind::Random { preset } => VaeConfig::preset(preset).ok_or_else(|| no_preset(&self.model))?,
            kind => self.named(Component::Vae, VaeConfig::from_json(&kind.config(Component::Vae)?))?,
        };
        Ok((config, self.weights(Component::Vae)?))
    }

    /// The text encoder's architecture and weights.
    ///
    /// # Errors
    /// As [`Source::unet`].
    pub fn text_encoder(&self) -> Result<(TextConfig, Weights)> {
        Ok((self.text_config()?, self.weights(Component::TextEncoder)?))
    }

    /// The UNet's architecture alone.
    ///
    /// # Errors
    /// A config that is missing, or a value that is not supported.
    pub fn unet_config(&self) -> Result<UnetConfig> {
        match &self.kind {
            Kind::Random { preset } => UnetConfig::preset(preset).ok_or_else(|| no_preset(&self.model)),
            kind => self.named(Component::Unet, UnetConfig::from_json(&kind.config(Component::Unet)?)),
        }
    }

    fn text_config(&self) -> Result<TextConfig> {
        match &self.kind {
            Kind::Random { preset } => TextConfig::preset(preset).ok_or_else(|| no_preset(&self.model)),
            kind => self.named(Component::TextEncoder, TextConfig::from_json(&kind.config(Component::TextEncoder)?)),
        }
    }

    /// The tokenizer, with the pad token of this model.
    ///
    /// # Errors
    /// A file that is missing or not what it has to be.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.kind {
            Kind::Folder(folder) => {
                let encoder = self.text_config()?;
                Tokenizer::open(&folder.join("tokenizer"))?
                    .of_encoder(encoder.vocab_size, encoder.max_position_embeddings)
            }
            kind => {
                let pad = match kind.family() {
                    Family::V1 => "<|endoftext|>",
                    Family::V2 => "!",
                };
                let is_toy = matches!(kind, Kind::Random { preset } if preset == "sd-toy");
                Tokenizer::openai(pad, if is_toy { TOY_LENGTH } else { LENGTH })
            }
        }
    }

    /// The settings of the noise schedule, as the pipeline of Stable Diffusion 1.x and 2.x takes them.
    ///
    /// # Errors
    /// A file that is missing, or a value that is not supported.
    pub fn scheduler(&self) -> Result<SchedulerConfig> {
        let asked = self.options.prediction_type;
        match &self.kind {
            Kind::Random { .. } => Ok(SchedulerConfig::stable_diffusion(asked.unwrap_or(PredictionType::Epsilon))),
            Kind::SingleFile(single) => single.scheduler(asked),
            Kind::Folder(folder) => {
                let (config, _) = self.scheduler_of(folder)?.in_pipeline();
                Ok(match asked {
                    Some(asked) => config.with_prediction_type(asked),
                    None => config,
                })
            }
        }
    }

    /// What the file of a folder says.
    fn scheduler_of(&self, folder: &Path) -> Result<SchedulerConfig> {
        let text = folder::scheduler(folder)?;
        SchedulerConfig::from_text(&text).map_err(|error| prefixed(folder::scheduler_path(folder).display(), error))
    }

    /// The sampler `name` on this model's schedule.
    ///
    /// # Errors
    /// As [`Source::scheduler`] and [`Sampler::new`]. Where the file has a value that this sampler does not have, the file is
    /// named, and the samplers that can use it.
    pub fn sampler(&self, name: SamplerName, steps: usize, eta: f64) -> Result<Sampler> {
        let config = self.scheduler()?;
        let error = match Sampler::new(name, &config, steps, eta) {
            Ok(sampler) => return Ok(sampler),
            Err(error) if error.kind() == ErrorKind::Usage => return Err(error),
            Err(error) => error,
        };
        let place = match &self.kind {
            Kind::Folder(folder) => folder::scheduler_path(folder).display().to_string(),
            _ => self.model.clone(),
        };
        let others = SamplerName::ALL.into_iter().filter(|other| Sampler::new(*other, &config, steps, 0.0).is_ok());
        let others: Vec<&str> = others.map(SamplerName::as_str).collect();
        let error = prefixed(place, error);
        let text = format!("{error} with the scheduler {name}");
        Err(match (others.as_slice(), error.hint_text()) {
            ([], Some(hint)) => Error::data(text).hint(hint),
            ([], None) => Error::data(text),
            (others, _) => Error::data(text).hint(format!("other schedulers can use it: {}", others.join(", "))),
        })
    }

    /// The files that the model is read from: weights, configs, tokenizer; none of random weights.
    ///
    /// # Errors
    /// A part is missing.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let folder = match &self.kind {
            Kind::Random { .. } => return Ok(Vec::new()),
            Kind::SingleFile(single) => return Ok(vec![single.path().to_owned()]),
            Kind::Folder(folder) => folder,
        };
        let mut files = vec![folder.join("scheduler/scheduler_config.json")];
        for component in [Component::Unet, Component::Vae, Component::TextEncoder] {
            files.push(folder.join(component.folder()).join("config.json"));
            files.extend(folder::weights(folder, component)?.0.iter().map(|file| file.path().to_owned()));
        }
        let tokenizer = fs_err::read_dir(folder.join("tokenizer"))?.map(|entry| Ok(entry?.path()));
        let mut tokenizer = tokenizer.collect::<Result<Vec<_>>>()?;
        tokenizer.sort();
        files.extend(tokenizer.into_iter().filter(|path| path.is_file()));
        Ok(files)
    }

    /// The layers that an adapter may be for, with the shapes of their weights. Nothing is read.
    ///
    /// # Errors
    /// A config that is missing, or a value that is not supported.
    pub fn layers(&self) -> Result<Layers> {
        let unet = Unet::new(&self.unet_config()?, Weights::shapes())?;
        let text = TextEncoder::new(&self.text_config()?, Weights::shapes())?;
        Ok(Layers::of(&unet.parameters, &text.parameters))
    }

    fn weights(&self, component: Component) -> Result<Weights> {
        let (files, place) = match &self.kind {
            Kind::Random { .. } => {
                return Ok(Weights::random(self.options.seed));
            }
            Kind::Folder(folder) => {
                let (files, place) = folder::weights(folder, component)?;
                let config = folder::config_path(folder, component);
                let weights = files.first().and_then(|file| file.path().file_name()).unwrap_or_default();
                let label = format!("{} and {}", config.display(), weights.display());
                return Ok(Weights::from_files(label, files, place));
            }
            Kind::SingleFile(single) => {
                let place = match component {
                    Component::Unet => single.unet(),
                    Component::Vae => single.vae(),
                    Component::TextEncoder => single.text_encoder(),
                };
                (vec![TensorFile::open_all(single.path())?], place.clone())
            }
        };
        Ok(Weights::from_files(format!("{} ({})", self.model, component.folder()), files, place))
    }

    /// Says which file an error of a config is about.
    fn named<T>(&self, component: Component, config: Result<T>) -> Result<T> {
        config.map_err(|error| match &self.kind {
            Kind::Folder(folder) => prefixed(folder::config_path(folder, component).display(), error),
            _ => prefixed(format!("{} ({})", self.model, component.folder()), error),
        })
    }
}

fn prefixed(place: impl std::fmt::Display, error: Error) -> Error {
    let named = Error::data(format!("{place}: {error}"));
    match error.hint_text() {
        Some(hint) => named.hint(hint),
        None => named,
    }
}

impl Kind {
    fn of(model: &str) -> Result<Self> {
        if let Some(preset) = model.strip_prefix("random:") {
            return match PRESETS.contains(&preset) {
                true => Ok(Self::Random { preset: preset.to_owned() }),
                false => Err(no_preset(model)),
            };
        }
        if let Some(error) = reward::foreign::url(model, "a model") {
            return Err(error.hint("give its hub id (OWNER/NAME), or download it and give the local path"));
        }
        let path = Path::new(model);
        if Path::new(wrappers::split(model).0).is_file() {
            return Ok(Self::SingleFile(Box::new(SingleFile::open(path)?)));
        }
        if let Some(error) = reward::foreign::url(model, "a model") {
            return Err(error);
        }
        let folder = match path.is_dir() {
            true => path.to_owned(),
            false if reward::hub::is_id(model) => hub::download(model)?,
            false => {
                return Err(Error::data(format!("{model}: no such file or folder")).hint(
                    "a model is a diffusers folder, a .safetensors or .ckpt checkpoint, a hub id, or random:sd-tiny",
                ));
            }
        };
        folder::check(&folder)?;
        Ok(Self::Folder(folder))
    }

    /// `config.json` of a model on disk.
    fn config(&self, component: Component) -> Result<Value> {
        match (self, component) {
            (Self::SingleFile(single), Component::Unet) => single.unet_config(),
            (Self::SingleFile(single), Component::Vae) => single.vae_config(),
            (Self::SingleFile(single), Component::TextEncoder) => single.text_config(),
            (Self::Folder(folder), _) => folder::config(folder, component),
            (Self::Random { .. }, _) => Ok(Value::Null),
        }
    }

    /// The family whose conventions a model without a tokenizer has.
    fn family(&self) -> Family {
        match self {
            Self::SingleFile(single) => single.family(),
            Self::Random { preset } if preset == "sd15" => Family::V1,
            _ => Family::V2,
        }
    }
}

fn no_preset(model: &str) -> Error {
    let known: Vec<_> = PRESETS.iter().map(|name| format!("random:{name}")).collect();
    Error::usage(format!("`{model}`: no such random model")).hint(format!("known: {}", known.join(", ")))
}
