//! Noise levels on the scale of Karras et al. (2022, arXiv 2206.00364), x = x₀ + sigma · ε, for Euler and DPM-Solver++.

use super::config::Keys;
use crate::Result;

/// The table's value at a timestep between two entries, linear; clamped at its ends.
pub(super) fn interpolate(table: &[f64], timestep: f64) -> f64 {
    let low = (timestep.floor() as usize).min(table.len() - 1);
    let high = (low + 1).min(table.len() - 1);
    table[low] + (timestep - low as f64) * (table[high] - table[low])
}

/// The timestep whose sigma this is: linear in log(sigma) between two entries of the ascending `table`.
pub(super) fn to_timestep(sigma: f64, table: &[f64]) -> f64 {
    let log = |sigma: f64| f64::from((sigma as f32).ln());
    let log_sigma = sigma.max(1e-10).ln();
    let low = table.partition_point(|entry| log(*entry) <= log_sigma).saturating_sub(1).min(table.len() - 2);
    let (below, above) = (log(table[low]), log(table[low + 1]));
    let weight = ((below - log_sigma) / (below - above)).clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * (low + 1) as f64
}

/// Equation 5 with rho 7: dense where sigma is small. `steps` values from `maximum` to `minimum`; the keys `sigma_max` and
/// `sigma_min` replace the bounds.
pub(super) fn karras(keys: &Keys<'_>, minimum: f64, maximum: f64, steps: usize) -> Result<Vec<f64>> {
    const RHO: f64 = 7.0;
    let low = keys.number("sigma_min", minimum)?.powf(1.0 / RHO);
    let high = keys.number("sigma_max", maximum)?.powf(1.0 / RHO);
    let last = steps.saturating_sub(1).max(1) as f64;
    Ok((0..steps).map(|step| (high + step as f64 / last * (low - high)).powf(RHO)).collect())
}

/// ā of a sigma: 1 / (1 + sigma²).
pub(super) fn alpha_bar(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0)
}

/// What follows the last noise level: none, or the least of the training schedule (`final_sigmas_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FinalSigma {
    Zero,
    Minimum,
}

impl FinalSigma {
    pub(super) fn read(keys: &Keys<'_>) -> Result<Self> {
        keys.choice("final_sigmas_type", Self::Zero, &[("zero", Self::Zero), ("sigma_min", Self::Minimum)])
    }

    pub(super) fn value(self, table: &[f64]) -> f64 {
        match self {
            Self::Zero => 0.0,
            Self::Minimum => table[0],
        }
    }
}

/// Rounded to fp32, as diffusers hands its sigmas to the sampler.
pub(super) fn rounded(sigmas: impl IntoIterator<Item = f64>) -> Vec<f64> {
    sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::SchedulerConfig;

    #[test]
    fn between_two_entries() {
        let table = [1.0, 3.0, 7.0];
        assert_eq!(interpolate(&table, 0.5), 2.0);
        assert_eq!(interpolate(&table, 2.5), 7.0);
        assert!((to_timestep(3.0_f64.sqrt(), &table) - 0.5).abs() < 1e-6);
        assert_eq!((to_timestep(0.1, &table), to_timestep(9.0, &table)), (0.0, 2.0));
    }

    /// The middle of three: ((1 + 2) / 2)⁷ for bounds 1⁷ and 2⁷.
    #[test]
    fn karras_by_hand() {
        let config = SchedulerConfig::from_text(r#"{"sigma_min": 1.0}"#).unwrap();
        let sigmas = karras(&config.keys(), 5.0, 128.0, 3).unwrap();
        for (got, want) in sigmas.iter().zip([128.0, 1.5_f64.powi(7), 1.0]) {
            assert!((got - want).abs() < 1e-9);
        }
    }
}
