//! `social-reward diffusion verify`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::VerifyArgs;

#[cfg(feature = "torch")]
pub(crate) fn run(arguments: &VerifyArgs) -> Result<ExitCode> {
    use diffusion::verify::{Verdict, VerifyOptions, verify};
    use reward::{Error, device::Precision};

    use crate::{commands, progress::Progress, settings::layered};

    let settings: VerifyArgs = layered(arguments, arguments.config.as_deref())?;
    let Some(model) = settings.model else {
        return Err(Error::usage("--model is missing").hint("a diffusers folder, a single file or a hub id").into());
    };
    let precision = match settings.precision.as_deref() {
        None => None,
        Some("fp32") => Some(Precision::Fp32),
        Some("bf16") => Some(Precision::Bf16),
        Some(other) => return Err(Error::usage(format!("precision `{other}`: want fp32 or bf16")).into()),
    };
    let default = VerifyOptions::default();
    let options = VerifyOptions {
        lora: super::loras(&settings.lora)?,
        lora_scale: settings.lora_scale.unwrap_or(default.lora_scale),
        prompt: settings.prompt.unwrap_or(default.prompt),
        precision,
        device: commands::device(settings.compute.device, settings.compute.threads),
        seed: settings.compute.seed.unwrap_or(default.seed),
    };
    let report = verify(&model, &options, &Progress::new())?;
    let text = if arguments.json { serde_json::to_string_pretty(&report)? } else { report.to_string() };
    commands::print(&text)?;
    Ok(ExitCode::from(u8::from(report.verdict == Verdict::Mismatch)))
}

#[cfg(not(feature = "torch"))]
pub(crate) fn run(_: &VerifyArgs) -> Result<ExitCode> {
    Err(super::needs_libtorch())
}
