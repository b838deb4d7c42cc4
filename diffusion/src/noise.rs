//! Random numbers from counter-based named streams. What a stream yields depends on its seed and its name alone. What was drawn
//! before, the device and the batch an image is in make no difference.
//!
//! A stream is ChaCha8 (Bernstein, 2008) under the key blake3(seed, name). Normal values are taken from it by the ziggurat method
//! (`rand_distr::StandardNormal`), on the CPU in fp32, and then moved.

use std::fmt;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::Tensor;

/// The streams of a seed. Images are remembered by their seed: how a stream is written must never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Initial latents.
    Latents,
    /// Noise that a stochastic sampler adds in this step.
    Step(usize),
    /// Noise for this noised copy of an image.
    Renoise(usize),
    /// Noise on the pixels of this copy before a reward sees them.
    Pixels(usize),
    /// Noise on latents for comparing predictions at this quarter of the way.
    Drift(usize),
    /// The sample of the VAE's posterior.
    Posterior,
    /// Noise on clean latents in training.
    Noise,
    /// The noise level of training.
    Timestep,
    /// The draw that leaves a prompt out in training.
    Dropout,
    /// The noise level of this draw, where an image is noised several times in a round.
    Level(usize),
    /// Noise of this draw for this sampling step.
    Fresh {
        /// The draw.
        draw: usize,
        /// The sampling step; 0 where there is none.
        step: usize,
    },
    /// The draws of a method in this round.
    Plan(usize),
    /// Noise on this tensor of a reward.
    Weight(usize),
}

impl fmt::Display for Stream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latents => formatter.write_str("latents"),
            Self::Step(step) => write!(formatter, "step/{step}"),
            Self::Renoise(copy) => write!(formatter, "renoise/{copy}"),
            Self::Pixels(copy) => write!(formatter, "pixels/{copy}"),
            Self::Drift(quarter) => write!(formatter, "drift/{quarter}"),
            Self::Posterior => formatter.write_str("posterior"),
            Self::Noise => formatter.write_str("noise"),
            Self::Timestep => formatter.write_str("timestep"),
            Self::Dropout => formatter.write_str("dropout"),
            Self::Level(draw) => write!(formatter, "level/{draw}"),
            Self::Fresh { draw, step } => write!(formatter, "fresh/{draw}/{step}"),
            Self::Plan(round) => write!(formatter, "plan/{round}"),
            Self::Weight(index) => write!(formatter, "weight/{index}"),
        }
    }
}

/// The stream `name` of `seed`.
pub fn stream(seed: u64, name: Stream) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new_derive_key("social-reward diffusion noise 1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.to_string().as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// Standard normal values of one stream, `shape`, fp32, on the CPU.
pub fn normal(seed: u64, name: Stream, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>().max(0) as usize;
    let values: Vec<f32> = StandardNormal.sample_iter(stream(seed, name)).take(count).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// The initial latents of a batch, [B, shape], of unit variance: image i has effective seed `seeds[i]`.
pub fn initial_latents(seeds: &[u64], shape: [i64; 3]) -> Tensor {
    named(seeds, Stream::Latents, shape)
}

/// The noise that stochastic samplers add in step `step`, [B, shape].
pub fn step_noise(seeds: &[u64], step: usize, shape: [i64; 3]) -> Tensor {
    named(seeds, Stream::Step(step), shape)
}

/// The stream `name` of each image, [B, shape], of unit variance.
pub fn named(seeds: &[u64], name: Stream, shape: [i64; 3]) -> Tensor {
    let images: Vec<Tensor> = seeds.iter().map(|seed| normal(*seed, name, &shape)).collect();
    Tensor::stack(&images, 0)
}

/// The prompt of each seed, some of them left out: a share of `dropout` is empty.
pub fn with_dropout<'a>(prompts: impl Iterator<Item = &'a str>, seeds: &[u64], dropout: f64) -> Vec<String> {
    let left_out = |seed: u64| stream(seed, Stream::Dropout).random::<f64>() < dropout;
    let prompt = |(prompt, seed): (&str, &u64)| if left_out(*seed) { String::new() } else { prompt.to_owned() };
    prompts.zip(seeds).map(prompt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous().view(-1)).unwrap()
    }

    /// Images are remembered by their seed: these values must never change.
    #[test]
    fn first_values() {
        assert_eq!(values(&normal(0, Stream::Latents, &[4])), [0.45185047, 0.3856868, -1.0767683, 1.0514436]);
        assert_eq!(values(&step_noise(&[42], 3, [1, 1, 2])), [-0.09734486, -0.7015348]);
    }

    #[test]
    fn an_images_noise_does_not_depend_on_its_batch() {
        let shape = [4, 2, 3];
        let batch = initial_latents(&[5, 6, 7], shape);
        assert_eq!(batch.size(), [3, 4, 2, 3]);
        assert_eq!(values(&batch.get(2)), values(&initial_latents(&[7], shape).get(0)));
        assert_eq!(values(&batch.get(0)), values(&initial_latents(&[7, 5], shape).get(1)));
        assert_ne!(values(&batch.get(0)), values(&batch.get(1)));
        assert_ne!(values(&batch.get(0)), values(&step_noise(&[5], 0, shape).get(0)));
        assert_ne!(values(&step_noise(&[5], 1, shape)), values(&step_noise(&[5], 0, shape)));
    }

    #[test]
    fn values_are_standard_normal() {
        let sample = normal(1, Stream::Noise, &[100_000]);
        let (mean, std) = (sample.mean(tch::Kind::Double).double_value(&[]), sample.std(true).double_value(&[]));
        assert!(mean.abs() < 0.01 && (std - 1.0).abs() < 0.01, "{mean} {std}");
    }
}
