//! Writing a diffusers folder that `StableDiffusionPipeline.from_pretrained` opens.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use reward::files::{json_file, replace_file};
use safetensors::{Dtype, View};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result, folder::Component, schedule::SchedulerConfig, text::TextEncoder, tokenizer::Tokenizer, unet::Unet,
    vae::Vae, weights::Parameters,
};

/// The element type of saved weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// fp32.
    #[default]
    Full,
    /// fp16, half the size.
    Half,
}

/// What a saved folder is made of. Weights are written as they stand: adapters have to be merged before.
pub struct Pipeline<'a> {
    /// The UNet.
    pub unet: &'a Unet,
    /// The VAE.
    pub vae: &'a Vae,
    /// The text encoder.
    pub text_encoder: &'a TextEncoder,
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The noise schedule.
    pub scheduler: &'a SchedulerConfig,
}

/// Writes a diffusers folder at `path`, where nothing may be yet but an empty folder. `safety_checker` and `feature_extractor` are
/// null. The folder gets its name when it is complete.
///
/// # Errors
/// Something is at `path`; the disk is full or not writable, and then nothing is left behind.
pub fn folder(path: &Path, pipeline: &Pipeline, precision: Precision) -> Result<()> {
    if path.exists() && fs_err::read_dir(path)?.next().is_some() {
        return Err(Error::data(format!("{}: holds files already, want a new or an empty folder", path.display())));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(parent)?;
    // Removed when it is dropped, unless it was renamed.
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(parent)?;
    write(partial.path(), pipeline, precision)?;
    if path.exists() {
        fs_err::remove_dir(path)?;
    }
    share(partial.path())?;
    fs_err::rename(partial.path(), path)?;
    Ok(())
}

/// Temporary folders are their owner's only; a model folder is like any other.
#[cfg(unix)]
fn share(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let like = fs_err::metadata(folder.join(Component::Unet.folder()))?.permissions().mode();
    Ok(fs_err::set_permissions(folder, PermissionsExt::from_mode(like))?)
}

#[cfg(not(unix))]
fn share(_: &Path) -> Result<()> {
    Ok(())
}

fn write(folder: &Path, pipeline: &Pipeline, precision: Precision) -> Result<()> {
    let Pipeline { unet, vae, text_encoder, tokenizer, scheduler } = pipeline;
    model(folder, Component::Unet, &unet.config.to_json(), &unet.parameters, precision)?;
    model(folder, Component::Vae, &vae.config.to_json(), &vae.parameters, precision)?;
    model(folder, Component::TextEncoder, &text_encoder.config.to_json(), &text_encoder.parameters, precision)?;
    tokenizer.write_files(&folder.join("tokenizer"))?;
    let mut config = scheduler.to_json();
    if scheduler.class_name().is_none() {
        config["_class_name"] = "DDIMScheduler".into();
    }
    let class = config["_class_name"].clone();
    fs_err::create_dir_all(folder.join("scheduler"))?;
    json_file(&folder.join("scheduler/scheduler_config.json"), &config)?;
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", class],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    json_file(&folder.join("model_index.json"), &index)
}

/// Writes `config.json` and the weights of one model into its folder below `folder`, one tensor at a time.
///
/// # Errors
/// The disk is full or not writable; what was there before stays.
pub fn model(
    folder: &Path,
    component: Component,
    config: &Value,
    parameters: &Parameters,
    precision: Precision,
) -> Result<()> {
    let folder = folder.join(component.folder());
    fs_err::create_dir_all(&folder)?;
    json_file(&folder.join("config.json"), config)?;
    let kind = match precision {
        Precision::Full => Kind::Float,
        Precision::Half => Kind::Half,
    };
    let tensors = parameters.tensors.iter().map(|(key, tensor)| (key.clone(), Saved::new(tensor, kind)));
    tensor_file(&folder.join(component.weight_files()[0]), tensors.collect(), HashMap::new())
}

/// Writes named tensors as safetensors through a temporary sibling.
///
/// # Errors
/// The disk is full or not writable; what was there before stays.
pub(crate) fn tensor_file(
    path: &Path,
    tensors: Vec<(String, Saved)>,
    mut metadata: HashMap<String, String>,
) -> Result<()> {
    metadata.insert("format".to_owned(), "pt".to_owned());
    replace_file(path, |partial| {
        safetensors::serialize_to_file(tensors, Some(metadata), partial)
            .map_err(|error| Error::data(format!("cannot write {}", path.display())).caused_by(error))?;
        sort_metadata(partial)
    })
}

/// Brings the metadata of a safetensors file in order, in place. The writer leaves them in another order each time, and equal
/// runs are to write equal files.
fn sort_metadata(path: &Path) -> Result<()> {
    let mut file = fs_err::OpenOptions::new().read(true).write(true).open(path)?;
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size) as usize;
    let mut header = vec![0; size];
    file.read_exact(&mut header)?;
    let broken = |error| Error::data(format!("{}: header", path.display())).caused_by(error);
    let mut parsed: Value = serde_json::from_slice(&header).map_err(broken)?;
    if let Some(metadata) = parsed["__metadata__"].as_object_mut() {
        metadata.sort_keys();
    }
    // The same bytes in another order, so of the same length; the blanks that the header may end in stay.
    file.seek(SeekFrom::Start(8))?;
    Ok(file.write_all(parsed.to_string().as_bytes())?)
}

/// A tensor that is copied from its device when its turn to be written comes.
pub(crate) struct Saved {
    tensor: Tensor,
    shape: Vec<usize>,
    kind: Kind,
}

impl Saved {
    /// `kind`: fp32 or fp16.
    pub(crate) fn new(tensor: &Tensor, kind: Kind) -> Self {
        let shape = tensor.size().into_iter().map(|size| size as usize).collect();
        Self { tensor: tensor.shallow_clone(), shape, kind }
    }
}

impl View for Saved {
    fn dtype(&self) -> Dtype {
        if self.kind == Kind::Half { Dtype::F16 } else { Dtype::F32 }
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let tensor = self.tensor.detach().to_device(Device::Cpu).to_kind(self.kind).contiguous();
        let mut bytes = vec![0; self.data_len()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        Cow::Owned(bytes)
    }
    fn data_len(&self) -> usize {
        self.tensor.numel() * self.kind.elt_size_in_bytes()
    }
}
