//! The supervised loss that diffusion models are trained with (Ho et al., 2020, <https://arxiv.org/abs/2006.11239>, equation 14).
//! It is the mean squared error of the prediction for an image noised to a random level. It trains a small model from scratch,
//! and is the pre-training term of ReFL's paper.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::{Algorithm, Data, Graph, Method, RewardUse, Round, Scene, Settings};
use crate::{
    Result,
    conditioning::Conditioning,
    noise::{self, Stream},
    objective::Loss,
    schedule::{NoiseSchedule, PredictionType},
    unet::Unet,
};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "denoising",
    title: "the supervised loss on pictures, without a reward",
    reward: RewardUse::None,
    data: &[Data::Pictures],
    reads: &["images", "vae_steps", "snr_gamma", "prompt_dropout"],
    build: |settings| Box::new(Denoising { snr_gamma: settings.snr_gamma, prompt_dropout: settings.prompt_dropout }),
    ..Method::BACKPROP
};

/// The supervised method: pictures, noised to a random level, are predicted.
pub struct Denoising {
    /// γ of min-SNR weighting, if it is asked for.
    pub snr_gamma: Option<f64>,
    /// Share of pictures whose prompt is left out, so that guidance works.
    pub prompt_dropout: f64,
}

impl Algorithm for Denoising {
    fn graph(&self, settings: &Settings) -> Graph {
        Graph { items: settings.batch_size, predictions: 1, decoded: 0, guided: false }
    }

    fn round<'a>(&'a mut self, scene: &'a Scene<'a>, _: usize) -> Result<Box<dyn Round + 'a>> {
        Ok(Box::new(Pass { method: self, scene }))
    }

    /// Each row of `scene` at noise and noise levels that are always the same, with its prompt.
    fn watched(&self, scene: &Scene) -> Result<Vec<(&'static str, f64)>> {
        let whole = Self { prompt_dropout: 0.0, ..*self };
        let pass = Pass { method: &whole, scene };
        let one = |row: usize| Ok(tch::no_grad(|| pass.loss(0, row..row + 1))?.loss.double_value(&[]));
        let losses = (0..scene.items.len()).map(one).collect::<Result<Vec<f64>>>()?;
        Ok((!losses.is_empty()).then(|| ("held_out_loss", reward::statistics::mean(&losses))).into_iter().collect())
    }
}

/// One pass over the pictures of a scene.
struct Pass<'a> {
    method: &'a Denoising,
    scene: &'a Scene<'a>,
}

impl Round for Pass<'_> {
    fn items(&self, _: usize) -> usize {
        self.scene.items.len()
    }

    fn loss(&self, _: usize, images: Range<usize>) -> Result<Loss> {
        let Scene { policy, objective, pictures, embeddings, .. } = self.scene;
        let (rows, seeds) = (&self.scene.items[images.clone()], &self.scene.seeds[images]);
        let (vae, device) = (objective.vae, policy.negative.device());
        let latents = tch::no_grad(|| -> Result<_> {
            let (mean, log_variance) = vae.encode(&pictures.pixels(rows, device)?);
            let noise = self.scene.noise(seeds, Stream::Posterior);
            let latents = (mean + (log_variance * 0.5).exp() * noise) * vae.config.scaling_factor;
            // A frozen VAE computes channels last and hands that on, a UNet whose weights train does not: its GroupNorms
            // would take several times as long.
            Ok(latents.contiguous())
        })?;
        let prompts = rows.iter().map(|row| pictures.prompt(*row));
        let prompts = noise::with_dropout(prompts, seeds, self.method.prompt_dropout);
        let noised = Noised {
            latents: &latents,
            noise: &self.scene.noise(seeds, Stream::Noise),
            timesteps: &self.scene.levels(seeds, Stream::Timestep),
            prompts: &embeddings.of(&prompts),
        };
        let losses = losses(policy.unet, &policy.schedule, policy.prediction, &noised, self.method.snr_gamma);
        Ok(Loss::new(losses.mean(Kind::Float)))
    }
}

/// What the loss is taken over.
pub struct Noised<'a> {
    /// Clean latents times the VAE's scaling factor, `[B, C, h, w]`.
    pub latents: &'a Tensor,
    /// Noise of unit variance, the same shape.
    pub noise: &'a Tensor,
    /// Training steps, `[B]` int64.
    pub timesteps: &'a Tensor,
    /// The prompts, B of them.
    pub prompts: &'a Conditioning,
}

/// The loss of each image, `[B]`, fp32.
///
/// `snr_gamma` is γ of min-SNR weighting ("Efficient Diffusion Training via Min-SNR Weighting Strategy", Hang et al., 2023,
/// <https://arxiv.org/abs/2303.09556>, section 3.4). The weight is min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v.
pub fn losses(
    unet: &Unet,
    schedule: &NoiseSchedule,
    prediction: PredictionType,
    noised: &Noised<'_>,
    snr_gamma: Option<f64>,
) -> Tensor {
    let level = schedule.levels(noised.timesteps, noised.latents.device());
    let x = level.add_noise(noised.latents, noised.noise);
    let output = unet.forward(&x, noised.timesteps, noised.prompts);
    let target = level.target(prediction, noised.latents, noised.noise);
    let losses = (output - target).square().flatten(1, -1).mean_dim([1_i64].as_slice(), false, Kind::Float);
    let Some(gamma) = snr_gamma else { return losses };
    let snr = (level.signal / level.noise).square().flatten(0, -1);
    let capped = snr.clamp_max(gamma);
    losses
        * match prediction {
            PredictionType::Epsilon => capped / snr,
            PredictionType::Velocity => capped / (snr + 1.0),
            PredictionType::Sample => capped,
        }
}
