//! Euler's method in sigma. It is algorithm 2 of "Elucidating the Design Space of Diffusion-Based Generative Models", Karras et
//! al., 2022, arXiv 2206.00364, without churn or second-order correction.

use tch::{Kind, Tensor};

use super::{
    SchedulerConfig, Step,
    config::Spacing,
    prediction::{Level, PredictionType},
    sigmas::{self, FinalSigma},
    spacing,
    tables::NoiseSchedule,
};
use crate::Result;

/// Latents on the scale x = x₀ + sigma · ε.
#[derive(Debug, Clone)]
pub(super) struct Euler {
    prediction: PredictionType,
    pub(super) timesteps: Vec<f64>,
    /// One more than timesteps.
    pub(super) sigmas: Vec<f64>,
    pub(super) init_noise_sigma: f64,
}

impl Euler {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let keys = config.keys();
        keys.not_supported("use_exponential_sigmas")?;
        keys.not_supported("use_beta_sigmas")?;
        keys.choice("interpolation_type", (), &[("linear", ())])?;
        keys.choice("timestep_type", (), &[("discrete", ())])?;
        let last_sigma = FinalSigma::read(&keys)?;
        let mut sampler = Self::plain(config, steps)?;
        let table = NoiseSchedule::with_finite_sigmas(config).sigmas();
        let mut levels: Vec<f64> =
            sampler.timesteps.iter().map(|timestep| sigmas::interpolate(&table, *timestep)).collect();
        if keys.flag("use_karras_sigmas", false)? {
            levels = sigmas::karras(&keys, levels[steps - 1], levels[0], steps)?;
            sampler.timesteps = sigmas::rounded(levels.iter().map(|sigma| sigmas::to_timestep(*sigma, &table)));
        }
        sampler.sigmas = sigmas::rounded(levels.into_iter().chain([last_sigma.value(&table)]));
        sampler.init_noise_sigma = init_noise_sigma(config, &sampler.sigmas);
        Ok(sampler)
    }

    /// Sigmas at evenly spaced timesteps, then 0: what the ancestral sampler shares.
    pub(super) fn plain(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let train = config.num_train_timesteps;
        let timesteps = match config.timestep_spacing.unwrap_or(Spacing::Linspace) {
            Spacing::Leading => spacing::leading(steps, train.div_euclid(steps), config.steps_offset),
            Spacing::Trailing => spacing::trailing(train, train, steps),
            // Not rounded, but to fp32.
            Spacing::Linspace => sigmas::rounded(spacing::linspace(train - 1, steps)),
        };
        let timesteps = spacing::within(config, timesteps)?;
        let table = NoiseSchedule::with_finite_sigmas(config).sigmas();
        let levels = timesteps.iter().map(|timestep| sigmas::interpolate(&table, *timestep));
        let sigmas = sigmas::rounded(levels.chain([0.0]));
        let init_noise_sigma = init_noise_sigma(config, &sigmas);
        Ok(Self { prediction: config.prediction_type, timesteps, sigmas, init_noise_sigma })
    }

    /// The model sees latents of unit variance: x / sqrt(sigma² + 1).
    pub(super) fn scale_input(&self, x: &Tensor, index: usize) -> Tensor {
        x.to_kind(Kind::Float) * sigmas::alpha_bar(self.sigmas[index]).sqrt()
    }

    /// x₀, and dx/dsigma = (x − x₀) / sigma.
    pub(super) fn derivative(&self, index: usize, output: &Tensor, x: &Tensor) -> (Tensor, Tensor) {
        let sigma = self.sigmas[index];
        let level = Level::of(sigmas::alpha_bar(sigma));
        let original = level.original(self.prediction, output, &self.scale_input(x, index));
        let derivative = (x.to_kind(Kind::Float) - &original) / sigma;
        (original, derivative)
    }

    pub(super) fn step(&self, index: usize, output: &Tensor, x: &Tensor) -> Step {
        let (original, derivative) = self.derivative(index, output, x);
        let mean = x.to_kind(Kind::Float) + derivative * (self.sigmas[index + 1] - self.sigmas[index]);
        Step { mean, std: 0.0, predicted_original: original }
    }
}

/// The first latents' standard deviation: under leading spacing, which does not start from pure noise, of a sum of signal of
/// unit variance and noise.
fn init_noise_sigma(config: &SchedulerConfig, sigmas: &[f64]) -> f64 {
    let highest = sigmas.iter().copied().fold(0.0, f64::max);
    match config.timestep_spacing.unwrap_or(Spacing::Linspace) {
        Spacing::Leading => (highest * highest + 1.0).sqrt(),
        Spacing::Linspace | Spacing::Trailing => highest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sigma 2 to 1 with ε̂ = 0.5. So x₀ = 3 − 2 · 0.5 = 2, and x = 3 + 0.5 · (1 − 2) = 2.5.
    #[test]
    fn one_step_by_hand() {
        let mut sampler = Euler::new(&SchedulerConfig::from_text("{}").unwrap(), 2).unwrap();
        sampler.sigmas = vec![2.0, 1.0, 0.0];
        let step = sampler.step(0, &Tensor::from(0.5_f32), &Tensor::from(3.0_f32));
        assert!((step.predicted_original.double_value(&[]) - 2.0).abs() < 1e-6);
        assert!((step.mean.double_value(&[]) - 2.5).abs() < 1e-6);
        assert!((sampler.scale_input(&Tensor::from(3.0_f32), 0).double_value(&[]) - 3.0 / 5.0_f64.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn the_first_noise_depends_on_the_spacing() {
        let sigma = |text: &str| Euler::new(&SchedulerConfig::from_text(text).unwrap(), 10).unwrap();
        let linspace = sigma("{}");
        assert_eq!(linspace.init_noise_sigma, linspace.sigmas[0]);
        let leading = sigma(r#"{"timestep_spacing": "leading"}"#);
        assert!((leading.init_noise_sigma - leading.sigmas[0].hypot(1.0)).abs() < 1e-12);
    }
}
