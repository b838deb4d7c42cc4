//! Adam and AdamW with fp32 state that can be saved, on libtorch's fused kernels.

use tch::{Kind, Tensor};

use crate::{
    Result,
    native::{AdamSettings, AdamTensors, adam_step, gradient_norm},
    world::World,
};

/// Names of a parameter's state.
const STATE: [&str; 3] = ["mean", "square", "step"];

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

    /// What it trains, by name.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Adds up the gradients over all ranks, and gives the sum of the losses. A parameter that a loss reached on any rank has a
    /// gradient on all ranks then.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn add_up(&self, world: &World, loss: f64) -> Result<f64> {
        if world.size() == 1 {
            return Ok(loss);
        }
        let reached = self.parameters.iter().map(|(_, tensor)| f64::from(u8::from(tensor.grad().defined())));
        let reached = Tensor::from_slice(&std::iter::once(loss).chain(reached).collect::<Vec<_>>());
        world.all_reduce(&[reached.shallow_clone()])?;
        let mut gradients = Vec::new();
        for ((_, tensor), place) in self.parameters.iter().zip(1..) {
            if reached.double_value(&[place]) > 0.0 {
                if !tensor.grad().defined() {
                    tensor.zeros_like().g_mul(tensor).sum(Kind::Float).backward();
                }
                gradients.push(tensor.grad());
            }
        }
        world.all_reduce(&gradients)?;
        Ok(reached.double_value(&[0]))
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
    pub fn set_state<E>(
        &mut self,
        read: impl Fn(&str, &[i64]) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<(), E> {
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
