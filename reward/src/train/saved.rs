//! A run on disk: a checkpoint is a Hugging Face CLIP folder with the optimizer's state and the run's place beside it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    Error, Result,
    clip::model::Clip,
    optim::Adam,
    run::checkpoints::replace_folder,
    weights::{
        Checkpoint,
        file::TensorFile,
        save::{hugging_face_folder, json_file, named_tensors},
    },
};

/// Where a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Progress {
    /// Optimizer steps done.
    pub(super) step: usize,
    /// Highest validation accuracy so far.
    pub(super) best_accuracy: Option<f64>,
    /// Threads libtorch computed with; another number changes the last bits.
    pub(super) threads: usize,
}

/// Writes the model as a Hugging Face folder. What did not train is copied from `source` as it was read.
pub(super) fn save_model(folder: &Path, clip: &Clip, source: &Checkpoint) -> Result<()> {
    replace_folder(folder, |partial| write_model(partial, clip, source))
}

fn write_model(folder: &Path, clip: &Clip, source: &Checkpoint) -> Result<()> {
    hugging_face_folder(folder, &clip.config, &|name, shape| {
        let tensor = &clip.parameters[name];
        if tensor.requires_grad() { host_values(tensor) } else { source.read(name, shape) }
    })
}

/// Writes a checkpoint that [`load_state`] resumes from.
pub(super) fn save_checkpoint(
    folder: &Path,
    clip: &Clip,
    source: &Checkpoint,
    adam: &Adam,
    progress: &Progress,
) -> Result<()> {
    replace_folder(folder, |partial| {
        write_model(partial, clip, source)?;
        let state = adam.state().map(|(name, tensor)| {
            let shape = tensor.size().iter().map(|size| *size as usize).collect();
            (name, shape, Box::new(move || host_values(tensor)) as Box<dyn Fn() -> Result<Vec<f32>>>)
        });
        named_tensors(&partial.join("optimizer.safetensors"), state.collect())?;
        json_file(&partial.join("progress.json"), &serde_json::json!(progress))
    })
}

/// Reads where the run was.
pub(super) fn load_progress(folder: &Path) -> Result<Progress> {
    let path = folder.join("progress.json");
    serde_json::from_str(&fs_err::read_to_string(&path)?)
        .map_err(|error| Error::data(format!("{}: not a checkpoint's progress", path.display())).caused_by(error))
}

/// Gives the optimizer its state back.
pub(super) fn load_state(folder: &Path, adam: &mut Adam, clip: &Clip) -> Result<()> {
    let file = TensorFile::open(&folder.join("optimizer.safetensors"))?;
    adam.set_state(|name, shape| {
        let wanted: Vec<usize> = shape.iter().map(|size| *size as usize).collect();
        if file.shapes().get(name) != Some(&wanted) {
            return Err(Error::data(format!("{}: no tensor `{name}` of shape {wanted:?}", file.path().display())));
        }
        Ok(Tensor::from_slice(&file.read(name)?).view(shape).to_device(clip.device))
    })
}

fn host_values(tensor: &Tensor) -> Result<Vec<f32>> {
    let host = tensor.detach().to_kind(Kind::Float).to_device(tch::Device::Cpu).flatten(0, -1);
    Vec::try_from(host).map_err(|error| Error::data("a tensor cannot be read back").caused_by(error))
}
