//! "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", Lu et al., 2022, arXiv 2211.01095:
//! algorithm 2, the second-order multistep solver in x₀ (2M), deterministic.
//!
//! The solver is on sigma = sqrt((1 − ā) / ā) after Karras et al. The paper's alpha and sigma are sqrt(ā) and
//! sqrt(1 − ā), and its lambda is −ln(sigma).

use tch::Tensor;

use super::{
    SchedulerConfig, Step,
    config::{BetaSchedule, Spacing},
    prediction::{Level, PredictionType},
    sigmas::{self, FinalSigma},
    spacing,
    tables::NoiseSchedule,
};
use crate::{Error, Result};

/// How the second-order term is taken (diffusers' `solver_type`; appendix A of DPM-Solver, arXiv 2206.00927, has both).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SolverType {
    Midpoint,
    Heun,
}

#[derive(Debug, Clone)]
pub(super) struct Dpmpp2m {
    prediction: PredictionType,
    solver: SolverType,
    /// The last step is of first order.
    first_order_final: bool,
    pub(super) timesteps: Vec<f64>,
    /// One more than timesteps.
    pub(super) sigmas: Vec<f64>,
}

impl Dpmpp2m {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let keys = config.keys();
        for key in ["thresholding", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"] {
            keys.not_supported(key)?;
        }
        // `deis`: what a DEIS folder says; diffusers takes dpmsolver++ for it.
        keys.choice("algorithm_type", (), &[("dpmsolver++", ()), ("deis", ())])?;
        keys.choice("variance_type", (), &[("fixed_small", ()), ("fixed_large", ())])?;
        if keys.integer("solver_order", 2)? != 2 {
            return Err(Error::data("`solver_order` is not 2, the order of DPM-Solver++ 2M"));
        }
        // The last three are DEIS's and UniPC's; diffusers takes midpoint for them.
        let solver = keys.choice(
            "solver_type",
            SolverType::Midpoint,
            &[
                ("midpoint", SolverType::Midpoint),
                ("heun", SolverType::Heun),
                ("logrho", SolverType::Midpoint),
                ("bh1", SolverType::Midpoint),
                ("bh2", SolverType::Midpoint),
            ],
        )?;
        let last_sigma = FinalSigma::read(&keys)?;
        let table = NoiseSchedule::with_finite_sigmas(config).sigmas();
        let (timesteps, levels) = if keys.flag("use_karras_sigmas", false)? {
            let levels = sigmas::karras(&keys, table[0], table[table.len() - 1], steps)?;
            let timesteps = levels.iter().map(|sigma| {
                let timestep = sigmas::to_timestep(*sigma, &table);
                // diffusers rounds, but for cosine betas, which it cuts.
                if config.beta_schedule == BetaSchedule::SquaredCosine {
                    timestep.floor()
                } else {
                    timestep.round_ties_even()
                }
            });
            (timesteps.collect(), levels)
        } else {
            let timesteps =
                timesteps(config, last_timestep(keys.optional_number("lambda_min_clipped")?, &table), steps)?;
            let levels = timesteps.iter().map(|timestep| sigmas::interpolate(&table, *timestep)).collect();
            (timesteps, levels)
        };
        let few = timesteps.len() < 15;
        let first_order_final = keys.flag("euler_at_final", false)?
            || (keys.flag("lower_order_final", true)? && few)
            || last_sigma == FinalSigma::Zero;
        let sigmas = sigmas::rounded(levels.into_iter().chain([last_sigma.value(&table)]));
        Ok(Self { prediction: config.prediction_type, solver, first_order_final, timesteps, sigmas })
    }

    pub(super) fn step(&self, index: usize, output: &Tensor, x: &Tensor, previous: Option<&Tensor>) -> Step {
        let (from, to) = (self.sigmas[index], self.sigmas[index + 1]);
        let original = Level::of(sigmas::alpha_bar(from)).original(self.prediction, output, x);
        let (signal_from, signal_to) = (sigmas::alpha_bar(from).sqrt(), sigmas::alpha_bar(to).sqrt());
        let h = from.ln() - to.ln(); // infinite in a step to sigma 0
        let first = signal_to * (1.0 - (-h).exp());
        let mut mean = x.to_kind(tch::Kind::Float) * (to * signal_to / (from * signal_from)) + &original * first;
        let last = index + 1 == self.timesteps.len();
        if let Some(previous) = previous
            && index > 0
            && !(last && self.first_order_final)
        {
            let h_before = self.sigmas[index - 1].ln() - from.ln();
            let slope = (&original - previous) * (h / h_before);
            let second = match self.solver {
                SolverType::Midpoint => 0.5 * first,
                SolverType::Heun => signal_to * (((-h).exp() - 1.0) / h + 1.0),
            };
            mean += slope * second;
        }
        Step { mean, std: 0.0, predicted_original: original }
    }
}

/// One past the last training step that is visited: those whose lambda = −ln(sigma) is below `minimum` are left out, which
/// cosine betas need.
fn last_timestep(minimum: Option<f64>, table: &[f64]) -> usize {
    let Some(minimum) = minimum else { return table.len() };
    table.partition_point(|sigma| -sigma.ln() >= minimum)
}

fn timesteps(config: &SchedulerConfig, last: usize, steps: usize) -> Result<Vec<f64>> {
    let timesteps = match config.timestep_spacing.unwrap_or(Spacing::Linspace) {
        Spacing::Leading => {
            let ratio = last.div_euclid(steps + 1);
            if ratio == 0 {
                return Err(Error::usage(format!(
                    "{steps} sampling steps, want fewer than {last} with DPM-Solver++'s leading spacing"
                )));
            }
            spacing::leading(steps + 1, ratio, config.steps_offset)
        }
        Spacing::Linspace => {
            spacing::linspace(last.saturating_sub(1), steps + 1).into_iter().map(f64::round_ties_even).collect()
        }
        Spacing::Trailing => {
            return spacing::within(config, spacing::trailing(config.num_train_timesteps, last, steps));
        }
    };
    // The lowest is where the last step ends.
    spacing::within(config, timesteps[..steps].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(keys: &str, steps: usize) -> Result<Dpmpp2m> {
        let text = format!(r#"{{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012{keys}}}"#);
        Dpmpp2m::new(&SchedulerConfig::from_text(&text)?, steps)
    }

    /// A model that knows x₀ ends at x₀, and x stays on the straight line between x₀ and the noise all the way.
    #[test]
    fn a_perfect_model_is_followed_exactly() {
        for keys in
            ["", r#", "use_karras_sigmas": true"#, r#", "solver_type": "heun", "final_sigmas_type": "sigma_min""#]
        {
            let sampler = sampler(&format!(r#"{keys}, "prediction_type": "sample""#), 20).unwrap();
            let (original, noise) = (0.7, -1.3);
            let at = |sigma: f64| sigmas::alpha_bar(sigma).sqrt() * (original + sigma * noise);
            let mut x = Tensor::from(at(sampler.sigmas[0]) as f32);
            let mut previous = None;
            for index in 0..20 {
                let step = sampler.step(index, &Tensor::from(original as f32), &x, previous.as_ref());
                assert!((step.mean.double_value(&[]) - at(sampler.sigmas[index + 1])).abs() < 1e-5, "{keys} {index}");
                (x, previous) = (step.mean, Some(step.predicted_original));
            }
        }
    }

    /// From sigma 2 by 1 to 0.5 (h = ln 2 twice), x₀ estimates 1 then 3. The second-order term is (3 − 1)/2 of the first's.
    #[test]
    fn the_second_order_term_by_hand() {
        let mut sampler = sampler(r#", "prediction_type": "sample""#, 3).unwrap();
        sampler.sigmas = vec![2.0, 1.0, 0.5, 0.0];
        let step = sampler.step(1, &Tensor::from(3.0_f32), &Tensor::from(0.4_f32), Some(&Tensor::from(1.0_f32)));
        let signal = |sigma: f64| (1.0 / (1.0 + sigma * sigma)).sqrt();
        let first = signal(0.5) * 0.5;
        let want = 0.4 * 0.5 * signal(0.5) / signal(1.0) + first * 3.0 + 0.5 * first * 2.0;
        assert!((step.mean.double_value(&[]) - want).abs() < 1e-6);
        // The last step is of first order and ends at x₀.
        let step = sampler.step(2, &Tensor::from(3.0_f32), &Tensor::from(0.4_f32), Some(&Tensor::from(1.0_f32)));
        assert!((step.mean.double_value(&[]) - 3.0).abs() < 1e-6);
    }

    #[test]
    fn other_solvers_are_named() {
        for (keys, message) in [
            (
                r#", "algorithm_type": "sde-dpmsolver++""#,
                r#"`algorithm_type` is "sde-dpmsolver++", supported: dpmsolver++, deis"#,
            ),
            (r#", "use_lu_lambdas": true"#, "`use_lu_lambdas` is true, supported: false"),
            (r#", "solver_order": 3"#, "`solver_order` is not 2, the order of DPM-Solver++ 2M"),
        ] {
            assert_eq!(sampler(keys, 20).unwrap_err().to_string(), message);
        }
    }
}
