//! Samplers: from noise to latents in few steps.
//!
//! A step is a pure function of the model's output. It gives the mean and the standard deviation of the next latents, and the
//! caller draws the noise. Scalars are calculated in f64, tensors in fp32, and gradients flow through every step. One sampler a
//! file, with its paper; all of them read the same [`SchedulerConfig`].

mod config;
mod ddim;
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
mod prediction;
mod sigmas;
mod spacing;
mod tables;

use std::f64::consts::PI;

use reward::closed_set;
use tch::{Kind, Tensor};

pub use config::{BetaSchedule, SchedulerConfig, Spacing};
pub use prediction::{Level, PredictionType};
pub use tables::{NoiseSchedule, alphas_cumprod, betas};

use self::{ddim::Ddim, dpmpp_2m::Dpmpp2m, euler::Euler, euler_ancestral::EulerAncestral};
use crate::{Error, Result};

closed_set! {
    /// The samplers, by the names they have on the command line.
    pub enum SamplerName: "scheduler" {
        /// `ddim`: DDIM with any eta.
        Ddim = "ddim",
        /// `dpmpp-2m`: DPM-Solver++ 2M.
        Dpmpp2m = "dpmpp-2m",
        /// `euler`: Euler.
        Euler = "euler",
        /// `euler-a`: Euler ancestral.
        EulerA = "euler-a",
    }
}

/// One sampling step: the next latents are Gaussian around `mean` with `std`.
#[derive(Debug)]
pub struct Step {
    /// `[B,C,h,w]`, fp32.
    pub mean: Tensor,
    /// Standard deviation of every element; 0 where the step is deterministic.
    pub std: f64,
    /// The x₀ that the step was taken towards, `[B,C,h,w]`, fp32 (clipped where the config says so).
    pub predicted_original: Tensor,
}

impl Step {
    /// The least standard deviation a log-probability is taken with: a deterministic step has no density.
    pub const LEAST_STD: f64 = 1e-6;

    /// mean + std · `noise`; `noise` `[B,C,h,w]` of unit variance is not looked at where the step is deterministic.
    pub fn sample(&self, noise: impl FnOnce() -> Tensor) -> Tensor {
        if self.std == 0.0 { self.mean.shallow_clone() } else { &self.mean + noise() * self.std }
    }

    /// ln N(`next`; mean, std²) per image, `[B]`: the *mean* over C·h·w and not the sum, as ddpo-pytorch takes it. That is why
    /// its clip range is 1e-4. Differentiable in the mean; `next` is taken as given.
    pub fn log_probability(&self, next: &Tensor) -> Tensor {
        let std = self.std.max(Self::LEAST_STD);
        let distance = next.detach().to_kind(Kind::Float) - &self.mean;
        let log_density = distance.square() * (-0.5 / (std * std)) - (std.ln() + 0.5 * (2.0 * PI).ln());
        log_density.flatten(1, -1).mean_dim([1_i64].as_slice(), false, Kind::Float)
    }

    /// The divergence KL(this ‖ `other`) of two steps of the same deviation per image, `[B]`: (μ − μ')² / (2 σ²). It is the
    /// *mean* over C·h·w, as Flow-GRPO takes it. Differentiable in the means.
    pub fn divergence(&self, other: &Self) -> Tensor {
        let std = self.std.max(Self::LEAST_STD);
        let distance = (&self.mean - &other.mean).square() * (0.5 / (std * std));
        distance.flatten(1, -1).mean_dim([1_i64].as_slice(), false, Kind::Float)
    }
}

/// A sampler set to a number of steps.
#[derive(Debug, Clone)]
pub struct Sampler(Method);

#[derive(Debug, Clone)]
enum Method {
    Ddim(Ddim),
    Dpmpp2m(Dpmpp2m),
    Euler(Euler),
    EulerA(EulerAncestral),
}

impl Sampler {
    /// `eta` is the share of DDPM's noise that a DDIM step adds, 0 for the other samplers.
    ///
    /// # Errors
    /// A number of steps the schedule cannot take or an eta the sampler cannot take (usage). A config value that this sampler
    /// reads and does not support.
    pub fn new(name: SamplerName, config: &SchedulerConfig, steps: usize, eta: f64) -> Result<Self> {
        spacing::check(config, steps)?;
        if !(eta >= 0.0 && eta.is_finite()) {
            return Err(Error::usage(format!("eta {eta}, want 0 or more")));
        }
        if eta != 0.0 && name != SamplerName::Ddim {
            return Err(Error::usage(format!("eta {eta} with scheduler {name}: only ddim has an eta")));
        }
        Ok(Self(match name {
            SamplerName::Ddim => Method::Ddim(Ddim::new(config, steps, eta)?),
            SamplerName::Dpmpp2m => Method::Dpmpp2m(Dpmpp2m::new(config, steps)?),
            SamplerName::Euler => Method::Euler(Euler::new(config, steps)?),
            SamplerName::EulerA => Method::EulerA(EulerAncestral::new(config, steps)?),
        }))
    }

    /// Where in the training steps each sampling step is, the noisiest first. Mostly, but not always, as many as asked for.
    pub fn timesteps(&self) -> &[f64] {
        match &self.0 {
            Method::Ddim(ddim) => &ddim.timesteps,
            Method::Dpmpp2m(solver) => &solver.timesteps,
            Method::Euler(euler) => &euler.timesteps,
            Method::EulerA(ancestral) => &ancestral.euler.timesteps,
        }
    }

    /// sqrt((1 − ā) / ā) before each step, and after the last; DDIM works on ā and has none.
    pub fn sigmas(&self) -> Option<&[f64]> {
        match &self.0 {
            Method::Ddim(_) => None,
            Method::Dpmpp2m(solver) => Some(&solver.sigmas),
            Method::Euler(euler) => Some(&euler.sigmas),
            Method::EulerA(ancestral) => Some(&ancestral.euler.sigmas),
        }
    }

    /// What noise of unit variance is multiplied by to be the first latents.
    pub fn init_noise_sigma(&self) -> f64 {
        match &self.0 {
            Method::Ddim(_) | Method::Dpmpp2m(_) => 1.0,
            Method::Euler(euler) => euler.init_noise_sigma,
            Method::EulerA(ancestral) => ancestral.euler.init_noise_sigma,
        }
    }

    /// What the model gets to see of latents `x` before step `index`, fp32.
    pub fn scale_input(&self, x: &Tensor, index: usize) -> Tensor {
        match &self.0 {
            Method::Ddim(_) | Method::Dpmpp2m(_) => x.to_kind(Kind::Float),
            Method::Euler(euler) => euler.scale_input(x, index),
            Method::EulerA(ancestral) => ancestral.euler.scale_input(x, index),
        }
    }

    /// Step `index` from latents `x` `[B,C,h,w]` with the model's `output` for them (and `scale_input`).
    ///
    /// `previous` is the `predicted_original` of the step before, which multistep solvers use; without it their step is of
    /// first order.
    pub fn step(&self, index: usize, output: &Tensor, x: &Tensor, previous: Option<&Tensor>) -> Step {
        match &self.0 {
            Method::Ddim(ddim) => ddim.step(index, output, x),
            Method::Dpmpp2m(solver) => solver.step(index, output, x, previous),
            Method::Euler(euler) => euler.step(index, output, x),
            Method::EulerA(ancestral) => ancestral.step(index, output, x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_command_line() {
        for name in SamplerName::ALL {
            assert_eq!(name.to_string().parse::<SamplerName>().unwrap(), name);
        }
        assert_eq!(
            "pndm".parse::<SamplerName>().unwrap_err().to_string(),
            "unknown scheduler `pndm`, expected `ddim`, `dpmpp-2m`, `euler`, `euler-a`"
        );
    }

    #[test]
    fn steps_and_eta_have_limits() {
        let config = SchedulerConfig::stable_diffusion(PredictionType::Epsilon);
        let error = |name, steps, eta| Sampler::new(name, &config, steps, eta).unwrap_err().to_string();
        assert_eq!(
            error(SamplerName::Ddim, 0, 0.0),
            "0 sampling steps, want 1 to 1000 (the model's `num_train_timesteps`)"
        );
        assert_eq!(error(SamplerName::Ddim, 10, -0.5), "eta -0.5, want 0 or more");
        assert_eq!(error(SamplerName::Euler, 10, 1.0), "eta 1 with scheduler euler: only ddim has an eta");
    }

    /// Means 1 and 0 apart by 1 and 3, deviation 0.5: (1 + 9) / 2 / (2 · 0.25).
    #[test]
    fn divergence_by_hand() {
        let step = |mean: &[f32]| {
            let mean = Tensor::from_slice(mean).view([1, 2, 1, 1]);
            Step { predicted_original: mean.shallow_clone(), mean, std: 0.5 }
        };
        let (ours, other) = (step(&[1.0, 3.0]), step(&[0.0, 0.0]));
        assert_eq!(ours.divergence(&other).double_value(&[0]), 10.0);
        assert_eq!(ours.divergence(&ours).double_value(&[0]), 0.0);
    }

    /// ln N(1; 0, 0.5²) = −(1/0.5)²/2 − ln 0.5 − ln(2π)/2, and of 0 the last two: their mean over two elements.
    #[test]
    fn log_probability_by_hand() {
        let mean = Tensor::zeros([1, 2, 1, 1], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let step = Step { mean: mean.shallow_clone(), std: 0.5, predicted_original: Tensor::zeros_like(&mean) };
        let next = Tensor::from_slice(&[1.0_f32, 0.0]).view([1, 2, 1, 1]);
        let log_probability = step.log_probability(&next);
        assert_eq!(log_probability.size(), [1]);
        let want = -1.0 - 0.5_f64.ln() - 0.5 * (2.0 * PI).ln();
        assert!((log_probability.double_value(&[0]) - want).abs() < 1e-6);
        log_probability.sum(Kind::Float).backward();
        // d/dmean = (next − mean) / std² / 2.
        assert!((mean.grad().double_value(&[0, 0, 0, 0]) - 2.0).abs() < 1e-6);
        let certain = Step { std: 0.0, ..step };
        assert!(certain.log_probability(&next).double_value(&[0]).is_finite());
    }
}
