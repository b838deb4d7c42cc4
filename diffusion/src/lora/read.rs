//! Reading a LoRA file: every key has to be understood and every adapter has to fit its layer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use reward::weights::file::TensorFile;
use tch::Tensor;

use super::{
    Layers, Lora, LoraSpec, Model,
    base::{family_of, prompt_width},
    keys::{self, Key, Role},
    kinds,
    locate::locate,
    names::Names,
    scaling::Configs,
};
use crate::{Error, Result, layer::Adapter, single_file::Family};

/// Problems that an error lists.
const SHOWN: usize = 5;

/// A LoRA file that was read, whatever model it is for.
pub struct LoraFile {
    path: PathBuf,
    /// What is said about updates, by key; fp32 in the shapes of the file, all finite.
    parts: BTreeMap<String, (Key, Tensor)>,
    /// Keys that say nothing that is known.
    unknown: Vec<String>,
    configs: Configs,
}

/// One layer's tensors with their names in the file.
#[derive(Default)]
struct Parts<'a> {
    down: Option<(&'a str, &'a Tensor)>,
    up: Option<(&'a str, &'a Tensor)>,
    alpha: Option<(&'a str, &'a Tensor)>,
    scalar: Option<(&'a str, &'a Tensor)>,
}

/// Why an adapter is refused.
enum Problem {
    /// No such layer.
    Layer(String),
    /// Shapes of another model's layer.
    Shape(String),
    /// Anything else.
    Other(String),
}

impl LoraFile {
    /// Reads a file of diffusers, PEFT, kohya, ComfyUI or OneTrainer, or a folder that holds one.
    ///
    /// # Errors
    /// Something else than a LoRA (named), a kind of adapter that is not supported (named), values that are not finite.
    pub fn open(path: &Path) -> Result<Self> {
        let path = locate(path)?;
        let file = TensorFile::open(&path)?;
        kinds::of_file(&path, file.shapes())?;
        let configs = Configs::read(&path)?;
        let (mut parts, mut unknown) = (BTreeMap::new(), Vec::new());
        for (name, shape) in file.shapes() {
            if let Some(error) = kinds::of_key(name, Some(&path)) {
                return Err(error);
            }
            match keys::parse(name) {
                Some(key) => {
                    let tensor = values(&file, name, shape)?;
                    parts.insert(name.clone(), (key, tensor));
                }
                None if keys::is_stray(name) => {}
                None => unknown.push(name.clone()),
            }
        }
        Ok(Self { path, parts, unknown, configs })
    }

    /// The adapters of the file, each with its layer among `layers`, scaled by `alpha / r` times `scale`. Alpha comes from the
    /// file's own `alpha` tensors, its `lora_adapter_metadata`, or `adapter_config.json` beside it, and is `r` where none says.
    ///
    /// # Errors
    /// Keys that match no layer, shapes of another base model, halves of adapters: the first mismatches are listed.
    pub fn fit(&self, layers: &Layers, scale: f64) -> Result<Lora> {
        let mut problems: Vec<Problem> = self
            .unknown
            .iter()
            .map(|name| Problem::Other(format!("`{}`: not a key of a LoRA file", name.escape_debug())))
            .collect();
        let mut found: BTreeMap<(Model, String), Parts> = BTreeMap::new();
        let names = Names::of(layers);
        for (name, (key, tensor)) in &self.parts {
            let Some(layer) = names.resolve(key) else {
                let (name, layer) = (name.escape_debug(), key.layer.as_str().escape_debug());
                problems.push(Problem::Layer(format!("`{name}`: no layer `{layer}` in this model")));
                continue;
            };
            let parts = found.entry(layer).or_default();
            let part = match key.role {
                Role::Down => &mut parts.down,
                Role::Up => &mut parts.up,
                Role::Alpha => &mut parts.alpha,
                Role::Scalar => &mut parts.scalar,
            };
            if let Some((other, _)) = part.replace((name.as_str(), tensor)) {
                let (name, other) = (name.escape_debug(), other.escape_debug());
                problems.push(Problem::Other(format!("`{name}` and `{other}` are for the same layer")));
            }
        }
        let mut lora = Lora::default();
        for ((model, layer), parts) in &found {
            let (known, adapters) = match model {
                Model::Unet => (&layers.unet, &mut lora.unet),
                Model::Text => (&layers.text, &mut lora.text),
            };
            let shape = known.get(layer).map(Vec::as_slice).unwrap_or_default();
            match adapter(parts, shape, scale, |rank| self.configs.scale(*model, layer, rank)) {
                Ok(adapter) => drop(adapters.insert(layer.clone(), adapter)),
                Err(Problem::Shape(problem)) => problems.push(Problem::Shape(format!("`{layer}`: {problem}"))),
                Err(Problem::Layer(problem) | Problem::Other(problem)) => {
                    problems.push(Problem::Other(format!("`{layer}`: {problem}")));
                }
            }
        }
        if !problems.is_empty() {
            return Err(self.misfit(&problems, other_base(&found, layers)));
        }
        if lora.unet.is_empty() && lora.text.is_empty() {
            return Err(Error::data(format!("{}: no adapter in this file", self.path.display())));
        }
        Ok(lora)
    }

    /// One error for all problems. `base`: how the prompts of the file's base differ from the model's, where that is known.
    fn misfit(&self, problems: &[Problem], base: Option<String>) -> Error {
        let has = |wanted: fn(&Problem) -> bool| problems.iter().any(wanted);
        let hint = match base {
            Some(base) => base,
            None if has(|problem| matches!(problem, Problem::Shape(_))) => {
                "was it trained on another base (Stable Diffusion 1.x against 2.x, or XL)?".to_owned()
            }
            None if has(|problem| matches!(problem, Problem::Layer(_))) => {
                "this model has no such layers: was it trained on another base, or saved under other names?".to_owned()
            }
            None => "the file may be incomplete, or of a kind that is not supported".to_owned(),
        };
        let texts: Vec<&str> = problems
            .iter()
            .take(SHOWN)
            .map(|problem| match problem {
                Problem::Layer(text) | Problem::Shape(text) | Problem::Other(text) => text.as_str(),
            })
            .collect();
        let more = problems.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Error::data(format!("{}: not a LoRA for this model: {}{more}", self.path.display(), texts.join("; ")))
            .hint(hint)
    }
}

impl Lora {
    /// Reads one file for a model with `layers`: [`LoraFile::open`] and [`LoraFile::fit`].
    ///
    /// # Errors
    /// As those.
    pub fn open(path: &Path, layers: &Layers, scale: f64) -> Result<Self> {
        LoraFile::open(path)?.fit(layers, scale)
    }

    /// Reads `specs`, each at its own scale times `factor`, as one update that is their sum; no adapters of none.
    ///
    /// # Errors
    /// As [`Lora::open`].
    pub fn open_all(specs: &[LoraSpec], layers: &Layers, factor: f64) -> Result<Self> {
        let mut sum = Self::default();
        for LoraSpec { path, scale } in specs {
            sum = sum.plus(Self::open(path, layers, scale * factor)?);
        }
        Ok(sum)
    }
}

/// The values of a tensor as fp32; an alpha may be a whole number.
fn values(file: &TensorFile, name: &str, shape: &[usize]) -> Result<Tensor> {
    let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
    let values = match file.whole_numbers(name)? {
        Some(numbers) => numbers,
        None => file.read(name)?,
    };
    Tensor::from_slice(&values).f_reshape(&shape).map_err(|error| {
        Error::data(format!("{}: tensor `{}`", file.path().display(), name.escape_debug())).caused_by(error)
    })
}

/// Checks one adapter for a layer of weight `shape`, at `factor`; `scale` gives alpha / r where no tensor does.
fn adapter(parts: &Parts, shape: &[i64], factor: f64, scale: impl Fn(i64) -> f64) -> Result<Adapter, Problem> {
    let (Some((_, down)), Some((_, up))) = (&parts.down, &parts.up) else {
        let what = match (&parts.down, &parts.up) {
            (Some(_), None) => "down without up",
            (None, Some(_)) => "up without down",
            _ => "alpha without down and up",
        };
        return Err(Problem::Other(what.to_owned()));
    };
    let (found_down, found_up) = (down.size(), up.size());
    let rank = found_down.first().copied().unwrap_or_default();
    let Some((outputs, inner)) = shape.split_first() else { return Err(Problem::Layer("no such layer".to_owned())) };
    let wanted_down = [&[rank], inner].concat();
    let wanted_up = [&[*outputs, rank], &vec![1; inner.len().saturating_sub(1)][..]].concat();
    if rank == 0 || !but_for_ones(&found_down, &wanted_down) || !but_for_ones(&found_up, &wanted_up) {
        return Err(Problem::Shape(format!("down {found_down:?} and up {found_up:?} do not fit its weight {shape:?}")));
    }
    let number = |part: &Option<(&str, &Tensor)>| match part {
        None => Ok(None),
        Some((_, tensor)) if tensor.numel() == 1 => Ok(Some(tensor.view(-1).double_value(&[0]))),
        Some((name, _)) => Err(Problem::Other(format!("`{name}` is not one number"))),
    };
    let scale = number(&parts.alpha)?.map_or_else(|| scale(rank), |alpha| alpha / rank as f64);
    let scale = scale * number(&parts.scalar)?.unwrap_or(1.0) * factor;
    let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
    // What no element of the product can exceed.
    let bound = scale.abs() * largest(down) * largest(up) * rank as f64;
    if !scale.is_finite() || bound > f64::from(f32::MAX) {
        return Err(Problem::Other(format!("its update is not finite at a scale of {scale:e}")));
    }
    Ok(Adapter { down: down.reshape(wanted_down), up: up.reshape(wanted_up), scale })
}

/// Shapes that differ in ones at their end: a 1×1 convolution and a linear layer.
fn but_for_ones(left: &[i64], right: &[i64]) -> bool {
    let kept = |shape: &[i64]| shape.iter().rposition(|size| *size != 1).map_or(0, |last| last + 1);
    left[..kept(left)] == right[..kept(right)]
}

/// What to say where the file's prompts are not as wide as the model's.
fn other_base(found: &BTreeMap<(Model, String), Parts>, layers: &Layers) -> Option<String> {
    let sizes: Vec<(&String, Vec<i64>)> = found
        .iter()
        .filter(|((model, _), _)| *model == Model::Unet)
        .filter_map(|((_, layer), parts)| Some((layer, parts.down?.1.size())))
        .collect();
    let of_file = prompt_width(sizes.iter().map(|(layer, shape)| (*layer, shape.as_slice())))?;
    let of_model = prompt_width(layers.unet.iter().map(|(layer, shape)| (layer, shape.as_slice())))?;
    let base = match family_of(of_file) {
        Some(Family::V1) => "Stable Diffusion 1.x",
        Some(Family::V2) => "Stable Diffusion 2.x",
        None if of_file == 2048 => "Stable Diffusion XL",
        None => "a model",
    };
    (of_file != of_model).then(|| {
        format!("it was trained on another base: {base} with prompts {of_file} wide, this model's are {of_model} wide")
    })
}
