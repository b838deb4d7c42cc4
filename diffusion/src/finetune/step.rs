//! The one place where a gradient step happens: micro-batches, backward passes, clipping, the optimizer, and what to do when
//! memory runs out or numbers overflow.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use reward::{
    event::{Event, Observer},
    native::{AdamSettings, empty_cache, panic_text},
    optim::Adam,
};
use tch::{Device, Tensor};

use crate::{
    Error, Result,
    algorithm::{Loss, numbers},
};

/// Non-finite steps in a row after which the run is given up.
const PATIENCE: usize = 3;

/// What one optimizer step computes, over images `0..count`.
pub(super) trait Work {
    /// What a micro-batch needs that takes no graph.
    type Prepared;

    /// Prepares every micro-batch, without a graph.
    fn prepare(&self, micro_batches: &[Range<usize>]) -> Result<Vec<Self::Prepared>>;

    /// The mean loss over one micro-batch, with a graph.
    fn loss(&self, prepared: Self::Prepared) -> Result<Loss>;
}

/// Optimizer, running mean and the size of micro-batches.
pub(super) struct Stepper {
    /// AdamW over what trains.
    pub(super) adam: Adam,
    /// A running mean of what trains, in the optimizer's order.
    pub(super) ema: Option<Ema>,
    /// Images that go through forward and backward at a time; shrinks when memory runs out.
    pub(super) micro: usize,
    trained: Vec<(String, Tensor)>,
    clip_norm: f64,
    non_finite: usize,
    device: Device,
}

/// An exponential running mean of tensors.
pub(super) struct Ema {
    decay: f64,
    /// One for each tensor that trains.
    pub(super) means: Vec<Tensor>,
}

/// What one step measured.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// Mean over the batch, before the update.
    pub(super) loss: f64,
    /// Norm of the gradient before clipping.
    pub(super) gradient_norm: f64,
    /// Whether the weights moved; they do not on a non-finite loss or gradient.
    pub(super) applied: bool,
    /// Raw values of each reward over the batch.
    pub(super) rewards: Vec<Vec<f64>>,
    /// Seconds of the roll-out, the forward passes with a graph, the backward passes, the optimizer.
    pub(super) seconds: [f64; 4],
}

impl Stepper {
    /// AdamW over `trained`, fp32 leaves.
    pub(super) fn new(
        trained: Vec<(String, Tensor)>,
        weight_decay: f64,
        clip_norm: f64,
        ema_decay: Option<f64>,
        micro: usize,
        device: Device,
    ) -> Self {
        let settings =
            AdamSettings { rate: 0.0, beta1: 0.9, beta2: 0.999, weight_decay, epsilon: 1e-8, decoupled: true };
        let handles = |all: &[(String, Tensor)]| -> Vec<(String, Tensor)> {
            all.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
        };
        let means = || trained.iter().map(|(_, tensor)| tensor.detach().copy()).collect();
        Self {
            adam: Adam::new(handles(&trained), settings),
            ema: ema_decay.map(|decay| Ema { decay, means: means() }),
            micro,
            trained,
            clip_norm,
            non_finite: 0,
            device,
        }
    }

    /// One optimizer step at rate `rate` over `count` images. Where memory runs out, the graph is dropped and the same step is
    /// taken again in micro-batches of half the size.
    ///
    /// # Errors
    /// The work fails, one image does not fit into memory, or loss or gradient were not finite for the third time in a row.
    pub(super) fn step(
        &mut self,
        work: &impl Work,
        count: usize,
        rate: f64,
        observer: &dyn Observer,
    ) -> Result<Outcome> {
        let mut outcome = loop {
            self.adam.zero_gradients();
            // A panic may have left the gradient mode of this thread off.
            let attempt = || tch::with_grad(|| self.accumulate(work, count));
            match catch_unwind(AssertUnwindSafe(attempt)) {
                Ok(result) => break result?,
                Err(panic) => {
                    let text = panic_text(&*panic);
                    drop(panic);
                    if !is_out_of_memory(&text) {
                        return Err(Error::data(format!("training stopped in libtorch: {text}")));
                    }
                    if self.micro == 1 {
                        return Err(Error::data(format!("out of memory with one image at a time: {text}")).hint(
                            "gradient_checkpointing = \"on\", precision = \"bf16\", a smaller height and width",
                        ));
                    }
                    self.adam.zero_gradients();
                    empty_cache(self.device);
                    self.micro = self.micro.div_ceil(2);
                    let note = format!(
                        "out of memory ({text}): going on with micro-batches of {}, the effective batch stays",
                        self.micro
                    );
                    observer.event(&Event::Warning(&note));
                }
            }
        };
        let started = Instant::now();
        outcome.gradient_norm = self.adam.gradient_norm();
        if !(outcome.loss.is_finite() && outcome.gradient_norm.is_finite()) {
            self.non_finite += 1;
            if self.non_finite >= PATIENCE {
                let what = match outcome.loss.is_finite() {
                    true => "gradient in the backward pass",
                    false => "loss in the forward pass",
                };
                return Err(Error::data(format!("non-finite {what}, {PATIENCE} steps in a row"))
                    .hint("lower learning_rate, or train with precision = \"fp32\""));
            }
            return Ok(outcome);
        }
        self.non_finite = 0;
        outcome.applied = true;
        if self.clip_norm > 0.0 && outcome.gradient_norm > self.clip_norm {
            self.adam.scale_gradients(self.clip_norm / outcome.gradient_norm);
        }
        self.adam.step(rate);
        if let Some(Ema { decay, means }) = &mut self.ema {
            tch::no_grad(|| {
                for (mean, (_, tensor)) in means.iter_mut().zip(&self.trained) {
                    drop(mean.lerp_(tensor, 1.0 - *decay));
                }
            });
        }
        outcome.seconds[3] = started.elapsed().as_secs_f64();
        Ok(outcome)
    }

    fn accumulate(&self, work: &impl Work, count: usize) -> Result<Outcome> {
        let micro_batches: Vec<Range<usize>> =
            (0..count).step_by(self.micro).map(|start| start..count.min(start + self.micro)).collect();
        let mut outcome = Outcome::default();
        let mut clock = Instant::now();
        let mut lap = |phase: &mut f64| {
            *phase += clock.elapsed().as_secs_f64();
            clock = Instant::now();
        };
        let prepared = tch::no_grad(|| work.prepare(&micro_batches))?;
        lap(&mut outcome.seconds[0]);
        for (range, prepared) in micro_batches.iter().zip(prepared) {
            let Loss { loss, rewards } = work.loss(prepared)?;
            let loss = loss * (range.len() as f64 / count as f64);
            outcome.loss += loss.double_value(&[]);
            lap(&mut outcome.seconds[1]);
            loss.backward();
            outcome.rewards.resize(rewards.len(), Vec::new());
            for (all, some) in outcome.rewards.iter_mut().zip(&rewards) {
                all.extend(numbers(some)?);
            }
            lap(&mut outcome.seconds[2]);
        }
        Ok(outcome)
    }

    /// Runs `body` with the running means in place of what trains, where there are any.
    pub(super) fn with_means<T>(&self, body: impl FnOnce() -> T) -> T {
        let Some(Ema { means, .. }) = &self.ema else { return body() };
        let set = |values: &[Tensor]| {
            tch::no_grad(|| {
                for ((_, tensor), value) in self.trained.iter().zip(values) {
                    tensor.shallow_clone().copy_(value);
                }
            });
        };
        let own: Vec<Tensor> = self.trained.iter().map(|(_, tensor)| tensor.detach().copy()).collect();
        set(means);
        let result = body();
        set(&own);
        result
    }

    /// What trains, by name.
    pub(super) fn trained(&self) -> &[(String, Tensor)] {
        &self.trained
    }
}

/// Whether libtorch says that memory ran out, on a GPU or a CPU.
pub(super) fn is_out_of_memory(text: &str) -> bool {
    let text = text.to_lowercase();
    ["out of memory", "can't allocate memory", "alloc_failed"].iter().any(|said| text.contains(said))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use reward::{event::Silent, native::checkpoint};
    use tch::Kind;

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

    impl Work for Fit {
        type Prepared = Range<usize>;

        fn prepare(&self, micro_batches: &[Range<usize>]) -> Result<Vec<Self::Prepared>> {
            Ok(micro_batches.to_vec())
        }

        fn loss(&self, range: Self::Prepared) -> Result<Loss> {
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
            Ok(Loss { rewards: vec![losses.detach()], loss: losses.mean(Kind::Float) })
        }
    }

    fn fitted(failing: Failing) -> (f64, usize, usize, Outcome) {
        let weight = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let trained = vec![("weight".to_owned(), weight.shallow_clone())];
        let mut stepper = Stepper::new(trained, 0.0, 0.0, None, 8, Device::Cpu);
        let work = Fit { weight, failing, failures: Cell::new(0) };
        let outcome = stepper.step(&work, 8, 0.1, &Silent).unwrap();
        assert!(outcome.applied);
        (work.weight.grad().double_value(&[0]), stepper.micro, work.failures.get(), outcome)
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

    struct Nan(Tensor);

    impl Work for Nan {
        type Prepared = ();

        fn prepare(&self, micro_batches: &[Range<usize>]) -> Result<Vec<()>> {
            Ok(vec![(); micro_batches.len()])
        }

        fn loss(&self, (): ()) -> Result<Loss> {
            Ok(Loss { loss: (&self.0 * f64::NAN).sum(Kind::Float), rewards: Vec::new() })
        }
    }

    #[test]
    fn numbers_that_overflow_move_nothing_and_end_the_run_at_the_third_time() {
        let weight = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let trained = vec![("weight".to_owned(), weight.shallow_clone())];
        let mut stepper = Stepper::new(trained, 0.0, 1.0, Some(0.9), 1, Device::Cpu);
        let work = Nan(weight.shallow_clone());
        for _ in 0..2 {
            assert!(!stepper.step(&work, 1, 0.1, &Silent).unwrap().applied);
        }
        assert_eq!(weight.double_value(&[0]), 1.0);
        let error = stepper.step(&work, 1, 0.1, &Silent).unwrap_err();
        assert_eq!(error.to_string(), "non-finite loss in the forward pass, 3 steps in a row");
    }

    #[test]
    fn the_running_mean_follows_and_steps_aside() {
        let weight = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let trained = vec![("weight".to_owned(), weight.shallow_clone())];
        let mut stepper = Stepper::new(trained, 0.0, 0.0, Some(0.75), 8, Device::Cpu);
        let work = Fit { weight: weight.shallow_clone(), failing: Failing::Nowhere, failures: Cell::new(0) };
        stepper.step(&work, 8, 0.1, &Silent).unwrap();
        let now = weight.double_value(&[0]);
        // Adam's first step is the rate: 1.1; the mean a quarter of the way: 1.025.
        assert!((now - 1.1).abs() < 1e-6);
        stepper.with_means(|| assert!((weight.double_value(&[0]) - 1.025).abs() < 1e-6));
        assert_eq!(weight.double_value(&[0]), now);
    }
}
