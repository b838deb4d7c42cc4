//! One optimizer step over a batch: micro-batches forward and backward, then the update.

use std::{collections::BTreeMap, ops::Range, time::Instant};

use reward::{
    native::AdamSettings,
    optim::{Update, Updated},
    world::World,
};

use crate::{
    Error, Result,
    micro_batches::MicroBatches,
    objective::{Loss, numbers},
};

/// Measurements of one step.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Mean over the batch, before the update.
    pub loss: f64,
    /// The gradient, and whether the weights moved.
    pub updated: Updated,
    /// Raw values of each reward over the batch.
    pub rewards: Vec<Vec<f64>>,
    /// What else is worth a line, by name: means over the batch.
    pub figures: BTreeMap<&'static str, f64>,
    /// Seconds of forward passes with a graph.
    pub forward_seconds: f64,
    /// Seconds of backward passes.
    pub backward_seconds: f64,
    /// Seconds of the optimizer.
    pub optimizer_seconds: f64,
}

impl Outcome {
    /// Brings figures and rewards of all ranks together: sums, and the values of all items in their order.
    fn add_up(&mut self, world: &World) -> Result<()> {
        if world.size() == 1 {
            return Ok(());
        }
        type Sent = (BTreeMap<String, u64>, Vec<Vec<u64>>);
        let bits = |values: &Vec<f64>| values.iter().map(|value| value.to_bits()).collect();
        let own: Sent = (
            self.figures.iter().map(|(name, value)| ((*name).to_owned(), value.to_bits())).collect(),
            self.rewards.iter().map(bits).collect(),
        );
        let wrong = |error| Error::data("what a rank sent cannot be read").caused_by(error);
        let sent = world.gather_bytes(&serde_json::to_vec(&own).map_err(wrong)?)?;
        let all = sent.iter().map(|bytes| serde_json::from_slice::<Sent>(bytes).map_err(wrong));
        let all = all.collect::<Result<Vec<_>>>()?;
        for (name, sum) in &mut self.figures {
            *sum = all.iter().filter_map(|(figures, _)| figures.get(*name)).map(|bits| f64::from_bits(*bits)).sum();
        }
        for (index, values) in self.rewards.iter_mut().enumerate() {
            let parts = all.iter().filter_map(|(_, rewards)| rewards.get(index)).flatten();
            *values = parts.map(|bits| f64::from_bits(*bits)).collect();
        }
        Ok(())
    }

    /// Adds the seconds of another step.
    pub fn add(&mut self, step: &Self) {
        self.forward_seconds += step.forward_seconds;
        self.backward_seconds += step.backward_seconds;
        self.optimizer_seconds += step.optimizer_seconds;
    }
}

/// AdamW with PyTorch's defaults.
pub fn adamw(weight_decay: f64) -> AdamSettings {
    AdamSettings { rate: 0.0, beta1: 0.9, beta2: 0.999, weight_decay, epsilon: 1e-8, decoupled: true }
}

/// Takes one optimizer step at rate `rate` over `count` items, of which each rank has its share. `loss` gives the mean loss of
/// some, with a graph.
///
/// # Errors
/// The loss fails, one image does not fit into memory, or loss or gradient were not finite for the third time in a row.
pub fn take(
    update: &mut Update,
    micro_batches: &MicroBatches,
    count: usize,
    rate: f64,
    loss: impl Fn(Range<usize>) -> Result<Loss>,
) -> Result<Outcome> {
    let mut outcome = micro_batches.run(count, |ranges| {
        update.adam.zero_gradients();
        let mut outcome = Outcome::default();
        // A panic may have left the gradient mode of this thread off.
        tch::with_grad(|| {
            for range in ranges {
                let share = range.len() as f64 / count as f64;
                let started = Instant::now();
                let Loss { loss, rewards, figures } = loss(range.clone())?;
                let loss = loss * share;
                outcome.loss += loss.double_value(&[]);
                for (name, value) in figures {
                    *outcome.figures.entry(name).or_default() += value * share;
                }
                outcome.forward_seconds += started.elapsed().as_secs_f64();
                let started = Instant::now();
                loss.backward();
                outcome.rewards.resize(rewards.len(), Vec::new());
                for (all, some) in outcome.rewards.iter_mut().zip(&rewards) {
                    all.extend(numbers(some)?);
                }
                outcome.backward_seconds += started.elapsed().as_secs_f64();
            }
            Ok(outcome)
        })
    })?;
    let started = Instant::now();
    let world = micro_batches.world();
    outcome.add_up(world)?;
    outcome.updated = update.apply(world, outcome.loss, rate)?;
    outcome.loss = outcome.updated.loss;
    outcome.optimizer_seconds = started.elapsed().as_secs_f64();
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use reward::{event::Silent, native::checkpoint};
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Failing {
        Nowhere,
        Forward,
        Backward,
        Recomputation,
    }

    /// A weight that is to match the mean of 0..8; more than two images at a time do not fit.
    struct Fit {
        weight: Tensor,
        failing: Failing,
        failures: Cell<usize>,
    }

    impl Fit {
        fn loss(&self, range: Range<usize>) -> Loss {
            let fails = range.len() > 2;
            self.failures.set(self.failures.get() + usize::from(fails && self.failing != Failing::Nowhere));
            assert!(!(fails && self.failing == Failing::Forward), "CUDA out of memory. Tried to allocate 2.00 GiB");
            let targets = Tensor::arange_start(range.start as i64, range.end as i64, (Kind::Float, Device::Cpu));
            let mut losses = (&self.weight - targets).square();
            if fails && self.failing == Failing::Backward {
                // The gradient of a narrow view takes the whole of what it is a view of.
                losses = losses.unsqueeze(1).expand([-1, 1 << 50], false).narrow(1, 0, 1).squeeze_dim(1);
            }
            if fails && self.failing == Failing::Recomputation {
                let calls = std::sync::atomic::AtomicUsize::new(0);
                losses = checkpoint(&losses, &[], move |x| {
                    let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    assert_eq!(call, 0, "CUDA out of memory. Tried to allocate 2.00 GiB");
                    x * 1.0
                });
            }
            Loss { rewards: vec![losses.detach()], ..Loss::new(losses.mean(Kind::Float)) }
        }
    }

    fn fitted(failing: Failing) -> (f64, usize, usize, Outcome) {
        let weight = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let trained = vec![("weight".to_owned(), weight.shallow_clone())];
        let mut update = Update::new(trained, adamw(0.0), None, None);
        let world = World::alone();
        let micro_batches = MicroBatches::new(&world, 8, Device::Cpu, &Silent);
        let fit = Fit { weight, failing, failures: Cell::new(0) };
        let outcome = take(&mut update, &micro_batches, 8, 0.1, |range| Ok(fit.loss(range))).unwrap();
        assert!(outcome.updated.applied);
        (fit.weight.grad().double_value(&[0]), micro_batches.size(), fit.failures.get(), outcome)
    }

    #[test]
    fn running_out_of_memory_anywhere_keeps_the_effective_batch() {
        let (gradient, micro, failures, whole) = fitted(Failing::Nowhere);
        // d/dw of the mean of (w − i)² over 0..8 at 0: −2 · 3.5.
        assert_eq!((gradient, micro, failures), (-7.0, 8, 0));
        for failing in [Failing::Forward, Failing::Backward, Failing::Recomputation] {
            let (gradient, micro, failures, outcome) = fitted(failing);
            assert_eq!((gradient, micro, failures), (-7.0, 2, 2), "{failing:?}");
            assert_eq!((outcome.loss, &outcome.rewards), (whole.loss, &whole.rewards), "{failing:?}");
        }
    }
}
