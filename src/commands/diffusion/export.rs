//! `social-reward diffusion export`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::DiffusionExportArgs;

#[cfg(feature = "torch")]
pub(crate) fn run(arguments: &DiffusionExportArgs) -> Result<ExitCode> {
    use diffusion::{
        export::{LoraFormat, convert, folder},
        save::Precision,
    };
    use reward::{Error, files, output};

    use crate::{commands, progress::Progress, settings::layered};

    let settings: DiffusionExportArgs = layered(arguments, arguments.config.as_deref())?;
    let missing = |flag: &str, what: &str| Error::usage(format!("--{flag} is missing: {what}"));
    let Some(output) = settings.output else {
        return Err(missing("output", "a folder or, for a LoRA, a file that ends in .safetensors").into());
    };
    let options = diffusion::source::SourceOptions {
        seed: settings.compute.seed.unwrap_or(0),
        prediction_type: settings.prediction_type.as_deref().map(str::parse).transpose()?,
    };
    let lora = super::loras(&settings.lora)?;
    if output.extension().is_some_and(|extension| extension == "safetensors") {
        if lora.is_empty() {
            return Err(missing("lora", "what a .safetensors --output is converted from").into());
        }
        let format = match settings.format.as_deref() {
            Some("kohya") => LoraFormat::Kohya,
            Some("diffusers") => LoraFormat::Diffusers,
            Some(other) => return Err(Error::usage(format!("format `{other}`: want diffusers or kohya")).into()),
            None => return Err(missing("format", "diffusers or kohya, the layout to convert to").into()),
        };
        if settings.precision.is_some() {
            return Err(Error::usage("precision: a LoRA is written in fp32").into());
        }
        if settings.lora_scale.is_some() {
            return Err(Error::usage("lora_scale: a conversion keeps the LoRA's own scale")
                .hint("--lora PATH@SCALE changes it; without .safetensors in --output, the LoRA is merged into --model")
                .into());
        }
        output::check_new(&output)?;
        convert(&lora, settings.model.as_deref(), options, format, &output)?;
    } else {
        let Some(model) = settings.model else {
            return Err(missing("model", "what to write as a folder")
                .hint("a LoRA alone is converted if --output ends in .safetensors")
                .into());
        };
        if settings.format.is_some() {
            return Err(Error::usage("format: only a LoRA that is converted has one")
                .hint("an --output that ends in .safetensors converts it")
                .into());
        }
        let precision = match settings.precision.as_deref() {
            None | Some("fp32") => Precision::Full,
            Some("fp16") => Precision::Half,
            Some(other) => return Err(Error::usage(format!("precision `{other}`: want fp32 or fp16")).into()),
        };
        if lora.is_empty() && settings.lora_scale.is_some() {
            return Err(Error::usage("lora_scale: there is no --lora to scale").into());
        }
        let scale = settings.lora_scale.filter(|scale| !scale.is_finite());
        if let Some(scale) = scale {
            return Err(Error::usage(format!("lora_scale = {scale}: want a finite number")).into());
        }
        output::check_new(&output)?;
        diffusion::source::Source::open(&model, options)?.tell(&Progress::new())?;
        let lora = (lora.as_slice(), settings.lora_scale.unwrap_or(1.0));
        folder(&model, options, lora, precision, &files::followed(&output)?)?;
    }
    commands::print(&output.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "torch"))]
pub(crate) fn run(_: &DiffusionExportArgs) -> Result<ExitCode> {
    Err(super::needs_libtorch())
}
