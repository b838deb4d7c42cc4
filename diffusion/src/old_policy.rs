//! The policy as it was: a second set of values for what trains, over the same frozen weights.

use reward::optim::with_values;
use tch::Tensor;

use crate::{Result, policy::Policy};

/// Values of everything that trains, at another time.
pub struct OldPolicy {
    values: Vec<Tensor>,
}

impl OldPolicy {
    /// The policy as it is now.
    pub fn new(policy: &Policy) -> Self {
        Self { values: policy.unet.parameters.trained().iter().map(|(_, tensor)| tensor.detach().copy()).collect() }
    }

    /// Runs `body` with the old policy in place of the one that trains. A graph that was built before must not be followed
    /// backwards after.
    pub fn stand_in<T>(&self, policy: &Policy, body: impl FnOnce() -> T) -> T {
        with_values(&policy.unet.parameters.trained(), &self.values, body)
    }

    /// Moves towards the policy that trains: old ← decay · old + (1 − decay) · new.
    pub fn follow(&mut self, policy: &Policy, decay: f64) {
        tch::no_grad(|| {
            for (old, (_, new)) in self.values.iter_mut().zip(policy.unet.parameters.trained()) {
                drop(old.lerp_(&new, 1.0 - decay));
            }
        });
    }

    /// The values by the names of `trained`, for checkpoints.
    pub fn state(&self, trained: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
        trained
            .iter()
            .zip(&self.values)
            .map(|((name, _), value)| (format!("old.{name}"), value.shallow_clone()))
            .collect()
    }

    /// The policy whose values `read` gives by name and shape.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn from_state(trained: &[(String, Tensor)], read: &dyn Fn(&str, &[i64]) -> Result<Tensor>) -> Result<Self> {
        let value = |(name, tensor): &(String, Tensor)| {
            Ok(read(&format!("old.{name}"), &tensor.size())?.to_device(tensor.device()))
        };
        Ok(Self { values: trained.iter().map(value).collect::<Result<_>>()? })
    }
}
