//! "Denoising Diffusion Implicit Models", Song et al., 2020, arXiv 2010.02502: equations 12 (the step) and 16 (its variance).
//!
//! The policy that policy-gradient fine-tuning trains: with eta above 0 a step is a Gaussian with a log-probability.

use serde_json::Value;
use tch::Tensor;

use super::{
    SchedulerConfig, Step,
    config::{Spacing, refused},
    prediction::{Level, PredictionType},
    spacing,
    tables::NoiseSchedule,
};
use crate::{Error, Result};

#[derive(Debug, Clone)]
pub(super) struct Ddim {
    prediction: PredictionType,
    clip_range: Option<f64>,
    pub(super) timesteps: Vec<f64>,
    levels: Vec<Levels>,
}

/// ā before and after a step, and the standard deviation of what the step adds.
#[derive(Debug, Clone, Copy)]
struct Levels {
    alpha_bar: f64,
    alpha_bar_previous: f64,
    std: f64,
}

impl Ddim {
    pub(super) fn new(config: &SchedulerConfig, steps: usize, eta: f64) -> Result<Self> {
        let keys = config.keys();
        keys.not_supported("thresholding")?;
        let clip_range = keys.flag("clip_sample", true)?.then(|| keys.number("clip_sample_range", 1.0)).transpose()?;
        let schedule = NoiseSchedule::new(config);
        let final_alpha_bar = if keys.flag("set_alpha_to_one", true)? { 1.0 } else { schedule.alpha_bar(0) };
        let train = config.num_train_timesteps;
        let stride = train.div_euclid(steps);
        let timesteps = match config.timestep_spacing.unwrap_or(Spacing::Leading) {
            Spacing::Leading => spacing::leading(steps, stride, config.steps_offset),
            Spacing::Trailing => spacing::trailing(train, train, steps),
            Spacing::Linspace => spacing::linspace(train - 1, steps).into_iter().map(f64::round_ties_even).collect(),
        };
        let timesteps = spacing::within(config, timesteps)?;
        let levels = timesteps
            .iter()
            .map(|timestep| {
                let timestep = *timestep as usize;
                // As diffusers: one stride down, which under trailing and linspace need not be where the next step starts.
                let previous = timestep.checked_sub(stride);
                let alpha_bar_previous = previous.map_or(final_alpha_bar, |previous| schedule.alpha_bar(previous));
                levels(schedule.alpha_bar(timestep), alpha_bar_previous, eta)
            })
            .collect::<Result<Vec<_>>>()?;
        let no_signal = levels.iter().any(|levels| levels.alpha_bar == 0.0);
        if no_signal && config.prediction_type == PredictionType::Epsilon {
            return Err(refused(
                "rescale_betas_zero_snr",
                &Value::Bool(true),
                "false, for a model that predicts epsilon",
            )
            .hint("at the last training step nothing of x₀ is left, so epsilon cannot give it; use leading spacing"));
        }
        Ok(Self { prediction: config.prediction_type, clip_range, timesteps, levels })
    }

    pub(super) fn step(&self, index: usize, output: &Tensor, x: &Tensor) -> Step {
        let Levels { alpha_bar, alpha_bar_previous, std } = self.levels[index];
        let level = Level::of(alpha_bar);
        let mut original = level.original(self.prediction, output, x);
        // From the output and not from the clipped x₀.
        let epsilon = level.epsilon(self.prediction, output, x);
        if let Some(range) = self.clip_range {
            original = original.clamp(-range, range);
        }
        let direction = (1.0 - alpha_bar_previous - std * std).max(0.0).sqrt();
        let mean = &original * alpha_bar_previous.sqrt() + epsilon * direction;
        Step { mean, std, predicted_original: original }
    }
}

fn levels(alpha_bar: f64, alpha_bar_previous: f64, eta: f64) -> Result<Levels> {
    let variance = (1.0 - alpha_bar_previous) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_previous);
    let std = eta * variance.max(0.0).sqrt();
    // Rounding aside, the noise added cannot exceed the noise there is after the step.
    if std * std > (1.0 - alpha_bar_previous) * (1.0 + 1e-9) {
        return Err(Error::usage(format!("eta {eta}: a step would add more noise than its level has"))
            .hint("0 is deterministic, 1 adds as much as DDPM"));
    }
    Ok(Levels { alpha_bar, alpha_bar_previous, std })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two training steps with ā 0.64 and 0.36; one step of stride 1 from the second.
    /// There x₀ = (1 − 0.8 · 0.5) / 0.6 = 1, and mean = 0.8 · 1 + 0.6 · 0.5 = 1.1.
    #[test]
    fn one_step_by_hand() {
        let config = SchedulerConfig::from_text(
            r#"{"num_train_timesteps": 2, "trained_betas": [0.36, 0.4375], "clip_sample": false}"#,
        )
        .unwrap();
        let sampler = Ddim::new(&config, 2, 0.0).unwrap();
        assert_eq!(sampler.timesteps, [1.0, 0.0]);
        let step = sampler.step(0, &Tensor::from(0.5_f32), &Tensor::from(1.0_f32));
        assert!((step.predicted_original.double_value(&[]) - 1.0).abs() < 1e-6);
        assert!((step.mean.double_value(&[]) - 1.1).abs() < 1e-6);
        assert_eq!(step.std, 0.0);
        // eta 1: variance (0.36 / 0.64) · (1 − 0.36 / 0.64) = 0.24609375; the direction shrinks to sqrt(0.36 − 0.246).
        let step = Ddim::new(&config, 2, 1.0).unwrap().step(0, &Tensor::from(0.5_f32), &Tensor::from(1.0_f32));
        assert!((step.std - 0.24609375_f64.sqrt()).abs() < 1e-6);
        assert!((step.mean.double_value(&[]) - (0.8 + 0.11390625_f64.sqrt() * 0.5)).abs() < 1e-6);
        // The last step ends at x₀, and adds nothing.
        let step = Ddim::new(&config, 2, 1.0).unwrap().step(1, &Tensor::from(0.5_f32), &Tensor::from(1.0_f32));
        assert!((step.mean.double_value(&[]) - (1.0 - 0.6 * 0.5) / 0.8).abs() < 1e-6);
        assert_eq!(step.std, 0.0);
    }

    #[test]
    fn absent_clip_sample_means_true() {
        let config = SchedulerConfig::from_text(r#"{"prediction_type": "sample"}"#).unwrap();
        let step = Ddim::new(&config, 10, 0.0).unwrap().step(0, &Tensor::from(3.0_f32), &Tensor::from(1.0_f32));
        assert_eq!(step.predicted_original.double_value(&[]), 1.0);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let error = |text: &str, steps, eta| {
            Ddim::new(&SchedulerConfig::from_text(text).unwrap(), steps, eta).unwrap_err().to_string()
        };
        assert_eq!(error(r#"{"thresholding": true}"#, 10, 0.0), "`thresholding` is true, supported: false");
        assert_eq!(
            error(r#"{"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}"#, 10, 0.0),
            "`rescale_betas_zero_snr` is true, supported: false, for a model that predicts epsilon"
        );
        assert_eq!(error("{}", 10, 5.0), "eta 5: a step would add more noise than its level has");
        assert_eq!(
            error(r#"{"steps_offset": 1}"#, 1000, 0.0),
            "1000 sampling steps with `steps_offset` 1 begin at timestep 1000, beyond the model's last, 999"
        );
    }
}
