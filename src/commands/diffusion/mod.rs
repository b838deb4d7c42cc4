//! `social-reward diffusion …`.

pub(crate) mod export;
pub(crate) mod finetune;
pub(crate) mod generate;
pub(crate) mod verify;

/// The LoRAs of a command line or a config file.
#[cfg(feature = "torch")]
fn loras(given: &Option<Vec<String>>) -> anyhow::Result<Vec<diffusion::lora::LoraSpec>> {
    Ok(given.iter().flatten().map(|text| text.parse()).collect::<reward::Result<_>>()?)
}

#[cfg(not(feature = "torch"))]
fn needs_libtorch() -> anyhow::Error {
    reward::Error::usage("this is the portable build: it scores and validates, but has no Stable Diffusion")
        .hint("`make setup`, then build with default features")
        .into()
}
