//! Ancestral sampling with Euler steps: each step goes down past its goal and noise brings it back up. So the marginals are those
//! of DDPM's posterior ("Denoising Diffusion Probabilistic Models", Ho et al., 2020, arXiv 2006.11239, equation 7) in sigma. This
//! is k-diffusion's `sample_euler_ancestral` with eta 1.

use tch::{Kind, Tensor};

use super::{SchedulerConfig, Step, euler::Euler};
use crate::Result;

#[derive(Debug, Clone)]
pub(super) struct EulerAncestral {
    pub(super) euler: Euler,
}

impl EulerAncestral {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        Ok(Self { euler: Euler::plain(config, steps)? })
    }

    pub(super) fn step(&self, index: usize, output: &Tensor, x: &Tensor) -> Step {
        let (from, to) = (self.euler.sigmas[index], self.euler.sigmas[index + 1]);
        let (down, up) = split(from, to);
        let (original, derivative) = self.euler.derivative(index, output, x);
        let mean = x.to_kind(Kind::Float) + derivative * (down - from);
        Step { mean, std: up, predicted_original: original }
    }
}

/// down² + up² = to², with up² = to² (from² − to²) / from².
fn split(from: f64, to: f64) -> (f64, f64) {
    let up = (to * to * (from * from - to * to) / (from * from)).max(0.0).sqrt();
    ((to * to - up * up).max(0.0).sqrt(), up)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From 2 to 1: up² = 1 · 3 / 4, down² = 1 / 4.
    #[test]
    fn one_step_by_hand() {
        let mut sampler = EulerAncestral::new(&SchedulerConfig::from_text("{}").unwrap(), 2).unwrap();
        sampler.euler.sigmas = vec![2.0, 1.0, 0.0];
        let step = sampler.step(0, &Tensor::from(0.5_f32), &Tensor::from(3.0_f32));
        assert!((step.std - 0.75_f64.sqrt()).abs() < 1e-12);
        assert!((step.mean.double_value(&[]) - (3.0 + 0.5 * (0.5 - 2.0))).abs() < 1e-6);
        // The last step ends at x₀ and adds nothing.
        let step = sampler.step(1, &Tensor::from(0.5_f32), &Tensor::from(3.0_f32));
        assert_eq!(step.std, 0.0);
        assert!((step.mean.double_value(&[]) - 2.5).abs() < 1e-6);
    }
}
