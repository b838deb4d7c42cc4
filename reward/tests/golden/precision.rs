//! bf16 activations over frozen bf16 and trained fp32 weights.

use reward::{
    clip::model::{Clip, Depth, unit},
    train::trainable::{Trainable, TrainingMode},
};
use tch::{Device, Kind};

use crate::{
    fixture::{assert_close, values},
    models::models,
};

#[test]
fn bf16_is_near_fp32_and_trains_fp32_weights() {
    for model in models() {
        let mode = TrainingMode::VisualUpperLayersTextualUpperLayers;
        let trainable = Trainable::new(mode, &model.checkpoint.config);
        let clip = Clip::load(&model.checkpoint, Device::Cpu, Kind::BFloat16, |name| trainable.trains(name)).unwrap();
        let prompts = model.prompts();
        let (ids, ends) = clip.token_ids(&prompts.iter().collect::<Vec<_>>());
        let pixels = model.expected.torch("pixel_values");
        let prefix = tch::no_grad(|| clip.image_prefix(&pixels, trainable.image_depth));
        assert_eq!(prefix.kind(), Kind::BFloat16);
        let images = unit(&clip.image_suffix(&prefix, trainable.image_depth));
        let texts = unit(&clip.text_suffix(&ids, &ends, Depth::Input));
        for (what, got) in [("image_embeds_unit", &images), ("text_embeds_unit", &texts)] {
            assert_eq!(got.kind(), Kind::Float);
            assert_close(&format!("{} {what}", model.name), &values(got), &model.expected.floats(what), 3e-2);
        }
        (images.matmul(&texts.tr()) * clip.logit_scale()).square().mean(Kind::Float).backward();
        for (name, tensor) in &clip.parameters {
            assert_eq!(tensor.requires_grad(), trainable.trains(name), "{name}");
            if !tensor.requires_grad() {
                assert_eq!(tensor.kind(), Kind::BFloat16, "{name}");
                continue;
            }
            assert_eq!((tensor.kind(), tensor.grad().kind()), (Kind::Float, Kind::Float), "{name}");
            let gradient = values(&tensor.grad());
            assert!(gradient.iter().all(|value| value.is_finite()), "{} {name}", model.name);
            assert!(gradient.iter().any(|value| *value != 0.0), "{} {name}", model.name);
        }
    }
}
