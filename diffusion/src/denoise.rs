//! The one sampling loop: generation, roll-outs and steps with a graph are its callers.

use std::ops::Range;

use tch::Tensor;

use crate::schedule::{Sampler, Step};

/// The end of a loop.
pub struct Denoised {
    /// Latents after the last step, `[B, C, h, w]`, fp32.
    pub latents: Tensor,
    /// The x₀ that the last step was taken towards, the same shape; the latents where no step ran.
    pub original: Tensor,
}

/// Takes steps `steps` of `sampler` from `start` `[B, C, h, w]`. `start` is noise of unit variance before the first step, else
/// the latents that the step before left.
///
/// `predict` gives what the model predicts before a step for an input as the sampler scales it; `noise` gives what a stochastic
/// step adds, of unit variance; `after` sees each step and the latents it led to. Gradients are neither switched on nor off.
///
/// # Errors
/// Those of `predict` and `after`.
pub fn denoise<E>(
    sampler: &Sampler,
    start: &Tensor,
    steps: Range<usize>,
    mut predict: impl FnMut(usize, &Tensor) -> Result<Tensor, E>,
    noise: impl Fn(usize) -> Tensor,
    mut after: impl FnMut(usize, &Step, &Tensor) -> Result<(), E>,
) -> Result<Denoised, E> {
    let mut latents = if steps.start == 0 { start * sampler.init_noise_sigma() } else { start.shallow_clone() };
    let mut original = None;
    for index in steps {
        let output = predict(index, &sampler.scale_input(&latents, index))?;
        let step = sampler.step(index, &output, &latents, original.as_ref());
        latents = step.sample(|| noise(index));
        after(index, &step, &latents)?;
        original = Some(step.predicted_original);
    }
    let original = original.unwrap_or_else(|| latents.shallow_clone());
    Ok(Denoised { latents, original })
}

/// Guided prediction ε∅ + scale · (ε − ε∅) of a model's output for both branches, `[2B, C, h, w]` with ε∅ first. See
/// "Classifier-Free Diffusion Guidance", Ho and Salimans, 2022, <https://arxiv.org/abs/2207.12598>, equation 6, in another form.
pub fn guide(output: &Tensor, scale: f64) -> Tensor {
    let halves = output.chunk(2, 0);
    &halves[0] + (&halves[1] - &halves[0]) * scale
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::schedule::{PredictionType, SamplerName, SchedulerConfig};

    /// ε∅ = 1, ε = 2, scale 7.5: 1 + 7.5 · (2 − 1).
    #[test]
    fn guidance_by_hand() {
        let output = Tensor::from_slice(&[1.0_f32, 2.0]).view([2, 1, 1, 1]);
        assert_eq!(guide(&output, 7.5).double_value(&[0, 0, 0, 0]), 8.5);
    }

    /// A loop that is interrupted and goes on from its latents ends where the whole loop ends, for samplers without a memory.
    #[test]
    fn parts_of_a_loop_are_the_loop() {
        let config = SchedulerConfig::stable_diffusion(PredictionType::Epsilon);
        for (name, eta) in [(SamplerName::Ddim, 0.5), (SamplerName::Euler, 0.0), (SamplerName::EulerA, 0.0)] {
            let sampler = Sampler::new(name, &config, 5, eta).unwrap();
            let start = Tensor::from_slice(&[0.3_f32, -1.2, 0.8, 0.1]).view([1, 4, 1, 1]);
            let run = |start: &Tensor, steps| {
                let noise = |index: usize| Tensor::from_slice(&[index as f32; 4]).view([1, 4, 1, 1]);
                let predict = |_, input: &Tensor| Ok::<_, Infallible>(input.tanh());
                let Ok(end) = denoise(&sampler, start, steps, predict, noise, |_, _, _| Ok(()));
                end.latents
            };
            let (whole, parts) = (run(&start, 0..5), run(&run(&start, 0..2), 2..5));
            assert_eq!(whole, parts, "{name}");
        }
    }
}
