//! Warnings before a run that makes its own images: sizes and models on which tuning against a reward is known to fail.

use reward::event::{Event, Observer};

use super::{config::FinetuneConfig, models::Models};
use crate::{Result, source::Source};

/// Scheduler classes of diffusers' for consistency-distilled models.
const FEW_STEP_SCHEDULERS: [&str; 2] = ["LCMScheduler", "TCDScheduler"];

/// What the names of distilled models have as a word.
const FEW_STEP_WORDS: [&str; 3] = ["turbo", "lcm", "lightning"];

/// Warns of what is known to fail with the rewards of `config`; random weights are for trials, and never warned of.
///
/// # Errors
/// As [`Source::scheduler`].
pub(super) fn warn(config: &FinetuneConfig, source: &Source, models: &Models, observer: &dyn Observer) -> Result<()> {
    if !config.rewarded() || source.is_random() {
        return Ok(());
    }
    let [_, height, width] = models.latents;
    let small = below_native([height, width], models.unet.config.sample_size, models.vae.config.factor());
    let distilled = distilled(source.model(), source.scheduler()?.class_name());
    small.into_iter().chain(distilled).for_each(|text| observer.event(&Event::Warning(&text)));
    Ok(())
}

/// A warning where latents are smaller than those the UNet was trained on, both as height and width; `factor`: pixels of an
/// image for one of its latents.
fn below_native(latents: [i64; 2], native: [i64; 2], factor: i64) -> Option<String> {
    let [height, width] = latents.map(|side| side * factor);
    let [native_height, native_width] = native.map(|side| side * factor);
    (height < native_height || width < native_width).then(|| {
        format!(
            "height {height} and width {width} are below the model's own {native_height} and {native_width}: tuning \
             against a reward at a smaller size collapses into black or noisy images; leave height and width out"
        )
    })
}

/// A warning where the scheduler's class or a word of the model's own name says that a model was distilled to few steps.
fn distilled(model: &str, scheduler: Option<&str>) -> Option<String> {
    let by_scheduler = scheduler.filter(|class| FEW_STEP_SCHEDULERS.contains(class));
    let sign = match by_scheduler {
        Some(class) => format!("its scheduler is {class}"),
        None => format!("its name has `{}`", few_step_word(model)?),
    };
    Some(format!(
        "{model} seems to be distilled to few steps ({sign}): reinforcement learning over many steps fails on such models; \
         tune the model that it was distilled from"
    ))
}

/// The word that says so in the last part of a path or hub id. Hyper-SD counts too, other hypers do not.
fn few_step_word(model: &str) -> Option<String> {
    let name = model.trim_end_matches('/').rsplit('/').next()?.to_lowercase();
    let words: Vec<&str> = name.split(|letter: char| !letter.is_alphanumeric()).collect();
    let known = words.iter().find(|word| FEW_STEP_WORDS.contains(word)).map(|word| (*word).to_owned());
    let hyper =
        || words.windows(2).find(|pair| pair[0] == "hyper" && pair[1].starts_with("sd")).map(|pair| pair.join("-"));
    known.or_else(hyper)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stable Diffusion 1.5: latents of 64, 8 pixels each, are 512 pixels.
    #[test]
    fn a_side_below_the_models_own_is_warned_of() {
        for fits in [[64, 64], [64, 96], [128, 64]] {
            assert_eq!(below_native(fits, [64, 64], 8), None, "{fits:?}");
        }
        for small in [[32, 32], [63, 64], [64, 63], [128, 32]] {
            assert!(below_native(small, [64, 64], 8).is_some(), "{small:?}");
        }
        let text = below_native([32, 96], [64, 64], 8).unwrap();
        assert!(text.starts_with("height 256 and width 768 are below the model's own 512 and 512: "), "{text}");
    }

    #[test]
    fn a_distilled_model_is_known_by_its_scheduler_or_its_name() {
        let text = distilled("models/mine", Some("LCMScheduler")).unwrap();
        assert!(
            text.starts_with("models/mine seems to be distilled to few steps (its scheduler is LCMScheduler): "),
            "{text}"
        );
        assert!(distilled("models/mine", Some("TCDScheduler")).is_some());
        for (model, word) in [
            ("stabilityai/sd-turbo", "turbo"),
            ("models/SD-Turbo/", "turbo"),
            ("SimianLuo/LCM_Dreamshaper_v7", "lcm"),
            ("checkpoints/realistic-8step.Lightning.safetensors", "lightning"),
            ("Hyper-SD15-4steps.safetensors", "hyper-sd15"),
        ] {
            let text = distilled(model, Some("EulerDiscreteScheduler")).unwrap();
            assert!(text.contains(&format!("its name has `{word}`")), "{text}");
        }
        for model in
            ["sd-legacy/stable-diffusion-v1-5", "turbo/sd15", "turbocharged", "hyper-realistic.safetensors", "/", ""]
        {
            assert_eq!(distilled(model, Some("PNDMScheduler")), None, "{model}");
            assert_eq!(distilled(model, None), None, "{model}");
        }
    }
}
