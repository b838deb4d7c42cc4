//! What a diffusion model's output means, and how the three meanings convert.

use reward::closed_set;
use tch::{Kind, Tensor};

closed_set! {
    /// What the model predicts.
    pub enum PredictionType: "prediction type" {
        /// ε, the noise in its input (SD 1.x, SD 2.1-base).
        Epsilon = "epsilon",
        /// v = sqrt(ā) ε − sqrt(1 − ā) x₀ (SD 2.1-768; Salimans and Ho, 2022, arXiv 2202.00512, section 4).
        Velocity = "v_prediction",
        /// x₀, the clean latents.
        Sample = "sample",
    }
}

/// A noise level: x = signal · x₀ + noise · ε with signal² + noise² = 1.
///
/// One level (0-dimensional) or one per image (`[B,1,1,1]`). Conversions take and give fp32 `[B,C,h,w]`.
#[derive(Debug)]
pub struct Level {
    /// sqrt(ā).
    pub signal: Tensor,
    /// sqrt(1 − ā).
    pub noise: Tensor,
}

impl Level {
    /// The level of one ā.
    pub fn of(alpha_bar: f64) -> Self {
        // On the CPU and 0-dimensional: a scalar to every operation, on any device and without a copy.
        Self { signal: Tensor::from(alpha_bar.sqrt()), noise: Tensor::from((1.0 - alpha_bar).sqrt()) }
    }

    /// x₀ as `output` for the noisy `x` says it.
    pub fn original(&self, prediction: PredictionType, output: &Tensor, x: &Tensor) -> Tensor {
        let (output, x) = (output.to_kind(Kind::Float), x.to_kind(Kind::Float));
        match prediction {
            PredictionType::Epsilon => (x - output * &self.noise) / &self.signal,
            PredictionType::Velocity => x * &self.signal - output * &self.noise,
            PredictionType::Sample => output,
        }
    }

    /// ε as `output` for the noisy `x` says it.
    pub fn epsilon(&self, prediction: PredictionType, output: &Tensor, x: &Tensor) -> Tensor {
        let (output, x) = (output.to_kind(Kind::Float), x.to_kind(Kind::Float));
        match prediction {
            PredictionType::Epsilon => output,
            PredictionType::Velocity => output * &self.signal + x * &self.noise,
            PredictionType::Sample => (x - output * &self.signal) / &self.noise,
        }
    }

    /// v as `output` for the noisy `x` says it.
    pub fn velocity(&self, prediction: PredictionType, output: &Tensor, x: &Tensor) -> Tensor {
        match prediction {
            PredictionType::Velocity => output.to_kind(Kind::Float),
            _ => {
                let original = self.original(prediction, output, x);
                self.epsilon(prediction, output, x) * &self.signal - original * &self.noise
            }
        }
    }

    /// signal · x₀ + noise · ε.
    pub fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Tensor {
        original.to_kind(Kind::Float) * &self.signal + noise.to_kind(Kind::Float) * &self.noise
    }

    /// What a model should put out for clean latents and the noise that was added to them: the target of denoising losses.
    pub fn target(&self, prediction: PredictionType, original: &Tensor, noise: &Tensor) -> Tensor {
        match prediction {
            PredictionType::Epsilon => noise.to_kind(Kind::Float),
            PredictionType::Velocity => {
                noise.to_kind(Kind::Float) * &self.signal - original.to_kind(Kind::Float) * &self.noise
            }
            PredictionType::Sample => original.to_kind(Kind::Float),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With ā = 0.36 the signal is 0.6 and the noise 0.8. For x₀ = 2 and ε = 1: x = 1.2 + 0.8 = 2, v = 0.6 − 1.6 = −1.
    #[test]
    fn the_meanings_convert_by_hand() {
        let level = Level::of(0.36);
        let (original, noise) = (Tensor::from(2.0_f32), Tensor::from(1.0_f32));
        let x = level.add_noise(&original, &noise);
        let close = |tensor: Tensor, want: f64| assert!((tensor.double_value(&[]) - want).abs() < 1e-6, "{want}");
        close(x.shallow_clone(), 2.0);
        close(level.target(PredictionType::Velocity, &original, &noise), -1.0);
        for prediction in PredictionType::ALL {
            let output = level.target(prediction, &original, &noise);
            close(level.original(prediction, &output, &x), 2.0);
            close(level.epsilon(prediction, &output, &x), 1.0);
            close(level.velocity(prediction, &output, &x), -1.0);
        }
    }
}
