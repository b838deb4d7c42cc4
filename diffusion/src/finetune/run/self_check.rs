//! Proof that a run learns: what reports success must have trained. Each check that fails stops the run and says where to look.

use reward::statistics::mean;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::super::step::Outcome;
use crate::{
    Error, Result,
    noise::{self, Stream},
    objective::Weighted,
    policy::Policy,
    prompt_encoder::Embeddings,
};

/// Updates after which the output must have changed: in bf16 the first ones may round away.
const PATIENCE: [usize; 2] = [1, 10];

/// Watches the first updates of a run.
pub(super) struct SelfCheck {
    /// What the policy predicted before the first update, `[1, C, h, w]`.
    before: Tensor,
    noise: Tensor,
    prompt: String,
    updates: usize,
}

impl SelfCheck {
    /// Begins before the first update. `prompt`: one of the run's; `shape`: of latents.
    pub(super) fn new(policy: &Policy, embeddings: &Embeddings, prompt: &str, shape: [i64; 3], seed: u64) -> Self {
        let noise = noise::named(&[seed], Stream::Drift(0), shape).to_device(policy.negative.device());
        let mut check = Self { before: noise.shallow_clone(), noise, prompt: prompt.to_owned(), updates: 0 };
        check.before = check.predict(policy, embeddings);
        check
    }

    /// What the policy predicts for noise halfway through sampling.
    fn predict(&self, policy: &Policy, embeddings: &Embeddings) -> Tensor {
        let times = policy.sampler.timesteps();
        let timesteps = Tensor::full([1], times[times.len().div_euclid(2)], (Kind::Float, self.noise.device()));
        let prompt = embeddings.of(std::slice::from_ref(&self.prompt));
        tch::no_grad(|| policy.unet.forward(&self.noise, &timesteps, &prompt))
    }

    /// Looks at the rewards of the first round: those that are maximised must tell images apart.
    ///
    /// # Errors
    /// One does not.
    pub(super) fn rewards(&self, rewards: &[Weighted], values: &[Vec<f64>]) -> Result<Vec<Value>> {
        let maximised =
            rewards.iter().zip(values).filter(|(weighted, values)| weighted.weight != 0.0 && values.len() > 1);
        maximised
            .map(|(weighted, values)| {
                let spread = values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
                    - values.iter().copied().fold(f64::INFINITY, f64::min);
                if spread > 0.0 {
                    return Ok(json!({"self_check": format!("spread of {}", weighted.label), "value": spread}));
                }
                let (label, count, value) = (&weighted.label, values.len(), mean(values));
                Err(Error::data(format!("reward `{label}` gives {value} for all {count} images of the first round"))
                    .hint("a reward that scores all images equally cannot be raised: does it see the images, and this model's?"))
            })
            .collect()
    }

    /// Looks at an update: its gradient must be above 0, and after the first ones the policy must predict something else. True
    /// once that was seen.
    ///
    /// # Errors
    /// Nothing trained.
    pub(super) fn update(
        &mut self,
        policy: &Policy,
        embeddings: &Embeddings,
        outcome: &Outcome,
    ) -> Result<Option<Vec<Value>>> {
        if !outcome.updated.applied {
            return Ok(None);
        }
        self.updates += 1;
        let norm = outcome.updated.gradient_norm;
        if norm == 0.0 {
            return Err(Error::data("the gradient of the first update is 0: nothing would be learned").hint(
                "do the adapters take part (a scale of 0 does not), does the reward differ between images, is relu's margin in reach?",
            ));
        }
        let changed = (self.predict(policy, embeddings) - &self.before).abs().max().double_value(&[]);
        if changed > 0.0 {
            let mut lines = vec![
                json!({"self_check": "gradient", "value": norm}),
                json!({"self_check": "change of the prediction", "value": changed}),
            ];
            if let Some(error) = outcome.figures.get("ratio_error") {
                lines.push(json!({"self_check": "ratio before the first update, off 1 by", "value": error}));
            }
            return Ok(Some(lines));
        }
        if self.updates >= PATIENCE[usize::from(policy.unet.parameters.kind != Kind::Float)] {
            let text = format!("after update {} the model still predicts the same: nothing was learned", self.updates);
            return Err(Error::data(text).hint("a higher learning_rate, fewer warmup_steps, or precision = \"fp32\""));
        }
        Ok(None)
    }
}
