//! A run on disk: checkpoints that a run goes on from, and what it is for: LoRA files or a diffusers folder.

use std::{collections::BTreeMap, path::Path};

use reward::{
    files::json_file,
    optim::{Ema, Update, not_finite},
    run::{
        checkpoints::{self, replace_folder},
        place::Settings,
        progress,
        resume::PROGRESS,
    },
    weights::file::TensorFile,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{
    config::{FinetuneConfig, Train},
    models::Models,
};
use crate::{
    Error, Result,
    algorithm::Algorithm,
    layer::{Adapter, Handle},
    lora::{self, Base, Lora},
    objective::Scale,
    save::{self, Pipeline, Precision, Saved, tensor_file},
    source::Source,
    text::TextEncoder,
};

/// Where a run is; the best figure is the composite of a held-out evaluation.
pub(super) type Progress = progress::Progress<State>;

/// What fine-tuning remembers beside tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// Images at a time: what the planner chose, or what was left after memory ran out.
    pub(super) micro: usize,
    /// Whether activations are computed again in the backward pass.
    pub(super) checkpointing: bool,
    /// The unit of each reward by its label; none where rewards are raw.
    pub(super) scales: BTreeMap<String, Scale>,
}

/// The file of the trained tensors in a checkpoint.
pub(super) const TRAINED: &str = "trained.safetensors";
/// The optimizer's state.
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
/// What the method remembers, if it remembers anything.
const METHOD: &str = "method.safetensors";
/// All parts of the state; the running mean only where there is one.
pub(super) const PARTS: [&str; 3] = [TRAINED, "ema.safetensors", OPTIMIZER];

impl Settings for FinetuneConfig {
    const FLAG: &'static str = "output";

    fn folder(&self) -> &Path {
        self.output.as_deref().unwrap_or(Path::new(""))
    }

    fn folders(&self) -> &'static [&'static str] {
        match self.train {
            Train::Lora => &["best", "samples", "lora"],
            Train::Full => &["best", "samples", "vae", "model"],
        }
    }

    fn result(&self) -> &'static str {
        match self.train {
            Train::Lora => "lora",
            Train::Full => "model",
        }
    }

    fn changed(&self, earlier: &Self) -> Vec<String> {
        self.changed_since(earlier)
    }

    fn checkpoint_every(&self) -> usize {
        self.checkpoint_every
    }

    fn tensor_files(&self) -> &'static [&'static str] {
        match self.ema_decay {
            Some(_) => &PARTS,
            None => &[TRAINED, OPTIMIZER],
        }
    }
}

/// Writes a checkpoint that [`load`] goes on from, beside it the LoRA that diffusers reads.
pub(super) fn write(
    folder: &Path,
    models: &Models,
    update: &Update,
    method: &dyn Algorithm,
    progress: &Progress,
) -> Result<()> {
    let means = update.ema.iter().flat_map(|ema| &ema.means);
    let all = update.trained().iter().map(|(_, tensor)| tensor).chain(means);
    check_finite(folder, update.trained().iter().map(|(name, _)| name.as_str()).cycle().zip(all))?;
    checkpoints::write(folder, |partial| {
        let [trained, ema, optimizer] = PARTS.map(|part| partial.join(part));
        let saved = |name: &str, tensor: &Tensor| (name.to_owned(), Saved::new(tensor, Kind::Float));
        let named = update.trained().iter().map(|(name, tensor)| saved(name, tensor));
        tensor_file(&trained, named.collect(), Default::default())?;
        if let Some(Ema { means, .. }) = &update.ema {
            let named = update.trained().iter().zip(means).map(|((name, _), mean)| saved(name, mean));
            tensor_file(&ema, named.collect(), Default::default())?;
        }
        let state = update.adam.state().map(|(name, tensor)| saved(&name, tensor));
        tensor_file(&optimizer, state.collect(), Default::default())?;
        write_state(partial, method, update.trained())?;
        if let Some(lora) = adapters(models) {
            lora::diffusers(&partial.join("pytorch_lora_weights.safetensors"), &lora)?;
        }
        json_file(&partial.join(PROGRESS), &serde_json::json!(progress))
    })
}

/// Refuses weights that diverged since the loss was last looked at, before they are saved as `path`.
fn check_finite<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    match not_finite(tensors) {
        None => Ok(()),
        Some(name) => Err(Error::data(format!("`{name}` is not finite any more: {} is not written", path.display()))
            .hint("lower learning_rate, or set clip_norm = 1")),
    }
}

/// Gives weights, running means, optimizer and method the state of checkpoint `folder` back.
pub(super) fn load(folder: &Path, update: &mut Update, method: &mut dyn Algorithm) -> Result<()> {
    let [trained, ema, optimizer] = PARTS.map(|part| folder.join(part));
    weights(&trained, update)?;
    if let Some(Ema { means, .. }) = &update.ema {
        let file = TensorFile::open(&ema)?;
        for ((name, _), mean) in update.trained().iter().zip(means) {
            set(mean, &read(&file, name, &mean.size())?);
        }
    }
    let file = TensorFile::open(&optimizer)?;
    update.adam.set_state(|name, shape| read(&file, name, shape))?;
    load_state(folder, method, update.trained())
}

/// Writes the state of a method that has any into `folder`.
fn write_state(folder: &Path, method: &dyn Algorithm, trained: &[(String, Tensor)]) -> Result<()> {
    let state = method.state(trained);
    if state.is_empty() {
        return Ok(());
    }
    check_finite(folder, state.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
    let named = state.iter().map(|(name, tensor)| (name.clone(), Saved::new(tensor, Kind::Float)));
    tensor_file(&folder.join(METHOD), named.collect(), Default::default())
}

/// Gives a method the state that [`write_state`] wrote. One that had none when it was saved begins as new.
fn load_state(folder: &Path, method: &mut dyn Algorithm, trained: &[(String, Tensor)]) -> Result<()> {
    let path = folder.join(METHOD);
    if !path.is_file() {
        return Ok(());
    }
    let file = TensorFile::open(&path)?;
    method.set_state(trained, &|name, shape| read(&file, name, shape))
}

/// Sets what trains to the values in file `path`.
pub(super) fn weights(path: &Path, update: &Update) -> Result<()> {
    let file = TensorFile::open(path)?;
    for (name, tensor) in update.trained() {
        set(tensor, &read(&file, name, &tensor.size())?);
    }
    Ok(())
}

fn set(tensor: &Tensor, value: &Tensor) {
    tch::no_grad(|| tensor.shallow_clone().copy_(value));
}

fn read(file: &TensorFile, name: &str, shape: &[i64]) -> Result<Tensor> {
    let wanted: Vec<usize> = shape.iter().map(|size| *size as usize).collect();
    if file.shapes().get(name) != Some(&wanted) {
        return Err(Error::data(format!("{}: no tensor `{name}` of shape {wanted:?}", file.path().display())));
    }
    Ok(Tensor::from_slice(&file.read(name)?).view(shape))
}

/// The adapters of the UNet as they are, with those of the text encoder that the run started from.
fn adapters(models: &Models) -> Option<Lora> {
    let handles = |all: &BTreeMap<String, Adapter>| {
        all.iter().map(|(layer, adapter)| (layer.clone(), adapter.handle())).collect::<BTreeMap<_, _>>()
    };
    let unet = handles(&models.unet.parameters.adapted);
    (!unet.is_empty()).then(|| Lora { unet, text: handles(&models.text_adapters) })
}

/// Writes what the run is for into `folder`: `lora/` in diffusers' and kohya's form, each read again and compared, or a whole
/// diffusers folder `model/`.
pub(super) fn result(folder: &Path, config: &FinetuneConfig, source: &Source, models: &Models) -> Result<()> {
    let trained = models.unet.parameters.trained();
    let path = folder.join(config.result());
    check_finite(&path, trained.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
    let Some(lora) = adapters(models) else { return model(&path, source, models) };
    replace_folder(&path, |partial| {
        both_forms(partial, &lora, config, source)?;
        json_file(&partial.join("training.json"), &serde_json::json!(config))
    })
}

/// Does in the empty folder `scratch` what [`result`] does with adapters: what would fail there fails before hours of training.
pub(super) fn rehearse(scratch: &Path, config: &FinetuneConfig, source: &Source, models: &Models) -> Result<()> {
    let Some(lora) = adapters(models) else { return Ok(()) };
    lora::check(&models.unet.parameters, &models.unet.parameters.adapted)?;
    both_forms(scratch, &lora, config, source)
}

/// Writes the LoRA into `folder` for diffusers and for kohya's tools, and reads each again.
fn both_forms(folder: &Path, lora: &Lora, config: &FinetuneConfig, source: &Source) -> Result<()> {
    let layers = source.layers()?;
    let base = Base::of_model(&layers, source.scheduler()?.prediction_type, title(config));
    let path = folder.join("pytorch_lora_weights.safetensors");
    lora::diffusers(&path, lora)?;
    same_updates(&path, lora, &Lora::open(&path, &layers, 1.0)?)?;
    let path = folder.join("kohya.safetensors");
    lora::kohya(&path, lora, &base)?;
    same_updates(&path, lora, &Lora::open(&path, &layers, 1.0)?)
}

/// The last part of the model's name, and the method.
fn title(config: &FinetuneConfig) -> String {
    let model = config.model.as_deref().unwrap_or_default().trim_end_matches('/');
    let name = model.rsplit(['/', ':']).next().unwrap_or(model);
    let name = [".safetensors", ".ckpt"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    config.method().map_or(name.to_owned(), |method| format!("{name} {method}"))
}

/// A file that reads back as another update than was trained is worse than none.
fn same_updates(path: &Path, written: &Lora, read: &Lora) -> Result<()> {
    let same = |written: &BTreeMap<String, Adapter>, read: &BTreeMap<String, Adapter>| {
        written.keys().eq(read.keys())
            && written.values().zip(read.values()).all(|(written, read)| {
                let same = |written: &Tensor, read: &Tensor| {
                    written.size() == read.size() && written.to_device(Device::Cpu) == *read
                };
                // kohya's alpha is fp32.
                let as_strong = (written.scale - read.scale).abs() <= 1e-6 * written.scale.abs();
                tch::no_grad(|| same(&written.down, &read.down) && same(&written.up, &read.up) && as_strong)
            })
    };
    if same(&written.unet, &read.unet) && same(&written.text, &read.text) {
        return Ok(());
    }
    Err(Error::data(format!("{}: the file does not hold the update that was trained", path.display())))
}

/// The whole pipeline with the UNet (and VAE) as trained, as a diffusers folder.
fn model(path: &Path, source: &Source, models: &Models) -> Result<()> {
    let (config, weights) = source.text_encoder()?;
    let text_encoder = TextEncoder::new(&config, weights)?;
    let (tokenizer, scheduler) = (source.tokenizer()?, source.scheduler()?);
    replace_folder(path, |partial| {
        let pipeline = Pipeline {
            unet: &models.unet,
            vae: &models.vae,
            text_encoder: &text_encoder,
            tokenizer: &tokenizer,
            scheduler: &scheduler,
        };
        save::folder(partial, &pipeline, Precision::Full)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Graph, ReadTensor, Round, Scene, Settings};

    /// A method that remembers a running mean, once it has seen something.
    #[derive(Default)]
    struct Remembers(Option<Tensor>);

    impl Algorithm for Remembers {
        fn graph(&self, _: &Settings) -> Graph {
            Graph { items: 1, predictions: 0, decoded: 0, guided: false }
        }

        fn round<'a>(&'a mut self, _: &'a Scene<'a>, _: usize) -> Result<Box<dyn Round + 'a>> {
            Err(Error::data("makes no rounds"))
        }

        fn state(&self, _: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
            self.0.iter().map(|mean| ("mean".to_owned(), mean.shallow_clone())).collect()
        }

        fn set_state(&mut self, _: &[(String, Tensor)], read: &ReadTensor) -> Result<()> {
            self.0 = Some(read("mean", &[2])?);
            Ok(())
        }
    }

    #[test]
    fn what_a_method_remembers_is_part_of_a_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut resumed = Remembers::default();
        // Nothing was remembered yet: nothing is written, and the method begins as new.
        write_state(folder.path(), &resumed, &[]).unwrap();
        load_state(folder.path(), &mut resumed, &[]).unwrap();
        assert!(resumed.0.is_none() && !folder.path().join(METHOD).exists());
        let mean = Tensor::from_slice(&[0.5_f32, -2.0]);
        write_state(folder.path(), &Remembers(Some(mean.shallow_clone())), &[]).unwrap();
        load_state(folder.path(), &mut resumed, &[]).unwrap();
        assert_eq!(resumed.0.unwrap(), mean);
        let diverged = Remembers(Some(&mean * f64::NAN));
        let error = write_state(folder.path(), &diverged, &[]).unwrap_err().to_string();
        assert!(error.starts_with("`mean` is not finite any more"), "{error}");
    }
}
