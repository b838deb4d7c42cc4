//! DiffusionNFT: "DiffusionNFT: Online Diffusion Reinforcement with Forward Process", Zheng et al., 2025,
//! <https://arxiv.org/abs/2509.16117>. An old policy makes images with any sampler. Good ones pull the prediction towards them,
//! bad ones push an implicit negative prediction towards them. No probability of a step is needed.
//!
//! As its authors' code has it: guidance 1, group advantages clipped at 5, β 1 (or 0.1 for several rewards). The distance from
//! the base model has weight 1e-4, the LoRA rank 32 and alpha 64 at 3e-4. The old policy follows with decay min(0.001 · round,
//! 0.5). Which quantity the model predicts makes no difference, as x₀ is linear in it.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::{
    Algorithm, Graph, Method, ReadTensor, RewardUse, Round, Samplers, Scene, Settings, own_samples,
    policy_gradient::drawn,
};
use crate::{
    Result, advantage,
    conditioning::Conditioning,
    noise::Stream,
    objective::{Loss, Scores},
    old_policy::OldPolicy,
    policy::Policy,
};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "nft",
    title: "good and bad own images pull a prediction, without probabilities",
    reward: RewardUse::Score,
    grouped: true,
    samplers: Samplers::Any,
    guidance_scale: 1.0,
    kl: 1e-4,
    beta: 1.0,
    reads: &[
        "inner_epochs",
        "advantage_clip",
        "kl",
        "beta",
        "timestep_fraction",
        "deviation",
        "reward_combination",
        "scheduler",
    ],
    build: |settings| Box::new(Nft { settings: *settings, old: None }),
    ..Method::BACKPROP
};

/// The most that the old policy remembers of itself, and by how much that grows with each round.
const DECAY: [f64; 2] = [0.5, 0.001];
/// The smallest mean error that an error is divided by.
const LEAST_ERROR: f64 = 1e-5;
/// Factor on the loss, as its authors have it.
const FACTOR: f64 = 5.0;

/// Good and bad own images pull a prediction.
pub struct Nft {
    /// The hyper-parameters.
    pub settings: Settings,
    /// The policy that rolls out; none before the first round.
    pub old: Option<OldPolicy>,
}

impl Algorithm for Nft {
    fn graph(&self, settings: &Settings) -> Graph {
        Graph { items: settings.batch_size * settings.sample_steps, predictions: 1, decoded: 0, guided: false }
    }

    fn updates(&self) -> usize {
        self.settings.inner_epochs
    }

    fn round<'a>(&'a mut self, scene: &'a Scene<'a>, number: usize) -> Result<Box<dyn Round + 'a>> {
        let (policy, settings) = (scene.policy, self.settings);
        let rounds = (number - 1).div_euclid(self.updates());
        let old = match self.old.take() {
            Some(mut old) => {
                old.follow(policy, (DECAY[1] * rounds as f64).min(DECAY[0]));
                self.old.insert(old)
            }
            None => self.old.insert(OldPolicy::new(policy)),
        };
        let (latents, scores) = old.stand_in(policy, || own_samples::images(scene))?;
        let advantages = if settings.combine_groups {
            let weights: Vec<f64> = scene.objective.rewards.iter().map(|weighted| weighted.weight).collect();
            advantage::combined(&scores.raw, &weights, settings.group)
        } else {
            advantage::of_groups(&scores.total, settings.group, settings.deviation)
        };
        let clip = settings.advantage_clip;
        let shares: Vec<f32> = advantages.iter().map(|advantage| share(*advantage, clip) as f32).collect();
        let steps = (0..policy.sampler.timesteps().len()).collect();
        let steps = drawn(steps, settings.timestep_fraction, scene.seed, number);
        let shares = Tensor::from_slice(&shares).to_device(latents.device());
        Ok(Box::new(NftRound { old, settings, scene, latents, shares, steps, prompts: scene.conditioning(), scores }))
    }

    fn state(&self, trained: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
        self.old.as_ref().map_or(Vec::new(), |old| old.state(trained))
    }

    fn set_state(&mut self, trained: &[(String, Tensor)], read: &ReadTensor) -> Result<()> {
        self.old = Some(OldPolicy::from_state(trained, read)?);
        Ok(())
    }
}

/// How good an image is, 0 to 1: its advantage within ±`clip`, of which 0 is one half.
fn share(advantage: f64, clip: f64) -> f64 {
    (advantage / clip / 2.0 + 0.5).clamp(0.0, 1.0)
}

struct NftRound<'a> {
    old: &'a OldPolicy,
    settings: Settings,
    scene: &'a Scene<'a>,
    /// Finished images, `[B, C, h, w]`.
    latents: Tensor,
    /// How good each is, `[B]`, 0 to 1.
    shares: Tensor,
    /// Sampling steps at whose noise levels the images train.
    steps: Vec<usize>,
    prompts: Conditioning,
    scores: Scores,
}

impl Round for NftRound<'_> {
    fn items(&self, _: usize) -> usize {
        self.latents.size()[0] as usize * self.steps.len()
    }

    fn loss(&self, update: usize, items: Range<usize>) -> Result<Loss> {
        let policy = self.scene.policy;
        let count = self.latents.size()[0] as usize;
        let pairs: Vec<(usize, usize)> = items.map(|item| (self.steps[item.div_euclid(count)], item % count)).collect();
        let images: Vec<i64> = pairs.iter().map(|(_, image)| *image as i64).collect();
        let rows = Tensor::from_slice(&images).to_device(self.latents.device());
        let noise: Vec<Tensor> = pairs
            .iter()
            .map(|(step, image)| {
                self.scene.noise(&self.scene.seeds[*image..=*image], Stream::Fresh { draw: update, step: *step })
            })
            .collect();
        let times: Vec<i64> = pairs.iter().map(|(step, _)| policy.sampler.timesteps()[*step] as i64).collect();
        let timesteps = Tensor::from_slice(&times).to_device(self.latents.device());
        let (original, share) = (self.latents.index_select(0, &rows), self.shares.index_select(0, &rows));
        let level = policy.schedule.levels(&timesteps, original.device());
        let x = level.add_noise(&original, &Tensor::cat(&noise, 0));
        let prompts = self.prompts.select(&images);
        let predict = |policy: &Policy| policy.unet.forward(&x, &timesteps, &prompts);
        let old = tch::no_grad(|| self.old.stand_in(policy, || predict(policy)));
        let base =
            (self.settings.kl > 0.0).then(|| tch::no_grad(|| policy.as_base(|base| Ok(predict(base))))).transpose()?;
        let output = predict(policy);
        let original_of = |output: &Tensor| level.original(policy.prediction, output, &x);
        let mut loss = losses(&output, &old, &original, original_of, &share, self.settings.beta).mean(Kind::Float);
        if let Some(base) = base {
            loss += (output - base).square().mean(Kind::Float) * self.settings.kl;
        }
        Ok(Loss::new(loss))
    }

    fn rewards(&self) -> &[Vec<f64>] {
        &self.scores.raw
    }
}

/// The loss of each image, `[N]`: `5 · (r · e(β f + (1 − β) o) + (1 − r) · e((1 + β) o − β f)) / β`. Here f is the model's
/// output, o the old policy's, and r `share` `[N]` how good the image is. The error e is the squared error of x₀ over its own
/// mean absolute error.
pub fn losses(
    output: &Tensor,
    old: &Tensor,
    original: &Tensor,
    original_of: impl Fn(&Tensor) -> Tensor,
    share: &Tensor,
    beta: f64,
) -> Tensor {
    let mean = |tensor: Tensor| tensor.flatten(1, -1).mean_dim([1_i64].as_slice(), false, Kind::Float);
    let error = |output: Tensor| {
        let apart = original_of(&output) - original;
        mean(apart.square()) / mean(apart.abs()).detach().clamp_min(LEAST_ERROR)
    };
    let positive = error(output * beta + old * (1.0 - beta));
    let negative = error(old * (1.0 + beta) - output * beta);
    (share * positive + (1.0 - share) * negative) * (FACTOR / beta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advantage_becomes_a_share() {
        assert_eq!([-9.0, -5.0, 0.0, 2.5, 5.0].map(|advantage| share(advantage, 5.0)), [0.0, 0.0, 0.5, 0.75, 1.0]);
    }

    /// With β 1 and a share of 1: 5 times the mean squared error of x₀ over its mean absolute error. Errors 1 and 3: 5 · 5 / 2.
    #[test]
    fn losses_by_hand() {
        let row = |values: &[f32]| Tensor::from_slice(values).view([1, 2, 1, 1]);
        let (output, old, original) = (row(&[1.0, 3.0]), row(&[2.0, 0.0]), row(&[0.0, 0.0]));
        let loss = |share: f32, beta| {
            let share = Tensor::from_slice(&[share]);
            losses(&output, &old, &original, Tensor::shallow_clone, &share, beta).double_value(&[0])
        };
        assert_eq!(loss(1.0, 1.0), 12.5);
        // The negative prediction is 2 · old − output = (3, −3): 5 · 9 / 3.
        assert_eq!(loss(0.0, 1.0), 15.0);
        // β 0.5: the mean (1.5, 1.5) of both, 5 / 0.5 · 2.25 / 1.5.
        assert_eq!(loss(1.0, 0.5), 15.0);
    }
}
