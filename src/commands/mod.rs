//! One file a command.

pub(crate) mod diffusion;
pub(crate) mod doctor;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod score;
pub(crate) mod train;
pub(crate) mod validate;

use std::io::Write;

use anyhow::Result;
use reward::{
    Error,
    clip::config::{Activation, ClipConfig},
    data::{image::DecodeOptions, loader, preflight::OnBadImage},
    device::DeviceName,
    score::EmbedOptions,
    weights::OpenOptions,
};

use crate::cli::{CommonArgs, ImageArgs};

/// Writes data to stdout. A reader that has gone is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// The device to compute on; opens libtorch's CUDA half where it may be needed.
pub(crate) fn device(name: Option<DeviceName>) -> DeviceName {
    let name = name.unwrap_or(DeviceName::Auto);
    #[cfg(feature = "torch")]
    if name != DeviceName::Cpu {
        crate::cuda::prepare();
    }
    name
}

impl CommonArgs {
    pub(crate) fn open_options(&self) -> Result<OpenOptions<'static>> {
        let activation = match self.activation.as_deref() {
            None => None,
            Some("quick-gelu") => Some(Activation::QuickGelu),
            Some("gelu") => Some(Activation::Gelu),
            Some(other) => {
                return Err(Error::usage(format!("activation `{other}`: want quick-gelu or gelu")).into());
            }
        };
        Ok(OpenOptions { activation, seed: self.seed.unwrap_or(0), architecture: None })
    }
}

impl ImageArgs {
    pub(crate) fn embed_options(&self, batch_size: Option<usize>, clip: &ClipConfig) -> Result<EmbedOptions> {
        let batch_size = batch_size.unwrap_or(32);
        if batch_size == 0 {
            return Err(Error::usage("batch_size = 0: want at least 1").into());
        }
        let default = DecodeOptions::default();
        let decode = DecodeOptions {
            max_pixels: self.max_pixels.unwrap_or(default.max_pixels),
            exif_rotate: self.exif_rotate.unwrap_or(false),
            fast_for: self.fast_decode.unwrap_or(false).then_some(clip.image_size as u32),
        };
        let on_bad_image = match self.on_bad_image.as_deref() {
            None | Some("stop") => OnBadImage::Stop,
            Some("skip") => OnBadImage::Skip,
            Some(other) => return Err(Error::usage(format!("on_bad_image `{other}`: want stop or skip")).into()),
        };
        let workers = loader::workers(self.num_workers);
        Ok(EmbedOptions { batch_size, workers, decode, on_bad_image })
    }
}
