//! Clipped, importance-sampled policy gradients on the steps of DDIM, which DDPO and GRPO share. Images are rolled out with noise
//! in every step, and each step has a probability. Steps that led to better images than others become likelier.

use std::ops::Range;

use rand::seq::SliceRandom;
use tch::{Kind, Tensor};

use super::{Algorithm, Graph, ReadTensor, Round, Scene, Settings, own_samples};
use crate::{
    Error, Result,
    advantage::{self, Deviation, PromptStatistics},
    conditioning::Conditioning,
    noise::{self, Stream},
    objective::{Loss, Scores},
    policy::Policy,
    trajectory::Trajectory,
};

/// Who an image is judged against.
pub enum Judge {
    /// The latest images of the same prompt.
    Prompts(PromptStatistics),
    /// The other images of its group; those of groups without any spread do not train.
    Groups {
        /// Images of a group.
        size: usize,
        /// Whose deviation counts.
        deviation: Deviation,
        /// Several rewards are normalised one by one.
        combined: bool,
    },
}

/// What holds the policy near the base model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Anchor {
    /// Mean squared distance of ε (DPOK).
    Epsilon(f64),
    /// Divergence of the steps (Flow-GRPO).
    Divergence(f64),
}

impl Anchor {
    fn factor(self) -> f64 {
        match self {
            Self::Epsilon(factor) | Self::Divergence(factor) => factor,
        }
    }
}

/// A clipped policy gradient.
pub struct PolicyGradient {
    /// Who an image is judged against.
    pub judge: Judge,
    /// What holds the policy near the base model.
    pub anchor: Anchor,
    /// Whether the last step, which adds hardly any noise, is left out.
    pub drop_last: bool,
    /// Everything else.
    pub settings: Settings,
}

impl PolicyGradient {
    /// Steps of a round that train, ascending, of those that have a probability; drawn anew for each round where not all do.
    fn steps(&self, deviations: &[f64], scene: &Scene, number: usize) -> Vec<usize> {
        let last = deviations.len().saturating_sub(usize::from(self.drop_last)).max(1);
        let steps = (0..last).filter(|step| deviations[*step] > 0.0).collect();
        drawn(steps, self.settings.timestep_fraction, scene.seed, number)
    }

    /// The advantage of each image, within the clip, and the images that train.
    fn judge(&mut self, scene: &Scene, scores: &Scores) -> (Vec<f64>, Vec<usize>, Option<usize>) {
        let all = || (0..scores.total.len()).collect::<Vec<_>>();
        let (advantages, kept, even) = match &mut self.judge {
            Judge::Prompts(statistics) => (statistics.advantages(&scene.items, &scores.total), all(), None),
            Judge::Groups { size, deviation, combined } => {
                let advantages = if *combined {
                    let weights: Vec<f64> = scene.objective.rewards.iter().map(|weighted| weighted.weight).collect();
                    advantage::combined(&scores.raw, &weights, *size)
                } else {
                    advantage::of_groups(&scores.total, *size, *deviation)
                };
                let even = |image: &usize| {
                    let group = image.div_euclid(*size) * *size;
                    advantage::is_even(&advantages[group..advantages.len().min(group + *size)])
                };
                let (dropped, kept): (Vec<usize>, Vec<usize>) = all().into_iter().partition(even);
                (advantages, kept, Some(dropped.len().div_ceil(*size)))
            }
        };
        let clip = self.settings.advantage_clip;
        (advantages.iter().map(|advantage| advantage.clamp(-clip, clip)).collect(), kept, even)
    }
}

impl Algorithm for PolicyGradient {
    fn graph(&self, settings: &Settings) -> Graph {
        let images = settings.batch_size.div_ceil(settings.minibatches);
        let steps = settings.sample_steps.saturating_sub(usize::from(self.drop_last)).max(1);
        let trained = ((steps as f64 * settings.timestep_fraction).round() as usize).max(1);
        Graph { items: images * trained, predictions: 1, decoded: 0, guided: true }
    }

    fn updates(&self) -> usize {
        self.settings.inner_epochs * self.settings.minibatches
    }

    fn round<'a>(&'a mut self, scene: &'a Scene<'a>, number: usize) -> Result<Box<dyn Round + 'a>> {
        let policy = scene.policy;
        let (parts, scores) = own_samples::roll(scene, |images| {
            let batch = scene.batch(images.clone());
            let start = match self.settings.same_noise {
                true => noise::named(&scene.first_seeds(images), Stream::Latents, batch.shape)
                    .to_device(batch.conditioning.device()),
                false => batch.noise(Stream::Latents),
            };
            let trajectory = Trajectory::roll(policy, &start, &batch);
            let latents = trajectory.last();
            (trajectory, latents)
        })?;
        let rolled: Vec<f64> = parts.iter().map(|part| part.log_probabilities.size()[0] as f64).collect();
        let rolled = scene.micro_batches.world().numbers(&rolled)?;
        let places = |images: f64| (0..images as usize).map(move |row| (row, images as usize));
        let mut rolled: Vec<(usize, usize)> = rolled.into_iter().flat_map(places).collect();
        // Another rank may have another kind of processor.
        let own = scene.micro_batches.world().share(rolled.len());
        rolled.iter_mut().enumerate().filter(|(image, _)| !own.contains(image)).for_each(|(_, place)| *place = (0, 0));
        let trajectory = Trajectory::cat(scene.micro_batches.world(), &parts)?;
        let steps = self.steps(&trajectory.deviations, scene, number);
        let (advantages, kept, even) = self.judge(scene, &scores);
        let mut updates = Vec::new();
        for epoch in 0..self.settings.inner_epochs {
            let mut images = kept.clone();
            if self.settings.minibatches > 1 {
                images.shuffle(&mut noise::stream(scene.seed, Stream::Fresh { draw: number, step: epoch }));
            }
            let size = images.len().div_ceil(self.settings.minibatches).max(1);
            updates.extend((0..self.settings.minibatches).map(|part| {
                let start = (part * size).min(images.len());
                images[start..images.len().min(start + size)].to_vec()
            }));
        }
        let prompts = scene.conditioning();
        let mut round =
            PolicyRound { method: self, policy, trajectory, rolled, prompts, steps, updates, advantages, scores, even };
        if policy.unet.parameters.kind != Kind::Float {
            // Rounded, a step in another call is another step: the old probabilities have to come from the calls of training.
            round.trajectory.log_probabilities = round.log_probabilities(scene)?;
            round.rolled.fill((0, 0));
        }
        Ok(Box::new(round))
    }

    fn state(&self, _: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
        let Judge::Prompts(statistics) = &self.judge else { return Vec::new() };
        let (rows, counts) = statistics.rows();
        vec![
            ("rewards".to_owned(), Tensor::from_slice(&rows).view(self.shape())),
            ("counts".to_owned(), Tensor::from_slice(&counts)),
        ]
    }

    fn set_state(&mut self, _: &[(String, Tensor)], read: &ReadTensor) -> Result<()> {
        let shape = self.shape();
        let Judge::Prompts(statistics) = &mut self.judge else { return Ok(()) };
        let values = |tensor: Tensor| {
            Vec::<f32>::try_from(tensor.flatten(0, -1)).map_err(|error| Error::data("a state").caused_by(error))
        };
        statistics.set_rows(&values(read("rewards", &shape)?)?, &values(read("counts", &shape[..1])?)?);
        Ok(())
    }
}

impl PolicyGradient {
    /// Prompts, and rewards that are remembered of each.
    fn shape(&self) -> [i64; 2] {
        [self.settings.prompts as i64, self.settings.buffer_size as i64]
    }
}

/// A roll-out, and which of its images and steps each update trains on.
pub struct PolicyRound<'a> {
    /// The method.
    pub method: &'a PolicyGradient,
    /// The policy that trains.
    pub policy: &'a Policy<'a>,
    /// All images of the round.
    pub trajectory: Trajectory,
    /// The row of each image in the call of this rank that rolled it out, and how many rows that call had; zeros where the old
    /// log-probabilities are from elsewhere.
    pub rolled: Vec<(usize, usize)>,
    /// The prompt of each image.
    pub prompts: Conditioning,
    /// Steps that train.
    pub steps: Vec<usize>,
    /// Images of each update.
    pub updates: Vec<Vec<usize>>,
    /// The advantage of each image.
    pub advantages: Vec<f64>,
    /// The rewards of each image.
    pub scores: Scores,
    /// Groups without spread.
    pub even: Option<usize>,
}

/// Taken steps, looked at again: `N` pairs of an image and a step.
struct Again {
    /// Log-probability of each under the policy as it is, `[N]`.
    log_probabilities: Tensor,
    /// Distance of each from the base model, `[N]`; absent where nobody asked.
    distances: Option<Tensor>,
}

impl PolicyRound<'_> {
    /// The step and the image of each item: all images before one step, then before the next. So a call has the shape of the
    /// roll-out, where as many go at a time.
    fn pairs(images: &[usize], steps: &[usize], items: Range<usize>) -> Vec<(usize, usize)> {
        items.map(|item| (steps[item.div_euclid(images.len())], images[item % images.len()])).collect()
    }

    /// Rows of `[B, columns, ..]` at these columns and images.
    fn at(tensor: &Tensor, pairs: &[(usize, usize)], later: usize) -> Tensor {
        let columns = tensor.size()[1] as usize;
        let rows: Vec<i64> = pairs.iter().map(|(step, image)| (image * columns + step + later) as i64).collect();
        tensor.flatten(0, 1).index_select(0, &Tensor::from_slice(&rows).to_device(tensor.device()))
    }

    fn look_again(&self, pairs: &[(usize, usize)], anchor: Option<Anchor>) -> Again {
        let policy = self.policy;
        let latents = &self.trajectory.latents;
        let (x, next) = (Self::at(latents, pairs, 0), Self::at(latents, pairs, 1));
        let times = policy.sampler.timesteps();
        let timesteps: Vec<f32> = pairs.iter().map(|(step, _)| times[*step] as f32).collect();
        let timesteps = Tensor::from_slice(&timesteps).to_device(x.device());
        let prompts = self.prompts.select(&pairs.iter().map(|(_, image)| *image as i64).collect::<Vec<_>>());
        let output = policy.predict_each(&x, &timesteps, &prompts);
        let base = anchor.map(|anchor| (anchor, policy.predict_base_each(&x, &timesteps, &prompts)));
        let (mut log_probabilities, mut distances) = (Vec::new(), Vec::new());
        for same in pairs.chunk_by(|left, right| left.0 == right.0) {
            let (step, start) = (same[0].0, log_probabilities.iter().map(|part: &Tensor| part.size()[0]).sum::<i64>());
            let part = |tensor: &Tensor| tensor.narrow(0, start, same.len() as i64);
            let (x, output) = (part(&x), part(&output));
            let taken = policy.sampler.step(step, &output, &x, None);
            log_probabilities.push(taken.log_probability(&part(&next)));
            let Some((anchor, base)) = &base else { continue };
            let base = part(base);
            distances.push(match anchor {
                Anchor::Divergence(_) => taken.divergence(&policy.sampler.step(step, &base, &x, None)),
                Anchor::Epsilon(_) => {
                    let level = policy.level(step);
                    let epsilon = |output: &Tensor| level.epsilon(policy.prediction, output, &x);
                    let distance = (epsilon(&output) - epsilon(&base)).square().flatten(1, -1);
                    distance.mean_dim([1_i64].as_slice(), false, Kind::Float)
                }
            });
        }
        let distances = (!distances.is_empty()).then(|| Tensor::cat(&distances, 0));
        Again { log_probabilities: Tensor::cat(&log_probabilities, 0), distances }
    }

    /// Log-probabilities of all steps by calls as those of training, `[B, T]`.
    fn log_probabilities(&self, scene: &Scene) -> Result<Tensor> {
        let images: Vec<usize> = (0..self.advantages.len()).collect();
        let count = self.policy.sampler.timesteps().len();
        let steps: Vec<usize> = (0..count).collect();
        let parts = scene.micro_batches.run(images.len() * count, |ranges| {
            let one = |items: &Range<usize>| {
                let pairs = Self::pairs(&images, &steps, items.clone());
                tch::no_grad(|| self.look_again(&pairs, None)).log_probabilities
            };
            Ok(ranges.iter().map(one).collect::<Vec<_>>())
        })?;
        let all = scene.micro_batches.world().concatenated(&parts)?;
        Ok(all.view([count as i64, -1]).transpose(0, 1).contiguous())
    }

    /// Before the first update every ratio is 1. It is so exactly where each pair of an image and a step is the row of a call that
    /// it was in the roll-out.
    fn check_ratio(&self, error: f64, pairs: &[(usize, usize)]) -> Result<()> {
        let same_call = pairs
            .iter()
            .enumerate()
            .all(|(row, (step, image))| self.rolled[*image] == (row, pairs.len()) && *step == pairs[0].0);
        let most = if same_call { 0.0 } else { self.method.settings.clip_range / 10.0 };
        if error <= most {
            return Ok(());
        }
        let text =
            format!("the probability ratio is off by {error:.1e} before the first update, want at most {most:.1e}");
        Err(Error::data(text).hint(
            "training and roll-out compute different things: precision = \"fp32\", or gradient_accumulation so that as many \
             images go through at a time",
        ))
    }
}

impl Round for PolicyRound<'_> {
    fn items(&self, update: usize) -> usize {
        self.updates[update].len() * self.steps.len()
    }

    fn loss(&self, update: usize, items: Range<usize>) -> Result<Loss> {
        let pairs = Self::pairs(&self.updates[update], &self.steps, items);
        let anchor = Some(self.method.anchor).filter(|anchor| anchor.factor() > 0.0);
        let Again { log_probabilities, distances } = self.look_again(&pairs, anchor);
        let old = Self::at(&self.trajectory.log_probabilities, &pairs, 0);
        let advantages: Vec<f32> = pairs.iter().map(|(_, image)| self.advantages[*image] as f32).collect();
        let advantages = Tensor::from_slice(&advantages).to_device(old.device());
        let clip = self.method.settings.clip_range;
        let surprise = &log_probabilities - &old;
        let ratio = surprise.exp();
        let mut loss = clipped(&ratio, &advantages, clip).mean(Kind::Float);
        if let Some(distances) = distances {
            loss += distances.mean(Kind::Float) * self.method.anchor.factor();
        }
        let number = |tensor: Tensor| tensor.detach().to_kind(Kind::Double).double_value(&[]);
        let apart = (ratio - 1.0).abs();
        let error = number(apart.max());
        if update == 0 {
            self.check_ratio(error, &pairs)?;
        }
        Ok(Loss::new(loss).with(vec![
            ("approx_kl", 0.5 * number(surprise.square().mean(Kind::Float))),
            ("clip_fraction", number(apart.gt(clip).to_kind(Kind::Float).mean(Kind::Float))),
            ("ratio_error", error),
        ]))
    }

    fn rewards(&self) -> &[Vec<f64>] {
        &self.scores.raw
    }

    fn figures(&self) -> Vec<(&'static str, f64)> {
        self.even.map(|count| ("groups_without_spread", count as f64)).into_iter().collect()
    }
}

/// A share of `steps`, one at least, drawn for round `number`; ascending.
pub(super) fn drawn(mut steps: Vec<usize>, share: f64, seed: u64, number: usize) -> Vec<usize> {
    let kept = ((steps.len() as f64 * share).round() as usize).max(1);
    steps.shuffle(&mut noise::stream(seed, Stream::Plan(number)));
    steps.truncate(kept);
    steps.sort_unstable();
    steps
}

/// The clipped loss max(−A ρ, −A clip(ρ, 1 − c, 1 + c)), one value for each ratio (Schulman et al., 2017,
/// <https://arxiv.org/abs/1707.06347>, equation 7). It is pessimistic: a ratio beyond the clip is pushed back but never on.
pub fn clipped(ratio: &Tensor, advantages: &Tensor, clip: f64) -> Tensor {
    (-advantages * ratio).maximum(&(-advantages * ratio.clamp(1.0 - clip, 1.0 + clip)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Step;

    #[test]
    fn clipping_by_hand() {
        let ratios = [0.5_f32, 1.1, 1.5, 0.5, 1.5];
        let advantages = [1.0_f32, 1.0, 1.0, -1.0, -1.0];
        let ratio = Tensor::from_slice(&ratios).set_requires_grad(true);
        let losses = clipped(&ratio, &Tensor::from_slice(&advantages), 0.2);
        let close = |found: Tensor, wanted: [f32; 5]| {
            let found: Vec<f32> = Vec::try_from(found.detach()).unwrap();
            assert!(found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-6), "{found:?}");
        };
        close(losses.shallow_clone(), [-0.5, -1.1, -1.2, 0.8, 1.5]);
        losses.sum(Kind::Float).backward();
        // No pull where the ratio has gone beyond the clip in its own favour; a full one where it went the wrong way.
        close(ratio.grad(), [-1.0, -1.0, 0.0, 0.0, 1.0]);
    }

    /// A policy of two parameters, the mean of a Gaussian step, climbs to where the reward −|x − optimum|² is highest.
    fn climbs(mut judge: impl FnMut(&[f64]) -> Vec<f64>) {
        const IMAGES: i64 = 64;
        let optimum = Tensor::from_slice(&[0.7_f32, -0.4]).view([1, 2, 1, 1]);
        let mut mean = Tensor::zeros([1, 2, 1, 1], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let step = |mean: &Tensor| {
            let mean = mean.expand([IMAGES, 2, 1, 1], false);
            Step { predicted_original: mean.shallow_clone(), mean, std: 0.3 }
        };
        for round in 0..120 {
            let noise = noise::normal(round, Stream::Noise, &[IMAGES, 2, 1, 1]);
            let next = step(&mean.detach()).sample(|| noise);
            let old = step(&mean).log_probability(&next).detach();
            let rewards = -(&next - &optimum).square().sum_dim_intlist([1_i64, 2, 3].as_slice(), false, Kind::Double);
            let advantages: Vec<f32> =
                judge(&Vec::try_from(rewards).unwrap()).into_iter().map(|advantage| advantage as f32).collect();
            for _ in 0..2 {
                let ratio = (step(&mean).log_probability(&next) - &old).exp();
                clipped(&ratio, &Tensor::from_slice(&advantages), 0.2).mean(Kind::Float).backward();
                let gradient = mean.grad().copy();
                tch::no_grad(|| drop(mean.g_sub_(&(gradient * 0.02))));
                mean.zero_grad();
            }
        }
        let apart = (&mean - &optimum).abs().max().double_value(&[]);
        assert!(apart < 0.05, "{apart} from the optimum");
    }

    #[test]
    fn a_policy_of_two_parameters_reaches_its_optimum() {
        climbs(|rewards| advantage::of_groups(rewards, 8, Deviation::Group));
        climbs(|rewards| advantage::of_groups(rewards, 8, Deviation::Batch));
        let mut statistics = PromptStatistics::new(1, 64, 16);
        climbs(|rewards| statistics.advantages(&vec![0; rewards.len()], rewards));
    }

    #[test]
    fn items_are_all_images_before_one_step_then_the_next() {
        let pairs = PolicyRound::pairs(&[4, 7], &[0, 3], 0..4);
        assert_eq!(pairs, [(0, 4), (0, 7), (3, 4), (3, 7)]);
    }
}
