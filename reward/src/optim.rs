//! Adam and AdamW with fp32 state that can be saved, on libtorch's fused kernels, and the learning-rate schedule.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::native::{AdamSettings, AdamTensors, adam_step, gradient_norm};

/// Adam (Kingma & Ba, 2014, <https://arxiv.org/abs/1412.6980>, algorithm 1) or AdamW (Loshchilov & Hutter, 2017,
/// <https://arxiv.org/abs/1711.05101>, algorithm 2), as `torch.optim` has them.
pub struct Adam {
    parameters: Vec<(String, Tensor)>,
    /// First moment, second moment, step count of each parameter.
    state: Vec<[Tensor; 3]>,
    settings: AdamSettings,
}

impl Adam {
    /// An optimizer over fp32 leaves, with zero state.
    pub fn new(parameters: Vec<(String, Tensor)>, settings: AdamSettings) -> Self {
        let zeros = |(_, tensor): &(String, Tensor)| {
            let step = Tensor::zeros([] as [i64; 0], (Kind::Float, tensor.device()));
            tch::no_grad(|| [tensor.zeros_like(), tensor.zeros_like(), step])
        };
        Self { state: parameters.iter().map(zeros).collect(), parameters, settings }
    }

    /// The Euclidean norm of all gradients together.
    pub fn gradient_norm(&self) -> f64 {
        gradient_norm(&self.gradients().map(|(_, gradient)| gradient).collect::<Vec<_>>())
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale_gradients(&self, factor: f64) {
        tch::no_grad(|| self.gradients().for_each(|(_, mut gradient)| drop(gradient.g_mul_scalar_(factor))));
    }

    /// One step at learning rate `rate`. A parameter that no loss reached keeps its value and its state, as in PyTorch.
    pub fn step(&mut self, rate: f64) {
        let (reached, gradients): (Vec<usize>, Vec<Tensor>) = self.gradients().unzip();
        let state = |part: usize| reached.iter().map(|index| &self.state[*index][part]).collect();
        let tensors = AdamTensors {
            parameters: reached.iter().map(|index| &self.parameters[*index].1).collect(),
            gradients,
            means: state(0),
            squares: state(1),
            steps: state(2),
        };
        adam_step(&tensors, AdamSettings { rate, ..self.settings });
    }

    /// Forgets the gradients.
    pub fn zero_gradients(&mut self) {
        self.parameters.iter_mut().for_each(|(_, tensor)| tensor.zero_grad());
    }

    /// Every state tensor under `NAME.mean`, `NAME.square`, `NAME.step`, to be saved and given back to [`Adam::set_state`].
    pub fn state(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.parameters.iter().zip(&self.state).flat_map(|((name, _), state)| {
            STATE.iter().zip(state).map(move |(part, tensor)| (format!("{name}.{part}"), tensor))
        })
    }

    /// Sets the state from saved tensors.
    ///
    /// # Errors
    /// Whatever `read(name, shape)` says about a tensor it does not have.
    pub fn set_state<E>(&mut self, read: impl Fn(&str, &[i64]) -> Result<Tensor, E>) -> Result<(), E> {
        for ((name, _), state) in self.parameters.iter().zip(&mut self.state) {
            for (part, tensor) in STATE.iter().zip(state) {
                let saved = read(&format!("{name}.{part}"), &tensor.size())?;
                tch::no_grad(|| tensor.copy_(&saved));
            }
        }
        Ok(())
    }

    /// Index and gradient of every parameter that has one.
    fn gradients(&self) -> impl Iterator<Item = (usize, Tensor)> + '_ {
        let gradients = self.parameters.iter().map(|(_, tensor)| tensor.grad()).enumerate();
        gradients.filter(|(_, gradient)| gradient.defined())
    }
}

/// The first of these tensors that holds a NaN or an infinity.
pub fn not_finite<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Option<&'a str> {
    let finite = |tensor: &Tensor| tch::no_grad(|| tensor.isfinite().all().int64_value(&[]) == 1);
    tensors.into_iter().find(|(_, tensor)| !finite(tensor)).map(|(name, _)| name)
}

const STATE: [&str; 3] = ["mean", "square", "step"];

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// It does not (the original).
    Constant,
    /// Half a cosine from the full rate to 0 at the last step.
    Cosine,
}

impl Schedule {
    /// The factor in `0..=1` on the learning rate for step `step` (from 1) of `total`: linear over `warmup` steps first.
    pub fn factor(self, step: usize, total: usize, warmup: usize) -> f64 {
        if step <= warmup {
            return step as f64 / warmup as f64;
        }
        match self {
            Self::Constant => 1.0,
            Self::Cosine => {
                let progress = (step - warmup - 1) as f64 / (total - warmup).max(1) as f64;
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_that_is_not_finite_is_found() {
        let good = Tensor::from_slice(&[1.0_f32, -3e38]);
        let [nan, infinite] = [f32::NAN, f32::NEG_INFINITY].map(|value| Tensor::from_slice(&[0.0, value]));
        assert_eq!(not_finite([("a", &good), ("b", &good)]), None);
        assert_eq!(not_finite([("a", &good), ("b", &nan)]), Some("b"));
        assert_eq!(not_finite([("a", &infinite), ("b", &good)]), Some("a"));
    }

    #[test]
    fn warm_up_is_linear_and_the_cosine_ends_near_zero() {
        assert_eq!(Schedule::Constant.factor(1, 10, 0), 1.0);
        assert_eq!(Schedule::Constant.factor(1, 10, 4), 0.25);
        assert_eq!(Schedule::Constant.factor(4, 10, 4), 1.0);
        assert_eq!(Schedule::Cosine.factor(5, 10, 4), 1.0);
        // (8 - 4 - 1) / 6 = 1/2 of the way: cos 90° = 0.
        assert!((Schedule::Cosine.factor(8, 10, 4) - 0.5).abs() < 1e-12);
        assert!(Schedule::Cosine.factor(10, 10, 4) < 0.07);
    }
}
