//! One file a command.

pub(crate) mod diffusion;
pub(crate) mod doctor;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod score;
pub(crate) mod train;
pub(crate) mod validate;

use std::{io::Write, num::NonZeroUsize};

use anyhow::Result;
use reward::{
    Error,
    clip::{
        config::{Activation, ClipConfig},
        tokenizer::Tokens,
    },
    data::{image::DecodeOptions, loader, preflight::OnBadImage},
    device::DeviceName,
    engine::EmbedOptions,
    weights::OpenOptions,
    world::{launch::Launch, shard::Shard},
};

use crate::{
    cli::{CommonArgs, ImageArgs},
    progress::Progress,
};

/// Writes data to stdout. A reader that has gone is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// The device to compute on. On a CPU, `threads` compute.
pub(crate) fn device(name: Option<DeviceName>, threads: Option<NonZeroUsize>) -> DeviceName {
    reward::threads::ask(threads);
    name.unwrap_or(DeviceName::Auto)
}

/// The part of the work that is this process's, which is what `--shard` says or that of its rank; and its number on its machine.
pub(crate) fn shard(asked: Option<Shard>) -> Result<(Shard, usize)> {
    Ok(match (asked, Launch::from_variables(|name| std::env::var(name).ok())?) {
        (Some(shard), _) => (shard, 0),
        (None, Some(Launch { rank, size, local_rank, local_size, .. })) => {
            reward::threads::share(local_size);
            (Shard { index: rank, count: size }, local_rank)
        }
        (None, None) => (Shard::WHOLE, 0),
    })
}

/// The activation of a flag or of a config's key.
pub(crate) fn activation(name: Option<&str>) -> Result<Option<Activation>> {
    match name {
        None => Ok(None),
        Some("quick-gelu") => Ok(Some(Activation::QuickGelu)),
        Some("gelu") => Ok(Some(Activation::Gelu)),
        Some(other) => Err(Error::usage(format!("activation `{other}`: want quick-gelu or gelu")).into()),
    }
}

/// Says how many prompts are longer than the model reads.
pub(crate) fn warn_of_cut_prompts(tokens: &[Tokens], progress: &Progress) {
    let cut = tokens.iter().filter(|tokens| tokens.truncated).count();
    if cut > 0 {
        progress.line(&format!("warning: {cut} prompt(s) are longer than the model reads and were cut"));
    }
}

impl CommonArgs {
    pub(crate) fn open_options(&self) -> Result<OpenOptions<'_>> {
        let (activation, weights) = (activation(self.activation.as_deref())?, self.weights.as_deref());
        Ok(OpenOptions { activation, seed: self.compute.seed.unwrap_or(0), weights, architecture: None })
    }
}

impl ImageArgs {
    /// How images are decoded, but for [`DecodeOptions::fast_for`].
    pub(crate) fn decode_options(&self) -> DecodeOptions {
        let default = DecodeOptions::default();
        DecodeOptions {
            max_pixels: self.max_pixels.unwrap_or(default.max_pixels),
            exif_rotate: self.exif_rotate.unwrap_or(false),
            ..default
        }
    }

    pub(crate) fn on_bad_image(&self) -> reward::Result<OnBadImage> {
        match self.on_bad_image.as_deref() {
            None | Some("stop") => Ok(OnBadImage::Stop),
            Some("skip") => Ok(OnBadImage::Skip),
            Some(other) => Err(Error::usage(format!("on_bad_image `{other}`: want stop or skip"))),
        }
    }

    pub(crate) fn embed_options(&self, batch_size: Option<usize>, clip: &ClipConfig) -> reward::Result<EmbedOptions> {
        let batch_size = batch_size.unwrap_or(32);
        if batch_size == 0 {
            return Err(Error::usage("batch_size = 0: want at least 1"));
        }
        let fast_for = self.fast_decode.unwrap_or(false).then_some(clip.image_size as u32);
        let decode = DecodeOptions { fast_for, ..self.decode_options() };
        let on_bad_image = self.on_bad_image()?;
        let workers = loader::workers(self.num_workers);
        Ok(EmbedOptions { batch_size, workers, decode, on_bad_image })
    }
}
