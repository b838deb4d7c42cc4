//! Diffusion-KTO: "Aligning Diffusion Models by Optimizing Human Utility", Li et al., 2024, <https://arxiv.org/abs/2404.04465>.
//! It learns from pictures that people liked or did not, without pairs and without a reward model. Remixed or not is such data.
//!
//! As published: β 1000 to 5000, AdamW at 1e-7 on the full UNet after 200 steps of warm-up. Four in five pictures of a batch are
//! liked, and a fifth of the prompts is left out. A picture that was preferred once counts as liked.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::{
    Algorithm, Data, Graph, Method, RewardUse, Round, Scene, Settings,
    denoising::{Noised, losses},
};
use crate::{
    Result,
    conditioning::Conditioning,
    noise::{self, Stream},
    objective::{Loss, numbers},
    policy::Policy,
    preference,
};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "kto",
    title: "pictures that people liked or did not, without pairs or rewards",
    reward: RewardUse::None,
    data: &[Data::Labels, Data::Triplets],
    beta: 2000.0,
    reads: &["labels", "training_file", "image_root", "beta", "utility", "prompt_dropout", "liked_share"],
    build: |settings| Box::new(Kto { settings: *settings }),
    ..Method::BACKPROP
};

/// Noise and noise levels that each held-out picture is looked at with.
const WATCHED: usize = 4;

/// Liked or not.
pub struct Kto {
    /// The hyper-parameters.
    pub settings: Settings,
}

impl Kto {
    fn round_of<'a>(&'a self, scene: &'a Scene<'a>, dropout: f64, draw: usize) -> Result<KtoRound<'a>> {
        let pictures = scene.pictures;
        let prompts = noise::with_dropout(scene.items.iter().map(|row| pictures.prompt(*row)), &scene.seeds, dropout);
        let mut round = KtoRound {
            settings: self.settings,
            scene,
            latents: scene.encoded(&scene.items)?,
            prompts: scene.embeddings.of(&prompts),
            draw,
            reference: Vec::new(),
            gains: Vec::new(),
            point: 0.0,
        };
        let errors = scene.micro_batches.run(scene.items.len(), |ranges| {
            let one = |images: &Range<usize>| {
                let reference = scene.policy.as_base(|base| Ok(round.errors(base, images.clone())))?;
                Ok([reference, round.errors(scene.policy, images.clone())])
            };
            tch::no_grad(|| ranges.iter().map(one).collect::<Result<Vec<_>>>())
        })?;
        let (mut gains, mut references) = (Vec::new(), Vec::new());
        for [reference, model] in errors {
            gains.extend(numbers(&preference::gain(&model, &reference))?);
            references.extend(numbers(&reference)?);
        }
        let world = scene.micro_batches.world();
        (round.gains, round.reference) = (world.numbers(&gains)?, world.numbers(&references)?);
        round.point = preference::reference_point(&Tensor::from_slice(&round.gains));
        Ok(round)
    }
}

impl Algorithm for Kto {
    fn graph(&self, settings: &Settings) -> Graph {
        Graph { items: settings.batch_size, predictions: 1, decoded: 0, guided: false }
    }

    fn round<'a>(&'a mut self, scene: &'a Scene<'a>, _: usize) -> Result<Box<dyn Round + 'a>> {
        Ok(Box::new(self.round_of(scene, self.settings.prompt_dropout, 0)?))
    }

    fn watched(&self, scene: &Scene) -> Result<Vec<(&'static str, f64)>> {
        if scene.items.is_empty() {
            return Ok(Vec::new());
        }
        let (mut loss, mut accuracies) = (0.0, Vec::new());
        for draw in 0..WATCHED {
            let round = self.round_of(scene, 0.0, draw)?;
            let losses = tch::no_grad(|| round.losses(&Tensor::from_slice(&round.gains), 0..scene.items.len()));
            loss += losses.mean(Kind::Double).double_value(&[]) / WATCHED as f64;
            let liked: Vec<bool> = scene.items.iter().map(|row| scene.pictures.is_liked(*row)).collect();
            accuracies.extend(accuracy(&round.gains, &liked));
        }
        let mut figures = vec![("held_out_loss", loss)];
        if !accuracies.is_empty() {
            figures.push(("held_out_implicit_accuracy", reward::statistics::mean(&accuracies)));
        }
        Ok(figures)
    }
}

/// How often a liked picture gained more than one that was not, a tie counting one half; nothing without both.
fn accuracy(gains: &[f64], liked: &[bool]) -> Option<f64> {
    let of = |class: bool| gains.iter().zip(liked).filter(move |(_, liked)| **liked == class).map(|(gain, _)| *gain);
    let right = |liked: f64, other: f64| match liked.total_cmp(&other) {
        std::cmp::Ordering::Equal => 0.5,
        order => f64::from(u8::from(order.is_gt())),
    };
    let pairs: Vec<f64> = of(true).flat_map(|liked| of(false).map(move |other| right(liked, other))).collect();
    (!pairs.is_empty()).then(|| reward::statistics::mean(&pairs))
}

struct KtoRound<'a> {
    settings: Settings,
    scene: &'a Scene<'a>,
    /// Pictures, `[B, C, h, w]`.
    latents: Tensor,
    prompts: Conditioning,
    /// Which noise of each seed.
    draw: usize,
    /// The base model's squared error of each picture.
    reference: Vec<f64>,
    /// What the model gained over it before the update.
    gains: Vec<f64>,
    /// The point that gains are measured from, of the whole batch.
    point: f64,
}

impl KtoRound<'_> {
    /// Squared errors of some pictures, `[N]`.
    fn errors(&self, policy: &Policy, images: Range<usize>) -> Tensor {
        let (start, count) = (images.start as i64, images.len() as i64);
        let seeds = &self.scene.seeds[images];
        let noised = Noised {
            latents: &self.latents.narrow(0, start, count),
            noise: &self.scene.noise(seeds, Stream::Fresh { draw: self.draw, step: 0 }),
            timesteps: &self.scene.levels(seeds, Stream::Level(self.draw)),
            prompts: &self.prompts.select(&(start..start + count).collect::<Vec<_>>()),
        };
        losses(policy.unet, &policy.schedule, policy.prediction, &noised, None)
    }

    /// Weighted losses of some pictures with these gains, `[N]`.
    fn losses(&self, gains: &Tensor, images: Range<usize>) -> Tensor {
        let rows = &self.scene.items[images];
        let sign = |row: &usize| if self.scene.pictures.is_liked(*row) { 1.0_f32 } else { -1.0 };
        let signs: Vec<f32> = rows.iter().map(sign).collect();
        let weights: Vec<f32> = rows.iter().map(|row| self.scene.pictures.weight(*row) as f32).collect();
        let on_device = |values: &[f32]| Tensor::from_slice(values).to_device(gains.device());
        let Settings { utility, beta, .. } = self.settings;
        preference::of_likes(gains, self.point, &on_device(&signs), utility, beta) * on_device(&weights)
    }
}

impl Round for KtoRound<'_> {
    fn items(&self, _: usize) -> usize {
        self.scene.items.len()
    }

    fn loss(&self, _: usize, items: Range<usize>) -> Result<Loss> {
        let reference: Vec<f32> = self.reference[items.clone()].iter().map(|error| *error as f32).collect();
        let model = self.errors(self.scene.policy, items.clone());
        let gains = preference::gain(&model, &Tensor::from_slice(&reference).to_device(model.device()));
        Ok(Loss::new(self.losses(&gains, items).mean(Kind::Float)).with(vec![("reference_point", self.point)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_is_of_pairs() {
        assert_eq!(accuracy(&[0.0; 3], &[true, true, false]), Some(0.5));
        // Of three liked pictures two gained more than the other, one as much.
        assert_eq!(accuracy(&[2.0, 1.0, 0.5, 0.5], &[true, true, true, false]), Some(2.5 / 3.0));
        assert_eq!(accuracy(&[1.0], &[true]), None);
    }
}
