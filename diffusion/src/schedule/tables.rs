//! The noise schedule of the forward process: beta, ā and sigma per training step.
//!
//! Values are rounded to fp32 where diffusers rounds them, so that samplers meet the same numbers. Running products are
//! taken in f64, as libtorch does on a CPU. Calculations that start from these tables are done in f64.

use std::f64::consts::FRAC_PI_2;

use tch::{Device, Kind, Tensor};

use super::{
    config::{BetaSchedule, SchedulerConfig},
    prediction::Level,
};

/// ā over the training steps, and what training needs of it.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// The schedule a model was trained with.
    pub fn new(config: &SchedulerConfig) -> Self {
        Self { alphas_cumprod: alphas_cumprod(&betas(config)).into_iter().map(f64::from).collect() }
    }

    /// The same, with ā of the last step 2⁻²⁴ where the betas were rescaled to zero terminal SNR, so that its sigma is finite.
    /// Euler and DPM-Solver++ sample with it.
    pub(super) fn with_finite_sigmas(config: &SchedulerConfig) -> Self {
        let mut schedule = Self::new(config);
        if config.rescale_betas_zero_snr
            && let Some(last) = schedule.alphas_cumprod.last_mut()
        {
            *last = f64::powi(2.0, -24);
        }
        schedule
    }

    /// ā, the share of the signal's variance left after training step `timestep`: the product of 1 − β up to it.
    pub fn alpha_bar(&self, timestep: usize) -> f64 {
        self.alphas_cumprod[timestep]
    }

    /// ā of every training step.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// sqrt((1 − ā) / ā) of every training step, ascending, in fp32 as diffusers has it.
    pub(super) fn sigmas(&self) -> Vec<f64> {
        let sigma = |alpha_bar: &f64| {
            let alpha_bar = *alpha_bar as f32;
            f64::from(((1.0 - alpha_bar) / alpha_bar).sqrt())
        };
        self.alphas_cumprod.iter().map(sigma).collect()
    }

    /// The noise levels of a batch: `timesteps` `[B]` of whole numbers below `num_train_timesteps`, to scale latents `[B,C,h,w]`.
    pub fn levels(&self, timesteps: &Tensor, device: Device) -> Level {
        let table = Tensor::from_slice(&self.alphas_cumprod).to(device);
        let alpha_bar = table.index_select(0, &timesteps.to_device(device).to_kind(Kind::Int64)).view([-1, 1, 1, 1]);
        Level {
            signal: alpha_bar.sqrt().to_kind(Kind::Float),
            noise: (1.0_f64 - &alpha_bar).sqrt().to_kind(Kind::Float),
        }
    }

    /// The forward process: sqrt(ā) x₀ + sqrt(1 − ā) ε (Ho et al., 2020, equation 4).
    ///
    /// `original` and `noise` `[B,C,h,w]`, `timesteps` `[B]`.
    pub fn add_noise(&self, original: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Tensor {
        self.levels(timesteps, original.device()).add_noise(original, noise)
    }
}

/// Beta per training step.
pub fn betas(config: &SchedulerConfig) -> Vec<f32> {
    let count = config.num_train_timesteps;
    let betas = match (&config.trained_betas, config.beta_schedule) {
        (Some(betas), _) => betas.iter().map(|beta| *beta as f32).collect(),
        (None, BetaSchedule::Linear) => linspace(config.beta_start, config.beta_end, count),
        (None, BetaSchedule::ScaledLinear) => linspace(config.beta_start.sqrt(), config.beta_end.sqrt(), count)
            .into_iter()
            .map(|root| root * root)
            .collect(),
        (None, BetaSchedule::SquaredCosine) => (0..count).map(|step| cosine_beta(step, count)).collect(),
    };
    if config.rescale_betas_zero_snr { zero_terminal_snr(&betas) } else { betas }
}

/// 1 − ā(t₂)/ā(t₁) for ā(t) = cos²((t + 0.008) / 1.008 · π/2), at most 0.999 (Nichol and Dhariwal, 2021, equation 17).
fn cosine_beta(step: usize, count: usize) -> f32 {
    let alpha_bar = |step: usize| {
        let time = step as f64 / count as f64;
        ((time + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2)
    };
    (1.0 - alpha_bar(step + 1) / alpha_bar(step)).min(0.999) as f32
}

/// torch's: in fp32, from both ends to the middle.
fn linspace(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (count - 1) as f32;
    let value =
        |at: usize| if 2 * at < count { start + step * at as f32 } else { end - step * (count - 1 - at) as f32 };
    (0..count).map(value).collect()
}

/// ā: the running product of 1 − β.
pub fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let product = |product: &mut f64, beta: &f32| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    };
    betas.iter().scan(1.0, product).collect()
}

/// Betas shifted and scaled so that sqrt(ā) ends at 0 and starts where it did. See "Common Diffusion Noise Schedules and Sample
/// Steps are Flawed", Lin et al., 2023, arXiv 2305.08891, algorithm 1.
fn zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return Vec::new() };
    let scale = first / (first - last);
    let alphas_bar: Vec<f32> = roots.into_iter().map(|root| ((root - last) * scale).powi(2)).collect();
    let rest = alphas_bar.windows(2).map(|pair| 1.0 - pair[1] / pair[0]);
    alphas_bar.first().map(|alpha_bar| 1.0 - alpha_bar).into_iter().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> SchedulerConfig {
        SchedulerConfig::from_text(text).unwrap()
    }

    #[test]
    fn three_betas_by_hand() {
        let config = config(r#"{"num_train_timesteps": 3, "beta_start": 0.1, "beta_end": 0.3}"#);
        for (got, want) in betas(&config).iter().zip([0.1, 0.2, 0.3]) {
            assert!((got - want).abs() < 1e-7);
        }
        let schedule = NoiseSchedule::new(&config);
        for (step, want) in [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7].into_iter().enumerate() {
            assert!((schedule.alpha_bar(step) - want).abs() < 1e-7);
        }
        assert!((schedule.sigmas()[0] - (0.1_f64 / 0.9).sqrt()).abs() < 1e-7);
    }

    /// Integer division made 999 of 1,000 cosine betas 0 elsewhere.
    #[test]
    fn cosine_betas_grow() {
        let betas = betas(&config(r#"{"beta_schedule": "squaredcos_cap_v2"}"#));
        assert!(betas.windows(2).all(|pair| pair[0] < pair[1] || pair[1] == 0.999));
        assert_eq!(betas.last(), Some(&0.999));
        assert!((4.1e-5..4.2e-5).contains(&betas[0]), "{}", betas[0]);
    }

    #[test]
    fn zero_terminal_snr_ends_in_pure_noise() {
        let text = r#"{"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": true}"#;
        let plain = NoiseSchedule::new(&config(r#"{"beta_schedule": "scaled_linear"}"#));
        let schedule = NoiseSchedule::new(&config(text));
        assert_eq!(schedule.alpha_bar(999), 0.0);
        assert!((schedule.alpha_bar(0) - plain.alpha_bar(0)).abs() < 1e-6);
        assert!(NoiseSchedule::with_finite_sigmas(&config(text)).sigmas()[999].is_finite());
    }

    #[test]
    fn noise_is_added_by_each_images_own_timestep() {
        let schedule =
            NoiseSchedule::new(&config(r#"{"num_train_timesteps": 2, "beta_start": 0.19, "beta_end": 0.19}"#));
        let ones = Tensor::ones([2, 1, 1, 1], (Kind::Float, Device::Cpu));
        let noisy = schedule.add_noise(&(&ones * 2.0), &ones, &Tensor::from_slice(&[0_i64, 1]));
        let want = [2.0 * 0.9 + 0.19_f64.sqrt(), 2.0 * 0.81 + (1.0 - 0.81_f64 * 0.81).sqrt()];
        for (image, want) in want.into_iter().enumerate() {
            assert!((noisy.double_value(&[image as i64, 0, 0, 0]) - want).abs() < 1e-6);
        }
    }
}
