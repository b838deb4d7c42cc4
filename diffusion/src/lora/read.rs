//! Reading a LoRA file: every key has to be understood and every adapter has to fit its layer.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use regex::Regex;
use reward::weights::file::TensorFile;
use serde_json::{Map, Value};
use tch::Tensor;

use super::{
    Layers, Lora, Model,
    keys::{self, Name, Role},
};
use crate::{Error, Result, layer::Adapter};

/// What trainers call the file in a folder.
const FILE_NAMES: [&str; 4] =
    ["pytorch_lora_weights.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin"];
/// Problems that an error lists.
const SHOWN: usize = 5;

/// One layer's tensors, by their names in the file.
#[derive(Default)]
struct Parts {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
}

impl Lora {
    /// Reads a LoRA file, or a folder that holds one, of diffusers, PEFT or kohya. Every adapter is scaled by `alpha / r`, times
    /// `scale`; alpha comes from the file's own `alpha` tensors, its `lora_adapter_metadata`, or `adapter_config.json` beside it, and is
    /// `r` where none of them says.
    ///
    /// # Errors
    /// A kind of adapter that is not supported (named), keys that match no layer, shapes of another base model: the first
    /// mismatches are listed.
    pub fn open(path: &Path, layers: &Layers, scale: f64) -> Result<Self> {
        let path = locate(path)?;
        let file = TensorFile::open(&path)?;
        let configs = Configs::read(&path)?;
        let mut problems = Vec::new();
        let mut found: BTreeMap<(Model, String), Parts> = BTreeMap::new();
        let names = Names::of(layers);
        for key in file.shapes().keys() {
            let refused = |what: &str| Error::data(format!("{}: `{key}`: {what}", path.display()));
            if let Some(kind) = keys::other_kind(key) {
                return Err(refused(&format!("{kind} is not supported, want plain LoRA"))
                    .hint("merge it into the model with the tool that made it, or train a plain LoRA"));
            }
            if let Some(base) = keys::other_base(key) {
                return Err(refused(&format!("an adapter of {base}, want one of Stable Diffusion 1.x or 2.x")));
            }
            let parsed = keys::parse(key).ok_or("not a key of a LoRA file".to_owned());
            let resolved = parsed.and_then(|key| Ok((names.resolve(&key)?, key.role)));
            let (layer, role) = match resolved {
                Ok(resolved) => resolved,
                Err(problem) => {
                    problems.push(format!("`{key}`: {problem}"));
                    continue;
                }
            };
            let parts = found.entry(layer).or_default();
            let part = match role {
                Role::Down => &mut parts.down,
                Role::Up => &mut parts.up,
                Role::Alpha => &mut parts.alpha,
            };
            if let Some(other) = part.replace(key.clone()) {
                problems.push(format!("`{key}` and `{other}` are the same"));
            }
        }
        let mut lora = Self::default();
        for ((model, layer), parts) in found {
            let (known, adapters) = match model {
                Model::Unet => (&layers.unet, &mut lora.unet),
                Model::Text => (&layers.text, &mut lora.text),
            };
            let shape = known.get(&layer).map(Vec::as_slice).unwrap_or_default();
            match adapter(&file, &parts, shape, |rank| configs.scale(model, &layer, rank)) {
                Ok(mut adapter) => {
                    adapter.scale *= scale;
                    adapters.insert(layer, adapter);
                }
                Err(problem) => problems.push(format!("`{layer}`: {problem}")),
            }
        }
        if !problems.is_empty() {
            let more = problems.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            problems.truncate(SHOWN);
            return Err(Error::data(format!(
                "{}: not a LoRA for this model: {}{more}",
                path.display(),
                problems.join("; ")
            ))
            .hint("was it trained on another base (Stable Diffusion 1.x against 2.x, or XL)?"));
        }
        if lora.unet.is_empty() && lora.text.is_empty() {
            return Err(Error::data(format!("{}: no adapter in this file", path.display())));
        }
        Ok(lora)
    }
}

/// The file of a LoRA that is given as a file or a folder.
pub(crate) fn locate(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return match path.is_file() {
            true => Ok(path.to_owned()),
            false => Err(Error::data(format!("{}: no such file or folder", path.display()))),
        };
    }
    let found = FILE_NAMES.iter().map(|name| path.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::data(format!("{}: no such file", path.join(FILE_NAMES[0]).display()))
            .hint(format!("a LoRA folder holds one of {}", FILE_NAMES.join(", ")))
    })
}

/// Reads and checks one adapter for a layer of weight `shape`; `scale` gives alpha / r where no tensor does.
fn adapter(file: &TensorFile, parts: &Parts, shape: &[i64], scale: impl Fn(i64) -> f64) -> Result<Adapter, String> {
    let (Some(down), Some(up)) = (&parts.down, &parts.up) else {
        return Err(match (&parts.down, &parts.up) {
            (Some(_), None) => "down without up",
            (None, Some(_)) => "up without down",
            _ => "alpha without down and up",
        }
        .to_owned());
    };
    let size = |name: &String| -> Vec<i64> { file.shapes()[name].iter().map(|size| *size as i64).collect() };
    let (found_down, found_up) = (size(down), size(up));
    let rank = found_down.first().copied().unwrap_or_default();
    let (outputs, inner) = shape.split_first().ok_or("no such layer")?;
    let wanted_down = [&[rank], inner].concat();
    let wanted_up = [&[*outputs, rank], &vec![1; inner.len().saturating_sub(1)][..]].concat();
    if rank == 0 || !but_for_ones(&found_down, &wanted_down) || !but_for_ones(&found_up, &wanted_up) {
        return Err(format!("down {found_down:?} and up {found_up:?} do not fit its weight {shape:?}"));
    }
    let read = |name: &String, shape: &[i64]| {
        let values = file.read(name).map_err(|error| error.to_string())?;
        Ok::<_, String>(Tensor::from_slice(&values).reshape(shape))
    };
    let scale = match &parts.alpha {
        None => scale(rank),
        Some(name) => match file.read(name).map_err(|error| error.to_string())?[..] {
            [alpha] => f64::from(alpha) / rank as f64,
            _ => return Err(format!("`{name}` is not one number")),
        },
    };
    if !scale.is_finite() {
        return Err(format!("its scale is {scale}"));
    }
    Ok(Adapter { down: read(down, &wanted_down)?, up: read(up, &wanted_up)?, scale })
}

/// Shapes that differ in ones at their end: a 1×1 convolution and a linear layer.
fn but_for_ones(left: &[i64], right: &[i64]) -> bool {
    let kept = |shape: &[i64]| shape.iter().rposition(|size| *size != 1).map_or(0, |last| last + 1);
    left[..kept(left)] == right[..kept(right)]
}

/// The layers that names in files can mean.
struct Names<'a> {
    layers: &'a Layers,
    underscored: BTreeMap<(Model, String), &'a str>,
}

impl<'a> Names<'a> {
    fn of(layers: &'a Layers) -> Self {
        let mut underscored = BTreeMap::new();
        for (model, known) in [(Model::Unet, &layers.unet), (Model::Text, &layers.text)] {
            for layer in known.keys() {
                underscored.insert((model, layer.replace('.', "_")), layer.as_str());
                if let Some(short) = layer.strip_prefix("text_model.") {
                    underscored.insert((model, short.replace('.', "_")), layer.as_str());
                }
            }
        }
        Self { layers, underscored }
    }

    fn resolve(&self, key: &keys::Key) -> Result<(Model, String), String> {
        let models = match key.model {
            Some(model) => &[model][..],
            None => &[Model::Unet, Model::Text],
        };
        let layer = models.iter().find_map(|&model| Some((model, self.layer(model, &key.layer)?)));
        layer.ok_or_else(|| format!("no layer `{}` in this model", key.layer.as_str()))
    }

    fn layer(&self, model: Model, name: &Name) -> Option<String> {
        match (model, name) {
            (_, Name::Underscored(name)) => {
                self.underscored.get(&(model, name.clone())).map(|layer| (*layer).to_owned())
            }
            (Model::Unet, Name::Dotted(name)) => self.layers.unet.contains_key(name).then(|| name.clone()),
            (Model::Text, Name::Dotted(name)) => {
                let name = format!("text_model.{}", name.strip_prefix("text_model.").unwrap_or(name));
                self.layers.text.contains_key(&name).then_some(name)
            }
        }
    }
}

/// What PEFT says about alpha, for both models.
#[derive(Default)]
struct Configs {
    unet: Option<Scaling>,
    text: Option<Scaling>,
}

/// The part of PEFT's `LoraConfig` that decides the scale.
struct Scaling {
    alpha: f64,
    patterns: Vec<(Regex, f64)>,
    rank_stabilised: bool,
}

impl Configs {
    /// From `lora_adapter_metadata` in the file (diffusers), else from `adapter_config.json` beside it (PEFT).
    fn read(path: &Path) -> Result<Self> {
        if let Some(text) = metadata(path)?.get("lora_adapter_metadata").and_then(Value::as_str) {
            let packed: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
                Error::data(format!("{}: `lora_adapter_metadata` is not a JSON object", path.display()))
                    .caused_by(error)
            })?;
            let part = |prefix: &str| {
                let fields = packed.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value)));
                Scaling::of(&fields.map(|(key, value)| (key.to_owned(), value.clone())).collect(), path)
            };
            return Ok(Self { unet: part("unet.")?, text: part("text_encoder.")? });
        }
        let beside = path.with_file_name("adapter_config.json");
        if path.file_name().is_none_or(|name| name != "adapter_model.safetensors" && name != "adapter_model.bin")
            || !beside.is_file()
        {
            return Ok(Self::default());
        }
        let config: Map<String, Value> = serde_json::from_str(&fs_err::read_to_string(&beside)?)
            .map_err(|error| Error::data(format!("{}: not a JSON object", beside.display())).caused_by(error))?;
        Ok(Self { unet: Scaling::of(&config, &beside)?, text: Scaling::of(&config, &beside)? })
    }

    /// alpha / r of `layer`.
    fn scale(&self, model: Model, layer: &str, rank: i64) -> f64 {
        let scaling = match model {
            Model::Unet => &self.unet,
            Model::Text => &self.text,
        };
        let Some(Scaling { alpha, patterns, rank_stabilised }) = scaling else { return 1.0 };
        let own = patterns.iter().find(|(pattern, _)| pattern.is_match(layer));
        let alpha = own.map_or(*alpha, |(_, alpha)| *alpha);
        alpha / if *rank_stabilised { (rank as f64).sqrt() } else { rank as f64 }
    }
}

impl Scaling {
    fn of(config: &Map<String, Value>, path: &Path) -> Result<Option<Self>> {
        let refused =
            |what: String| Error::data(format!("{}: {what} is not supported, want plain LoRA", path.display()));
        let set = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
        if let Some(kind) = config.get("peft_type").and_then(Value::as_str).filter(|kind| *kind != "LORA") {
            return Err(refused(format!("`peft_type` {kind}")));
        }
        for (key, name) in [("use_dora", "DoRA"), ("lora_bias", "LoRA with biases"), ("use_qalora", "QALoRA")] {
            if set(key) {
                return Err(refused(name.to_owned()));
            }
        }
        let Some(alpha) = config.get("lora_alpha").and_then(Value::as_f64) else { return Ok(None) };
        let mut patterns = Vec::new();
        for (pattern, alpha) in config.get("alpha_pattern").and_then(Value::as_object).into_iter().flatten() {
            // As PEFT matches them: at the end of the name, after a dot.
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$"));
            let (Ok(regex), Some(alpha)) = (regex, alpha.as_f64()) else {
                return Err(Error::data(format!("{}: `alpha_pattern` of `{pattern}` is {alpha}", path.display())));
            };
            patterns.push((regex, alpha));
        }
        Ok(Some(Self { alpha, patterns, rank_stabilised: set("use_rslora") }))
    }
}

/// `__metadata__` of a safetensors file; nothing of another file.
fn metadata(path: &Path) -> Result<Map<String, Value>> {
    let mut file = fs_err::File::open(path)?;
    let mut size = [0; 8];
    let length = file.metadata()?.len();
    let whole = file.read_exact(&mut size).is_ok();
    let size = u64::from_le_bytes(size);
    if !whole || size > length {
        return Ok(Map::new());
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header)?;
    let header: Value = serde_json::from_slice(&header).unwrap_or_default();
    Ok(header["__metadata__"].as_object().cloned().unwrap_or_default())
}
