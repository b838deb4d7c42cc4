//! The gradient step of both trainers: the norm, numbers that overflow, clipping, the optimizer, the running mean.

use tch::Tensor;

use super::Adam;
use crate::{Error, Result, native::AdamSettings, world::World};

/// Steps in a row without finite numbers after which the run is given up.
const PATIENCE: usize = 3;

/// Trained tensors with the optimizer's state and the running mean, which a step changes.
pub struct Update {
    /// The optimizer, which holds what trains.
    pub adam: Adam,
    /// A running mean of what trains, if one is kept.
    pub ema: Option<Ema>,
    clip_norm: Option<f64>,
    non_finite: usize,
}

/// An exponential running mean of tensors.
pub struct Ema {
    decay: f64,
    /// One for each trained tensor, in the optimizer's order.
    pub means: Vec<Tensor>,
}

/// Outcome of a step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Updated {
    /// The loss, added up over all ranks.
    pub loss: f64,
    /// Euclidean norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// True if the weights moved; they do not on a loss or gradient that is not finite.
    pub applied: bool,
}

impl Update {
    /// An optimizer over `trained`, fp32 leaves. Gradients of a norm above `clip_norm` are scaled down to it.
    pub fn new(
        trained: Vec<(String, Tensor)>,
        settings: AdamSettings,
        clip_norm: Option<f64>,
        ema_decay: Option<f64>,
    ) -> Self {
        let means = || trained.iter().map(|(_, tensor)| tensor.detach().copy()).collect();
        let ema = ema_decay.map(|decay| Ema { decay, means: means() });
        Self { adam: Adam::new(trained, settings), ema, clip_norm, non_finite: 0 }
    }

    /// The tensors that train, by name.
    pub fn trained(&self) -> &[(String, Tensor)] {
        self.adam.parameters()
    }

    /// Takes one optimizer step at rate `rate` along the gradients that the backward pass of `loss` left, each rank's its part.
    ///
    /// # Errors
    /// Loss or gradient were not finite for the third time in a row; or another rank is lost.
    pub fn apply(&mut self, world: &World, loss: f64, rate: f64) -> Result<Updated> {
        // Once added up, a number of one rank that is not finite is everybody's.
        let own_is_finite = loss.is_finite() && (self.non_finite == 0 || self.adam.gradient_norm().is_finite());
        let loss = self.adam.add_up(world, loss)?;
        let own = self.adam.gradient_norm();
        // All clip by the norm of rank 0: its last bits depend on the number of threads.
        let [gradient_norm] = world.sum([if world.leads() { own } else { 0.0 }])?;
        if !(loss.is_finite() && gradient_norm.is_finite()) {
            self.non_finite += 1;
            if self.non_finite >= PATIENCE {
                let what = if loss.is_finite() { "gradient in the backward pass" } else { "loss in the forward pass" };
                let finite = world.numbers(&[f64::from(u8::from(own_is_finite))])?;
                let of_ranks = ranks_without(&finite);
                return Err(Error::data(format!("non-finite {what}{of_ranks}, {PATIENCE} steps in a row"))
                    .hint("lower --learning-rate, set --clip-norm 1, or train with --precision fp32"));
            }
            return Ok(Updated { loss, gradient_norm, applied: false });
        }
        self.non_finite = 0;
        if let Some(limit) = self.clip_norm.filter(|limit| gradient_norm > *limit) {
            self.adam.scale_gradients(limit / gradient_norm);
        }
        self.adam.step(rate);
        if let Some(Ema { decay, means }) = &mut self.ema {
            tch::no_grad(|| {
                for (mean, (_, tensor)) in means.iter_mut().zip(self.adam.parameters()) {
                    drop(mean.lerp_(tensor, 1.0 - *decay));
                }
            });
        }
        Ok(Updated { loss, gradient_norm, applied: true })
    }

    /// Runs `body` with the running means in place of what trains, if there are any.
    pub fn with_means<T>(&self, body: impl FnOnce() -> T) -> T {
        let Some(Ema { means, .. }) = &self.ema else { return body() };
        with_values(self.trained(), means, body)
    }
}

/// Names the ranks whose numbers were not finite, 0 in `finite`; nothing for one process alone, or where only the sum was not.
fn ranks_without(finite: &[f64]) -> String {
    let ranks = finite.iter().enumerate().filter(|(_, finite)| **finite == 0.0);
    let ranks: Vec<String> = ranks.map(|(rank, _)| rank.to_string()).collect();
    if finite.len() == 1 || ranks.is_empty() { String::new() } else { format!(" of rank {}", ranks.join(", ")) }
}

/// Runs `body` with `values` in place of the tensors `trained`, one for each; afterwards, also by a panic, they are as they were.
/// A graph that was built before must not be followed backwards after.
pub fn with_values<T>(trained: &[(String, Tensor)], values: &[Tensor], body: impl FnOnce() -> T) -> T {
    let own: Vec<Tensor> = trained.iter().map(|(_, tensor)| tensor.detach().copy()).collect();
    let _restored = Restored { trained, own };
    set(trained, values);
    body()
}

/// Gives tensors their own values back when it is dropped.
struct Restored<'a> {
    trained: &'a [(String, Tensor)],
    own: Vec<Tensor>,
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        set(self.trained, &self.own);
    }
}

fn set(trained: &[(String, Tensor)], values: &[Tensor]) {
    tch::no_grad(|| {
        for ((_, tensor), value) in trained.iter().zip(values) {
            tensor.shallow_clone().copy_(value);
        }
    });
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::world::tests::in_threads;

    /// One weight, 1, under Adam; and the update of it.
    fn weight(clip_norm: Option<f64>, ema_decay: Option<f64>) -> (Tensor, Update) {
        let weight = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let settings =
            AdamSettings { rate: 0.0, beta1: 0.9, beta2: 0.999, weight_decay: 0.0, epsilon: 1e-8, decoupled: true };
        let trained = vec![("weight".to_owned(), weight.shallow_clone())];
        (weight, Update::new(trained, settings, clip_norm, ema_decay))
    }

    #[test]
    fn numbers_that_overflow_move_nothing_and_end_the_run_at_the_third_time() {
        let (weight, mut update) = weight(Some(1.0), Some(0.9));
        let mut step = || {
            update.adam.zero_gradients();
            let loss = (&weight * f64::NAN).sum(Kind::Float);
            loss.backward();
            update.apply(&World::alone(), loss.double_value(&[]), 0.1)
        };
        for _ in 0..2 {
            assert!(!step().unwrap().applied);
        }
        assert_eq!(step().unwrap_err().to_string(), "non-finite loss in the forward pass, 3 steps in a row");
        assert_eq!(weight.double_value(&[0]), 1.0);
    }

    #[test]
    fn numbers_that_overflow_on_one_rank_name_it() {
        let errors = in_threads(3, |world| {
            let (_, mut update) = weight(None, None);
            let mut step = |factor: f64| {
                update.adam.zero_gradients();
                // A loss of rank 1 overflows, and a gradient of rank 2.
                let own = if world.rank() == 1 { factor } else { 1.0 };
                let loss = update.trained()[0].1.sum(Kind::Float) * own;
                loss.backward();
                if world.rank() == 2 && factor == 1.0 {
                    drop(update.trained()[0].1.grad().fill_(f64::INFINITY));
                }
                update.apply(world, loss.double_value(&[]), 0.1).map_err(|error| error.to_string())
            };
            let loss = [f64::NAN; 3].map(&mut step);
            assert!(loss[..2].iter().all(|step| step.as_ref().is_ok_and(|step| !step.applied)));
            [loss[2].clone().unwrap_err(), step(1.0).unwrap_err()]
        });
        let loss = "non-finite loss in the forward pass of rank 1, 3 steps in a row";
        let gradient = "non-finite gradient in the backward pass of rank 2, 3 steps in a row";
        assert_eq!(errors, vec![[loss, gradient]; 3]);
    }

    #[test]
    fn the_running_mean_follows_and_steps_aside() {
        let (weight, mut update) = weight(None, Some(0.75));
        (-&weight).sum(Kind::Float).backward();
        assert!(update.apply(&World::alone(), -1.0, 0.1).unwrap().applied);
        let now = weight.double_value(&[0]);
        // Adam's first step is the rate: 1.1; the mean a quarter of the way: 1.025.
        assert!((now - 1.1).abs() < 1e-6);
        update.with_means(|| assert!((weight.double_value(&[0]) - 1.025).abs() < 1e-6));
        assert_eq!(weight.double_value(&[0]), now);
    }
}
