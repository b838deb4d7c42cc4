//! From latents to a loss: decode, score, standardise, shape; one place for all methods.

use reward::{
    closed_set,
    rewards::{Pending, Reward},
    world::World,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    noise::Stream,
    policy::{Batch, Unrolled},
    vae::Vae,
};

closed_set! {
    /// How a standardised reward r becomes a loss.
    pub enum Shaping: "shaping" {
        /// −r (DRaFT).
        Negative = "negative",
        /// relu(c − r): images above c pull no more (ReFL, DRTune).
        Relu = "relu",
    }
}

/// A reward with its share of the whole.
pub struct Weighted {
    /// The reward's name, unlike any other's of the run.
    pub label: String,
    /// The reward.
    pub reward: Box<dyn Reward>,
    /// The factor on the standardised reward; 0: watched, not maximised.
    pub weight: f64,
}

/// The unit of a reward.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Mean over the base model's images.
    pub mean: f64,
    /// Standard deviation over the base model's images.
    pub deviation: f64,
}

impl Scale {
    /// The unit of raw rewards: they stay as they are.
    pub const RAW: Self = Self { mean: 0.0, deviation: 1.0 };
}

/// What training maximises.
pub struct Objective<'a> {
    /// Decodes latents.
    pub vae: &'a Vae,
    /// Rewards whose standardised values are added up, each times its weight.
    pub rewards: &'a [Weighted],
    /// The unit of each reward.
    pub scales: Vec<Scale>,
    /// How the sum becomes a loss.
    pub shaping: Shaping,
    /// c of [`Shaping::Relu`].
    pub margin: f64,
    /// Factor on the reward's part of the loss.
    pub loss_scale: f64,
    /// Factor on the mean squared distance of ε from the base model's.
    pub anchor: f64,
    /// Standard deviation of noise added to the pixels that a reward sees, which flattens its sharp maxima.
    pub pixel_noise: f64,
}

/// The loss of a micro-batch.
pub struct Loss {
    /// The mean over the micro-batch, a scalar with a graph.
    pub loss: Tensor,
    /// Raw values of each reward, `[N]`, without a graph; none where they were known before the loss.
    pub rewards: Vec<Tensor>,
    /// What else is worth a line, by name: means over the micro-batch.
    pub figures: Vec<(&'static str, f64)>,
}

impl Loss {
    /// A loss of images whose rewards are known, or that have none.
    pub fn new(loss: Tensor) -> Self {
        Self { loss, rewards: Vec::new(), figures: Vec::new() }
    }

    /// The same with figures.
    pub fn with(self, figures: Vec<(&'static str, f64)>) -> Self {
        Self { figures, ..self }
    }
}

/// The scores of images, a value an image.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// The weighted sum of the standardised rewards.
    pub total: Vec<f64>,
    /// Raw values of each reward, in the order of the run's rewards.
    pub raw: Vec<Vec<f64>>,
}

/// Scores under way: waits for them.
pub type PendingScores<'a> = Box<dyn FnOnce() -> Result<Scores> + 'a>;

impl Scores {
    /// The scores of all ranks' images, in the order of ranks. All have images.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn of_all(&self, world: &World) -> Result<Self> {
        let raw = self.raw.iter().map(|values| world.numbers(values)).collect::<Result<_>>()?;
        Ok(Self { total: world.numbers(&self.total)?, raw })
    }

    /// Adds the scores of more images.
    pub fn extend(&mut self, more: Self) {
        self.total.extend(more.total);
        self.raw.resize(more.raw.len(), Vec::new());
        for (all, more) in self.raw.iter_mut().zip(more.raw) {
            all.extend(more);
        }
    }
}

impl Objective<'_> {
    /// `latents` `[B, C, h, w]` as pixels `[B, 3, H, W]` in 0..=1, fp32.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        (self.vae.decode(&(latents / self.vae.config.scaling_factor)) / 2.0 + 0.5).clamp(0.0, 1.0)
    }

    /// Begins the scores of all rewards before one is waited for; without a graph those that are only watched.
    fn begin(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Vec<Pending<'_>>> {
        self.rewards
            .iter()
            .map(|Weighted { reward, weight, .. }| match *weight {
                0.0 => tch::no_grad(|| reward.begin(pixels, prompts)),
                _ => reward.begin(pixels, prompts),
            })
            .collect()
    }

    /// Scores `pixels` `[B, 3, H, W]`, the images of `batch`, without a graph.
    ///
    /// # Errors
    /// A reward fails, or gives what is no number.
    pub fn score(&self, pixels: &Tensor, batch: &Batch) -> Result<Scores> {
        self.begin_scores(pixels, batch)?()
    }

    /// Begins what [`Self::score`] does; what comes back waits for rewards that compute elsewhere.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub fn begin_scores<'a>(&'a self, pixels: &Tensor, batch: &Batch) -> Result<PendingScores<'a>> {
        let prompts = batch.prompts.clone();
        let pending = tch::no_grad(|| self.begin(pixels, &prompts.iter().map(String::as_str).collect::<Vec<_>>()))?;
        Ok(Box::new(move || self.finish_scores(pending, &prompts)))
    }

    fn finish_scores(&self, pending: Vec<Pending>, prompts: &[String]) -> Result<Scores> {
        let mut scores = Scores { total: vec![0.0; prompts.len()], raw: Vec::new() };
        for ((weighted, scale), wait) in self.rewards.iter().zip(&self.scales).zip(pending) {
            let values = numbers(&tch::no_grad(wait)?)?;
            if let Some((value, prompt)) = values.iter().zip(prompts).find(|(value, _)| !value.is_finite()) {
                return Err(Error::data(format!("reward `{}` gives {value} for prompt {prompt:?}", weighted.label)));
            }
            for (total, value) in scores.total.iter_mut().zip(&values) {
                *total += (value - scale.mean) * (weighted.weight / scale.deviation);
            }
            scores.raw.push(values);
        }
        Ok(scores)
    }

    /// The mean loss over `unrolled`, the images of `batch`.
    ///
    /// # Errors
    /// A reward fails.
    pub fn loss(&self, unrolled: &Unrolled, batch: &Batch) -> Result<Loss> {
        let prompts: Vec<&str> = batch.prompts.iter().map(String::as_str).collect();
        let mut losses = Vec::new();
        let mut raw: Vec<Vec<Tensor>> = self.rewards.iter().map(|_| Vec::new()).collect();
        for (copy, latents) in unrolled.latents.iter().enumerate() {
            let mut pixels = self.decode(latents);
            if self.pixel_noise > 0.0
                && let [_, channels, height, width] = pixels.size()[..]
            {
                let noise = (batch.noise)(Stream::Pixels(copy), [channels, height, width]);
                pixels = (pixels + noise * self.pixel_noise).clamp(0.0, 1.0);
            }
            let mut total = Tensor::zeros([prompts.len() as i64], (Kind::Float, latents.device()));
            let pending = self.begin(&pixels, &prompts)?;
            for (((weighted, scale), raw), wait) in self.rewards.iter().zip(&self.scales).zip(&mut raw).zip(pending) {
                let reward = wait()?;
                raw.push(reward.detach());
                if weighted.weight != 0.0 {
                    total += (reward - scale.mean) * (weighted.weight / scale.deviation);
                }
            }
            losses.push(match self.shaping {
                Shaping::Negative => -total,
                Shaping::Relu => (self.margin - total).relu(),
            });
        }
        let mut loss = Tensor::cat(&losses, 0).mean(Kind::Float) * self.loss_scale;
        if let Some(anchor) = &unrolled.anchor {
            loss += anchor * self.anchor;
        }
        let rewards = raw.iter().map(|values| Tensor::cat(values, 0)).collect();
        Ok(Loss { rewards, ..Loss::new(loss) })
    }
}

/// The values of a tensor.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Vec::try_from(tensor.detach().to_kind(Kind::Double).to_device(Device::Cpu).flatten(0, -1))
        .map_err(|error| Error::data("values cannot be read back").caused_by(error))
}
