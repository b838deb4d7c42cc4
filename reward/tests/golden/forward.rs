//! Both towers on libtorch: embeddings, the split where training starts, gradient checkpointing.

use reward::clip::model::{Clip, Depth, unit};
use tch::{Device, Kind, Tensor};

use crate::{
    fixture::{assert_close, relative_norm, values},
    models::{Model, models},
};

fn load(model: &Model) -> Clip {
    Clip::load(&model.checkpoint, Device::Cpu, Kind::Float, |_| false).unwrap()
}

#[test]
fn embeddings_are_those_of_the_python_libraries() {
    for model in models() {
        let clip = load(&model);
        let images = clip.image_suffix(&model.expected.torch("pixel_values"), Depth::Input);
        let close = |what: &str, got: &Tensor| {
            let want = model.expected.floats(what);
            assert_close(&format!("{} {what}", model.name), &values(got), &want, 1e-5);
        };
        close("image_embeds", &images);
        close("image_embeds_unit", &unit(&images));
        for prompts in [model.prompts(), model.padded_prompts()] {
            let (ids, ends) = clip.token_ids(&prompts.iter().collect::<Vec<_>>());
            let texts = clip.text_suffix(&ids, &ends, Depth::Input);
            close("text_embeds", &texts);
            close("text_embeds_unit", &unit(&texts));
            let logits = unit(&texts).matmul(&unit(&images).tr()) * clip.logit_scale();
            // exp(3.2) times the tolerance of an embedding.
            let want = model.expected.floats("logits_per_text");
            assert_close(&format!("{} logits", model.name), &values(&logits), &want, 2.5e-4);
        }
    }
}

#[test]
fn prefix_and_suffix_make_the_whole_at_every_depth() {
    for model in models() {
        let clip = load(&model);
        let pixels = model.expected.torch("pixel_values");
        let prompts = model.prompts();
        let (ids, ends) = clip.token_ids(&prompts.iter().collect::<Vec<_>>());
        let depths = |layers| [Depth::Input, Depth::Whole].into_iter().chain((0..=layers).map(Depth::Blocks));
        let images = values(&clip.image_suffix(&pixels, Depth::Input));
        for depth in depths(clip.config.vision.layers) {
            let split = clip.image_suffix(&clip.image_prefix(&pixels, depth), depth);
            assert_close(&format!("{} {depth:?}", model.name), &values(&split), &images, 1e-6);
        }
        let texts = values(&clip.text_suffix(&ids, &ends, Depth::Input));
        for depth in depths(clip.config.text.layers) {
            let split = clip.text_suffix(&clip.text_prefix(&ids, &ends, depth), &ends, depth);
            assert_close(&format!("{} {depth:?}", model.name), &values(&split), &texts, 1e-6);
        }
    }
}

#[test]
fn checkpointing_changes_no_gradient() {
    for model in models() {
        let gradients = |checkpointing| -> Vec<(String, Vec<f32>)> {
            let mut clip = Clip::load(&model.checkpoint, Device::Cpu, Kind::Float, |_| true).unwrap();
            clip.checkpointing = checkpointing;
            let prompts = model.prompts();
            let (ids, ends) = clip.token_ids(&prompts.iter().collect::<Vec<_>>());
            let texts = unit(&clip.text_suffix(&ids, &ends, Depth::Input));
            let images = unit(&clip.image_suffix(&model.expected.torch("pixel_values"), Depth::Input));
            let cosines = texts.matmul(&images.tr()) * clip.logit_scale();
            (&cosines * &cosines).mean(Kind::Float).backward();
            clip.parameters.iter().map(|(name, tensor)| (name.clone(), values(&tensor.grad()))).collect()
        };
        let largest = |values: &[f32]| values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        for ((name, plain), (_, checkpointed)) in gradients(false).iter().zip(&gradients(true)) {
            assert!(largest(plain) > 0.0, "{} {name}: no gradient", model.name);
            let error = relative_norm(checkpointed, plain);
            assert!(error <= 1e-6, "{} {name}: {error:e}", model.name);
        }
    }
}
