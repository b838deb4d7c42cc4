//! A single-file checkpoint (LDM, CompVis and Stability naming) of Stable Diffusion 1.x or 2.x. The keys of its three models are
//! given under diffusers' names, and the configs are told from shapes.

mod configs;
mod keys;
mod other;
mod said;
mod yaml;

pub(crate) use keys::unet as ldm_unet;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use reward::weights::{file::TensorFile, wrappers};
use serde_json::Value;

use crate::{
    Error, Result,
    remark::Remark,
    schedule::{PredictionType, SchedulerConfig},
    weights::Stored,
};

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
/// transformers' text model, in 1.x.
const CLIP_TEXT: &str = "cond_stage_model.transformer.";
/// open_clip's, in 2.x.
const OPEN_CLIP_TEXT: &str = "cond_stage_model.model.";

/// A key of every such checkpoint, by which it is found under whatever wraps it.
const ANCHOR: &str = "model.diffusion_model.input_blocks.0.0.weight";

/// What trainers leave beside the model; a name that ends in a dot stands for all below it. The EMA copy of the UNet is one of them:
/// the plain weights are read.
const IGNORED: [&str; 25] = [
    "model_ema.",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "lvlb_weights",
    "log_one_minus_alphas_cumprod",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "denoiser.sigmas",
    "logvar",
    "scale_factor",
    "first_stage_model.loss.",
    "first_stage_model.model_ema.",
    "cond_stage_model.logit_scale",
    "cond_stage_model.text_projection",
    "cond_stage_model.transformer.text_projection.weight",
    "cond_stage_model.model.logit_scale",
    "cond_stage_model.model.text_projection",
    "cond_stage_model.model.attn_mask",
];

/// Which Stable Diffusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 1.x: OpenAI's text encoder, cross-attention 768 wide.
    V1,
    /// 2.x: open_clip's ViT-H text encoder without its last layer, cross-attention 1024 wide.
    V2,
}

/// A single-file checkpoint, its keys sorted out.
pub struct SingleFile {
    path: PathBuf,
    family: Family,
    unet: Placed,
    vae: Placed,
    text: Placed,
    said: said::Said,
}

/// One model's keys and where they are, with shapes as our model wants them (but for ones).
#[derive(Default)]
struct Placed {
    place: BTreeMap<String, Stored>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Placed {
    fn insert(&mut self, key: String, name: &str, rows: Option<std::ops::Range<usize>>, stored: &[usize]) {
        let mut shape = stored.to_vec();
        if let (Some(first), Some(rows)) = (shape.first_mut(), &rows) {
            *first = rows.len();
        }
        self.shapes.insert(key.clone(), shape);
        self.place.insert(key, Stored { file: 0, name: name.to_owned(), rows });
    }
}

impl SingleFile {
    /// Opens `.safetensors` and `.ckpt`; of a pickle nothing is executed. `PATH#NAME` chooses one of several in a file.
    ///
    /// # Errors
    /// Unreadable, another architecture (named), a model that is not in the file, keys that belong to none of the three.
    pub fn open(path: &Path) -> Result<Self> {
        let (path, choice) = path.to_str().map_or((path, None), |text| {
            let (file, choice) = wrappers::split(text);
            (Path::new(file), choice.map(str::to_owned))
        });
        let file = TensorFile::open_all(path)?;
        let found = wrappers::find(std::slice::from_ref(&file), &[ANCHOR], choice.as_deref());
        if found.is_err() {
            other::refuse(path, file.shapes())?;
        }
        let places = found?;
        let shape = |stored: &String| file.shapes().get(stored).cloned().unwrap_or_default();
        let shapes: &BTreeMap<String, Vec<usize>> =
            &places.iter().map(|(name, (_, stored))| (name.clone(), shape(stored))).collect();
        other::refuse(path, shapes)?;
        let has = |prefix: &str| shapes.keys().any(|key| key.starts_with(prefix));
        let failed = |what: String| Error::data(format!("{}: {what}", path.display()));
        let layers = configs::unet_layers(shapes);
        let blocks = configs::vae_blocks(shapes);
        let text_layers = configs::open_clip_layers(shapes);
        let width = shapes.get("cond_stage_model.model.ln_final.weight").and_then(|shape| shape.first().copied());
        let [mut unet, mut vae, mut text] = [Placed::default(), Placed::default(), Placed::default()];
        let mut unknown = Vec::new();
        for (name, shape) in shapes {
            let ignored = |key: &&str| name == *key || (key.ends_with('.') && name.starts_with(*key));
            if IGNORED.iter().any(ignored) || said::KEYS.contains(&name.as_str()) || name.ends_with(".position_ids") {
                continue;
            }
            let (model, parts) = if let Some(key) = name.strip_prefix(UNET) {
                (&mut unet, keys::unet(key, layers).map(|key| vec![(key, None)]))
            } else if let Some(key) = name.strip_prefix(VAE) {
                (&mut vae, keys::vae(key, blocks).map(|key| vec![(key, None)]))
            } else if let Some(key) = name.strip_prefix(CLIP_TEXT) {
                let key = key.strip_prefix("text_model.").unwrap_or(key);
                (&mut text, Some(vec![(format!("text_model.{key}"), None)]))
            } else if let Some(key) = name.strip_prefix(OPEN_CLIP_TEXT) {
                let last = format!("transformer.resblocks.{}.", text_layers.saturating_sub(1));
                if key.starts_with(&last) {
                    // Stable Diffusion 2 conditions on the layer before the last, so the last is never run.
                    continue;
                }
                (&mut text, width.and_then(|width| keys::open_clip_text(key, width)))
            } else {
                unknown.push(name);
                continue;
            };
            match parts {
                Some(parts) => {
                    let stored = &places[name].1;
                    parts.into_iter().for_each(|(key, rows)| model.insert(key, stored, rows, shape));
                }
                None => unknown.push(name),
            }
        }
        if !unknown.is_empty() {
            let shown: Vec<_> = unknown.iter().take(5).map(|name| format!("`{name}`")).collect();
            return Err(failed(format!(
                "{} key(s) that Stable Diffusion 1.x and 2.x do not have: {}{}",
                unknown.len(),
                shown.join(", "),
                if unknown.len() > 5 { ", …" } else { "" },
            )));
        }
        let family = match configs::cross_attention_width(&unet.shapes) {
            Some(768) => Family::V1,
            Some(1024) => Family::V2,
            _ if has(OPEN_CLIP_TEXT) => Family::V2,
            _ => Family::V1,
        };
        let said = said::Said::read(&file, family)?;
        let single = Self { path: path.to_owned(), family, unet, vae, text, said };
        single.check_widths()?;
        Ok(single)
    }

    /// The text encoder has to be as wide as the UNet's cross-attention.
    fn check_widths(&self) -> Result<()> {
        let text = self.text.shapes.get("text_model.final_layer_norm.weight").and_then(|shape| shape.first().copied());
        let unet = configs::cross_attention_width(&self.unet.shapes);
        if text == unet {
            return Ok(());
        }
        let width = |width: Option<usize>| width.map_or("of unknown width".to_owned(), |width| format!("{width} wide"));
        Err(Error::data(format!(
            "{}: the text encoder is {}, the UNet's cross-attention {}",
            self.path.display(),
            width(text),
            width(unet),
        )))
    }

    /// Which Stable Diffusion it is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The noise schedule, by what the file and a yaml beside it say; `asked` is what the user says that it predicts.
    ///
    /// # Errors
    /// They contradict each other, or say what this program does not have.
    pub fn scheduler(&self, asked: Option<PredictionType>) -> Result<SchedulerConfig> {
        self.said.scheduler(asked)
    }

    /// What the user should know about the schedule.
    ///
    /// # Errors
    /// As [`SingleFile::scheduler`].
    pub fn remarks(&self, asked: Option<PredictionType>) -> Result<Vec<Remark>> {
        self.said.remarks(asked)
    }

    /// The UNet's `config.json`; `sample_size` is that of the resolution in the metadata, or of 512-pixel images.
    ///
    /// # Errors
    /// A tensor that the architecture is told from is missing.
    pub fn unet_config(&self) -> Result<Value> {
        let mut config = configs::unet(&self.unet.shapes, self.family).map_err(|key| self.missing(&key))?;
        if let Some(sides) = self.said.resolution {
            config["sample_size"] = sides.map(|side| side.div_euclid(8)).to_vec().into();
        }
        Ok(config)
    }

    /// The VAE's `config.json`.
    ///
    /// # Errors
    /// A tensor that the architecture is told from is missing.
    pub fn vae_config(&self) -> Result<Value> {
        configs::vae(&self.vae.shapes).map_err(|key| self.missing(&key))
    }

    /// The text encoder's `config.json`.
    ///
    /// # Errors
    /// A tensor that the architecture is told from is missing.
    pub fn text_config(&self) -> Result<Value> {
        configs::text(&self.text.shapes, self.family).map_err(|key| self.missing(&key))
    }

    fn missing(&self, key: &str) -> Error {
        Error::data(format!("{}: nothing for `{key}`, from which the architecture is told", self.path.display()))
            .hint("the file may be incomplete: copy or download it again")
    }

    /// The UNet's keys.
    pub fn unet(&self) -> &BTreeMap<String, Stored> {
        &self.unet.place
    }

    /// The VAE's keys.
    pub fn vae(&self) -> &BTreeMap<String, Stored> {
        &self.vae.place
    }

    /// The text encoder's keys, with `text_model.`.
    pub fn text_encoder(&self) -> &BTreeMap<String, Stored> {
        &self.text.place
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
