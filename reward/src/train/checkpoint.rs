//! A run on disk: a checkpoint is a Hugging Face CLIP folder with the optimizer's state and the run's place beside it.

use std::path::Path;

use tch::{Kind, Tensor};

use crate::{
    Error, Result,
    clip::model::Clip,
    files::json_file,
    optim::{Adam, not_finite},
    run::{
        checkpoints::{self, replace_folder},
        progress,
        resume::PROGRESS,
    },
    weights::{
        Checkpoint,
        file::TensorFile,
        save::{hugging_face_folder, named_tensors},
    },
};

/// Where a run is; the best figure is the validation accuracy.
pub(super) type Progress = progress::Progress<()>;

/// Writes the model as a Hugging Face folder. What did not train is copied from `source` as it was read.
pub(super) fn save_model(folder: &Path, clip: &Clip, source: &Checkpoint) -> Result<()> {
    check_finite(folder, clip)?;
    replace_folder(folder, |partial| write_model(partial, clip, source))
}

/// Refuses weights that diverged since the loss was last looked at, before they are saved as `folder`.
fn check_finite(folder: &Path, clip: &Clip) -> Result<()> {
    let trained = clip.parameters.iter().filter(|(_, tensor)| tensor.requires_grad());
    match not_finite(trained.map(|(name, tensor)| (name.as_str(), tensor))) {
        None => Ok(()),
        Some(name) => Err(Error::data(format!("`{name}` is not finite any more: {} is not written", folder.display()))
            .hint("lower --learning-rate, or set --clip-norm 1")),
    }
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
    check_finite(folder, clip)?;
    checkpoints::write(folder, |partial| {
        write_model(partial, clip, source)?;
        let state = adam.state().map(|(name, tensor)| {
            let shape = tensor.size().iter().map(|size| *size as usize).collect();
            (name, shape, Box::new(move || host_values(tensor)) as Box<dyn Fn() -> Result<Vec<f32>>>)
        });
        named_tensors(&partial.join("optimizer.safetensors"), state.collect())?;
        json_file(&partial.join(PROGRESS), &serde_json::json!(progress))
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::OpenOptions;

    #[test]
    fn weights_that_are_not_finite_are_not_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("final");
        let source = Checkpoint::open("random:tiny", OpenOptions::default()).unwrap();
        let trained = |name: &str| name == "visual.proj";
        let clip = Clip::load(&source, tch::Device::Cpu, Kind::Float, trained).unwrap();
        save_model(&path, &clip, &source).unwrap();
        let before = fs_err::read(path.join("model.safetensors")).unwrap();
        tch::no_grad(|| drop(clip.parameters["visual.proj"].shallow_clone().fill_(f64::NAN)));
        let error = save_model(&path, &clip, &source).unwrap_err();
        assert!(error.to_string().starts_with("`visual.proj` is not finite any more"), "{error}");
        assert!(fs_err::read(path.join("model.safetensors")).unwrap() == before);
    }
}
