//! Held-out images as an image set: `samples/step-N/` as `diffusion generate` would write it, for `evaluate --images samples`.

use std::path::Path;

use reward::{device::Precision, run::checkpoints::replace_folder};
use tch::{Kind, Tensor};

use super::{config::FinetuneConfig, grid, held_out::HeldOut, load::Parts};
use crate::{
    Result,
    generate::{GenerateConfig, plan::PlannedImage, table},
};

/// Writes `pixels` `[N, 3, H, W]`, 0..=1, of the held-out images. Prompts and seeds are those of every step, so that sets pair.
///
/// # Errors
/// The disk is full or not writable.
pub(super) fn write(
    folder: &Path,
    config: &FinetuneConfig,
    parts: &Parts,
    held_out: &HeldOut,
    pixels: &Tensor,
) -> Result<()> {
    let (guidance_scale, eta, _) = config.sampling();
    let settings = GenerateConfig {
        model: config.model.clone(),
        steps: config.sample_steps,
        guidance_scale,
        negative_prompt: config.negative_prompt.clone(),
        eta,
        scheduler: config.scheduler,
        precision: Some(if parts.kind == Kind::Float { Precision::Fp32 } else { Precision::Bf16 }),
        ..GenerateConfig::default()
    };
    let images = planned(parts.held_out.len(), &held_out.seeds);
    let [.., height, width] = pixels.size()[..] else { return Ok(()) };
    replace_folder(folder, |partial| {
        fs_err::create_dir(partial.join("images"))?;
        for (image, pixels) in images.iter().zip(pixels.unbind(0)) {
            fs_err::write(partial.join(image.path()), grid::encoded(&grid::picture(&pixels)?)?)?;
        }
        let size = (width as u32, height as u32);
        table::write(&partial.join("images.parquet"), &settings, &held_out.prompts, &images, size)
    })
}

/// The images of `prompts` in turn, with these seeds.
fn planned(prompts: usize, seeds: &[u64]) -> Vec<PlannedImage> {
    let image = |(number, seed): (usize, &u64)| PlannedImage {
        number,
        prompt_index: number % prompts,
        index: number.div_euclid(prompts),
        seed: *seed,
    };
    seeds.iter().enumerate().map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_in_turn() {
        let seen: Vec<_> = planned(2, &[7, 8, 9]).iter().map(|image| (image.path(), image.seed)).collect();
        let wanted = [("images/00000-0.png", 7), ("images/00001-0.png", 8), ("images/00000-1.png", 9)];
        assert_eq!(seen, wanted.map(|(path, seed)| (path.to_owned(), seed)));
    }
}
