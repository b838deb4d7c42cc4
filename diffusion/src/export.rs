//! `diffusion export`: a model as a diffusers folder, adapters merged; a LoRA in the other layout.

use std::path::Path;

use reward::weights::file::TensorFile;

use crate::{
    Error, Result,
    config::{PRESETS, TextConfig},
    lora::{self, Base, Layers, Lora, LoraFile, LoraSpec},
    save,
    schedule::PredictionType,
    source::{Source, SourceOptions},
    text::TextEncoder,
    unet::Unet,
    vae::Vae,
    weights::{Stored, Weights},
};

/// The layout of a LoRA file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraFormat {
    /// PEFT's keys, as `load_lora_weights` reads them.
    Diffusers,
    /// kohya's keys, as web UIs read them.
    Kohya,
}

/// Writes the LoRA, or the sum of several, in another layout. Keys are held against the layers of `model` or, without one, of
/// every published architecture.
///
/// # Errors
/// Not a LoRA of such a model, or the disk is full or not writable.
pub fn convert(
    from: &[LoraSpec],
    model: Option<&str>,
    options: SourceOptions,
    format: LoraFormat,
    output: &Path,
) -> Result<()> {
    let title = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (lora, base) = match (model, from) {
        (Some(model), _) => {
            let source = Source::open(model, options)?;
            let layers = source.layers()?;
            (Lora::open_all(from, &layers, 1.0)?, Base::of_model(&layers, source.scheduler()?.prediction_type, title))
        }
        (None, []) => (Lora::default(), Base::default()),
        (None, [first, ..]) => {
            let lora = for_any_base(from)?;
            let base = Base::of_file(&first.path, &lora, title)?;
            (lora, base)
        }
    };
    if let Some(folder) = output.parent() {
        fs_err::create_dir_all(folder)?;
    }
    match format {
        LoraFormat::Diffusers => lora::diffusers(output, &lora),
        LoraFormat::Kohya => lora::kohya(output, &lora, &base),
    }
}

/// Reads LoRAs whose base is not named.
fn for_any_base(specs: &[LoraSpec]) -> Result<Lora> {
    let layers = |preset: &str| -> Result<Layers> {
        Source::open(&format!("random:{preset}"), SourceOptions::default())?.layers()
    };
    let files = specs.iter().map(|spec| Ok((LoraFile::open(&spec.path)?, spec.scale))).collect::<Result<Vec<_>>>()?;
    let mut first = None;
    for preset in PRESETS.iter().rev() {
        let layers = layers(preset)?;
        let fitted = files
            .iter()
            .try_fold(Lora::default(), |sum, (file, scale)| Ok::<_, Error>(sum.plus(file.fit(&layers, *scale)?)));
        match fitted {
            Ok(lora) => return Ok(lora),
            Err(error) => first = first.or(Some(error)),
        }
    }
    let first = first.map(|error| error.to_string()).unwrap_or_default();
    Err(Error::data(format!("{first} (nor for any other published base)"))
        .hint("--model names the base that it was trained on"))
}

/// Writes the model as a folder that `StableDiffusionPipeline.from_pretrained` opens, with LoRAs, each also at `lora_scale`, merged
/// into its weights, in fp32.
///
/// # Errors
/// The model or the LoRA does not load, there is something at `output`, or the disk is full or not writable.
pub fn folder(
    model: &str,
    options: SourceOptions,
    (lora, lora_scale): (&[LoraSpec], f64),
    precision: save::Precision,
    output: &Path,
) -> Result<()> {
    let source = Source::open(model, options)?;
    let lora = Lora::open_all(lora, &source.layers()?, lora_scale)?;
    write(&source, source.text_encoder()?, &lora, precision, output)
}

/// Writes the model `random:PRESET` as [`folder`] does, to be trained from scratch. Its text encoder is the text tower of the
/// CLIP in the Hugging Face folder `clip`, up to the preset's last block. That CLIP has to be of the preset's width. The model's
/// UNet is to predict v ("Progressive Distillation for Fast Sampling of Diffusion Models", Salimans and Ho, 2022,
/// <https://arxiv.org/abs/2202.00512>, section 4). Noisy latents, where a prompt matters, are a larger part of v than of ε.
///
/// # Errors
/// No such preset, a CLIP that does not fit or cannot be read, something at `output`, or a disk that is full or not writable.
pub fn untrained(preset: &str, seed: u64, clip: &Path, output: &Path) -> Result<()> {
    let options = SourceOptions { seed, prediction_type: Some(PredictionType::Velocity) };
    let source = Source::open(&format!("random:{preset}"), options)?;
    let file = TensorFile::open(&clip.join("model.safetensors"))?;
    let (config, _) = source.text_encoder()?;
    let beyond = |key: &str| {
        let block = key.strip_prefix("text_model.encoder.layers.").and_then(|rest| rest.split('.').next());
        block.and_then(|block| block.parse().ok()).is_some_and(|block: i64| block >= config.num_hidden_layers)
    };
    let tower = file.shapes().keys().filter(|key| key.starts_with("text_model.") && !beyond(key));
    let place = tower.map(|key| (key.clone(), Stored { file: 0, name: key.clone(), rows: None })).collect();
    let weights = Weights::from_files(format!("{} (text tower)", clip.display()), vec![file], place);
    write(&source, (config, weights), &Lora::default(), save::Precision::Full, output)
}

fn write(
    source: &Source,
    (config, weights): (TextConfig, Weights),
    lora: &Lora,
    precision: save::Precision,
    output: &Path,
) -> Result<()> {
    let text_encoder = TextEncoder::new(&config, weights)?;
    lora::merge(&text_encoder.parameters, &lora.text)?;
    let (config, weights) = source.unet()?;
    let unet = Unet::new(&config, weights)?;
    lora::merge(&unet.parameters, &lora.unet)?;
    let (config, weights) = source.vae()?;
    let vae = Vae::new(&config, weights)?;
    let (tokenizer, scheduler) = (source.tokenizer()?, source.scheduler()?);
    let pipeline = save::Pipeline {
        unet: &unet,
        vae: &vae,
        text_encoder: &text_encoder,
        tokenizer: &tokenizer,
        scheduler: &scheduler,
    };
    save::folder(output, &pipeline, precision)
}
