//! The supervised loss that diffusion models are trained with (Ho et al., 2020, <https://arxiv.org/abs/2006.11239>, equation 14):
//! the mean squared error of the prediction for an image noised to a random level. It trains a small model from scratch, and
//! is the pre-training term of ReFL's paper.

use tch::{Kind, Tensor};

use crate::{
    schedule::{NoiseSchedule, PredictionType},
    unet::Unet,
};

/// What the loss is taken over.
pub struct Noised<'a> {
    /// Clean latents times the VAE's scaling factor, `[B, C, h, w]`.
    pub latents: &'a Tensor,
    /// Of unit variance, the same shape.
    pub noise: &'a Tensor,
    /// Training steps, `[B]` int64.
    pub timesteps: &'a Tensor,
    /// The prompts' hidden states, `[B, T, width]`.
    pub context: &'a Tensor,
}

/// The loss of each image, `[B]`, fp32.
///
/// `snr_gamma` is γ of min-SNR weighting ("Efficient Diffusion Training via Min-SNR Weighting Strategy", Hang et al., 2023,
/// <https://arxiv.org/abs/2303.09556>, section 3.4): min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v.
pub fn losses(
    unet: &Unet,
    schedule: &NoiseSchedule,
    prediction: PredictionType,
    noised: &Noised<'_>,
    snr_gamma: Option<f64>,
) -> Tensor {
    let level = schedule.levels(noised.timesteps, noised.latents.device());
    let x = level.add_noise(noised.latents, noised.noise);
    let output = unet.forward(&x, noised.timesteps, noised.context);
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
