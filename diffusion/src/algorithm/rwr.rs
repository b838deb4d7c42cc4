//! Supervised learning on the model's own images: reward-weighted regression, and the loop that it shares with best-of-n. See
//! "Training Diffusion Models with Reinforcement Learning", Black et al., 2023, <https://arxiv.org/abs/2305.13301>, section 4.2.
//!
//! As its authors have it: weights softmax(r / τ) with τ = 1/5 over many thousands of images. There are 5 passes over them, on
//! the full UNet at 1e-5. Their code guides the prediction within the loss, which is not the loss of a denoiser; here it is not
//! guided.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::{
    Algorithm, Graph, Method, RewardUse, Round, Samplers, Scene, Settings,
    denoising::{Noised, losses},
    own_samples,
};
use crate::{
    Result, advantage,
    conditioning::Conditioning,
    noise::Stream,
    objective::{Loss, Scores},
};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "rwr",
    title: "the supervised loss on own images, weighted by their reward",
    reward: RewardUse::Score,
    samplers: Samplers::Any,
    guidance_scale: 5.0,
    reads: &["inner_epochs", "minibatches", "temperature", "scheduler"],
    build: |settings| {
        let temperature = settings.temperature;
        Box::new(Supervised { settings: *settings, weigh: Box::new(move |scores| softmax(scores, temperature)) })
    },
    ..Method::BACKPROP
};

/// The weight of each image, from the scores of all.
pub type Weigh = Box<dyn Fn(&[f64]) -> Vec<f64>>;

/// Supervised learning on own images.
pub struct Supervised {
    /// The hyper-parameters.
    pub settings: Settings,
    /// What an image counts; those that count nothing do not train.
    pub weigh: Weigh,
}

/// Softmax of the standardised scores over τ, times their number: the mean weight is 1.
pub fn softmax(scores: &[f64], temperature: f64) -> Vec<f64> {
    let (centre, unit) = (reward::statistics::mean(scores), advantage::spread(scores));
    let unit = if unit > 0.0 { unit } else { 1.0 };
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let power = |score: f64| ((score - centre) / unit - (largest - centre) / unit) / temperature;
    let powers: Vec<f64> = scores.iter().map(|score| power(*score).exp()).collect();
    let mean = reward::statistics::mean(&powers);
    powers.iter().map(|power| power / mean).collect()
}

impl Algorithm for Supervised {
    fn graph(&self, settings: &Settings) -> Graph {
        let items = settings.batch_size.div_ceil(settings.minibatches);
        Graph { items, predictions: 1, decoded: 0, guided: false }
    }

    fn updates(&self) -> usize {
        self.settings.inner_epochs * self.settings.minibatches
    }

    fn round<'a>(&'a mut self, scene: &'a Scene<'a>, _: usize) -> Result<Box<dyn Round + 'a>> {
        let (latents, scores) = own_samples::images(scene)?;
        let weights = (self.weigh)(&scores.total);
        let images: Vec<usize> = (0..weights.len()).filter(|image| weights[*image] > 0.0).collect();
        let size = images.len().div_ceil(self.settings.minibatches);
        let parts: Vec<Vec<usize>> = images.chunks(size).map(<[usize]>::to_vec).collect();
        Ok(Box::new(SupervisedRound { scene, latents, weights, parts, prompts: scene.conditioning(), scores }))
    }
}

struct SupervisedRound<'a> {
    scene: &'a Scene<'a>,
    /// Finished images, `[B, C, h, w]`.
    latents: Tensor,
    weights: Vec<f64>,
    /// Images of each optimizer step of a pass.
    parts: Vec<Vec<usize>>,
    prompts: Conditioning,
    scores: Scores,
}

impl SupervisedRound<'_> {
    fn images(&self, update: usize) -> &[usize] {
        self.parts.get(update % self.parts.len().max(1)).map_or(&[], Vec::as_slice)
    }
}

impl Round for SupervisedRound<'_> {
    fn items(&self, update: usize) -> usize {
        self.images(update).len()
    }

    fn loss(&self, update: usize, items: Range<usize>) -> Result<Loss> {
        let policy = self.scene.policy;
        let images = &self.images(update)[items];
        let seeds: Vec<u64> = images.iter().map(|image| self.scene.seeds[*image]).collect();
        let rows: Vec<i64> = images.iter().map(|image| *image as i64).collect();
        let weights: Vec<f32> = images.iter().map(|image| self.weights[*image] as f32).collect();
        let device = self.latents.device();
        let noised = Noised {
            latents: &self.latents.index_select(0, &Tensor::from_slice(&rows).to_device(device)),
            noise: &self.scene.noise(&seeds, Stream::Fresh { draw: update, step: 0 }),
            timesteps: &self.scene.levels(&seeds, Stream::Level(update)),
            prompts: &self.prompts.select(&rows),
        };
        let losses = losses(policy.unet, &policy.schedule, policy.prediction, &noised, None);
        Ok(Loss::new((losses * Tensor::from_slice(&weights).to_device(device)).mean(Kind::Float)))
    }

    fn rewards(&self) -> &[Vec<f64>] {
        &self.scores.raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_by_hand() {
        // Standardised to −1 and 1: e⁻¹ and e over τ = 1, of which the mean is 1.
        let weights = softmax(&[3.0, 5.0], 1.0);
        let (low, high) = ((-1.0_f64).exp(), 1.0_f64.exp());
        assert!(
            (weights[0] - 2.0 * low / (low + high)).abs() < 1e-12
                && (weights[1] - 2.0 * high / (low + high)).abs() < 1e-12
        );
        assert_eq!(softmax(&[2.0; 3], 0.2), [1.0; 3]);
        // However far apart, none is NaN.
        assert_eq!(softmax(&[0.0, 1e9], 1e-3), [0.0, 2.0]);
    }
}
