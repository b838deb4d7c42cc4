//! Diffusion-DPO: "Diffusion Model Alignment Using Direct Preference Optimization", Wallace et al., 2023,
//! <https://arxiv.org/abs/2311.12908>, equation 14. It learns from people's pairs, or from the best and the worst of the model's
//! own images of each prompt (Flow-GRPO's online variant).
//!
//! As published: β 5000, AdamW at 2e-5 on the full UNet after 500 steps of warm-up, 2048 pairs, 2000 steps. A fifth of the
//! prompts is left out; winner and loser have the same noise and the same noise level. The example in diffusers trains a LoRA of
//! rank 8 with β 2500.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::{
    Algorithm, Data, Graph, Method, ReadTensor, RewardUse, Round, Samplers, Scene, Settings,
    denoising::{Noised, losses},
    own_samples,
};
use crate::{
    Result,
    conditioning::Conditioning,
    noise::{self, Stream},
    objective::{Loss, Scores},
    old_policy::OldPolicy,
    policy::Policy,
    preference,
};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "dpo",
    title: "preferred against not preferred, of people's pairs or own images",
    reward: RewardUse::Score,
    data: &[Data::Triplets, Data::Prompts],
    grouped: true,
    samplers: Samplers::Any,
    guidance_scale: 7.5,
    beta: 5000.0,
    reads: &[
        "training_file",
        "image_root",
        "beta",
        "preference_loss",
        "prompt_dropout",
        "reference_every",
        "scheduler",
    ],
    build: |settings| Box::new(Dpo { settings: *settings, reference: None }),
    ..Method::BACKPROP
};

/// Noise and noise levels that each held-out pair is compared at.
const WATCHED: usize = 4;

/// Preferred against not preferred.
pub struct Dpo {
    /// The hyper-parameters.
    pub settings: Settings,
    /// What the model is compared with; none: the base model.
    pub reference: Option<OldPolicy>,
}

impl Algorithm for Dpo {
    fn graph(&self, settings: &Settings) -> Graph {
        Graph { items: settings.batch_size, predictions: 2, decoded: 0, guided: false }
    }

    fn round<'a>(&'a mut self, scene: &'a Scene<'a>, number: usize) -> Result<Box<dyn Round + 'a>> {
        let every = self.settings.reference_every;
        if every > 0 && (number - 1).is_multiple_of(every) {
            self.reference = Some(OldPolicy::new(scene.policy));
        }
        let round = |pairs, scores| DpoRound { method: self, scene, pairs, scores };
        if !scene.pictures.is_empty() {
            let pairs = of_people(scene, self.settings.prompt_dropout, 0)?;
            return Ok(Box::new(round(pairs, Scores::default())));
        }
        let (latents, scores) = own_samples::images(scene)?;
        let (mut winners, mut losers) = (Vec::new(), Vec::new());
        for (group, [winner, loser]) in scores.total.chunks(scene.group).map(best_and_worst).enumerate() {
            if winner != loser {
                winners.push((group * scene.group + winner) as i64);
                losers.push((group * scene.group + loser) as i64);
            }
        }
        let rows = |rows: &[i64]| latents.index_select(0, &Tensor::from_slice(rows).to_device(latents.device()));
        let seeds = winners.iter().map(|winner| scene.seeds[*winner as usize]).collect();
        let prompts = scene.conditioning().select(&winners);
        let pairs = Pairs { latents: [rows(&winners), rows(&losers)], prompts, seeds, draw: 0 };
        Ok(Box::new(round(pairs, scores)))
    }

    fn watched(&self, scene: &Scene) -> Result<Vec<(&'static str, f64)>> {
        if scene.pictures.is_empty() || scene.items.is_empty() {
            return Ok(Vec::new());
        }
        let (mut loss, mut accuracy) = (0.0, 0.0);
        for draw in 0..WATCHED {
            let pairs = of_people(scene, 0.0, draw)?;
            let round = DpoRound { method: self, scene, pairs, scores: Scores::default() };
            let insides = tch::no_grad(|| {
                (0..scene.items.len()).map(|pair| round.inside(pair..pair + 1)).collect::<Result<Vec<_>>>()
            })?;
            let inside = Tensor::cat(&insides, 0);
            let mean = |tensor: Tensor| tensor.mean(Kind::Double).double_value(&[]) / WATCHED as f64;
            loss += mean(preference::of_pairs(&inside, self.settings.preference_loss, self.settings.beta));
            accuracy += mean(accuracies(&inside));
        }
        Ok(vec![("held_out_loss", loss), ("held_out_implicit_accuracy", accuracy)])
    }

    fn state(&self, trained: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
        self.reference.as_ref().map_or(Vec::new(), |old| old.state(trained))
    }

    fn set_state(&mut self, trained: &[(String, Tensor)], read: &ReadTensor) -> Result<()> {
        self.reference = Some(OldPolicy::from_state(trained, read)?);
        Ok(())
    }
}

/// The places of the highest and the lowest score, the first of those that are equal; of equal scores, one place.
fn best_and_worst(scores: &[f64]) -> [usize; 2] {
    let first = |better: fn(f64, f64) -> bool| {
        (0..scores.len())
            .reduce(|found, next| if better(scores[next], scores[found]) { next } else { found })
            .unwrap_or(0)
    };
    [first(|next, found| next > found), first(|next, found| next < found)]
}

/// 1 where the model prefers the winner more than the reference does, 0 where less, one half where it is the same, `[P]`.
fn accuracies(inside: &Tensor) -> Tensor {
    (inside.sign() + 1.0) / 2.0
}

/// Pairs of latents of the same prompts.
struct Pairs {
    /// Winners and losers, `[P, C, h, w]` each.
    latents: [Tensor; 2],
    prompts: Conditioning,
    /// One for each pair, which gives its noise and noise level.
    seeds: Vec<u64>,
    /// Which noise of each seed.
    draw: usize,
}

/// The pairs of people's pictures that are the items of `scene`, some without their prompt.
fn of_people(scene: &Scene, dropout: f64, draw: usize) -> Result<Pairs> {
    let pictures = scene.pictures;
    let latents =
        |place: usize| scene.encoded(&scene.items.iter().map(|pair| 2 * pair + place).collect::<Vec<usize>>());
    let prompts = scene.items.iter().map(|pair| pictures.prompt(2 * pair));
    let prompts = noise::with_dropout(prompts, &scene.seeds, dropout);
    let latents = [latents(0)?, latents(1)?];
    Ok(Pairs { latents, prompts: scene.embeddings.of(&prompts), seeds: scene.seeds.clone(), draw })
}

struct DpoRound<'a> {
    method: &'a Dpo,
    scene: &'a Scene<'a>,
    pairs: Pairs,
    scores: Scores,
}

impl DpoRound<'_> {
    /// What is in the logarithm's sigmoid, of some pairs.
    fn inside(&self, pairs: Range<usize>) -> Result<Tensor> {
        let Scene { policy, .. } = self.scene;
        let Pairs { latents, prompts, seeds, draw } = &self.pairs;
        let (start, count) = (pairs.start as i64, pairs.len() as i64);
        let rows: Vec<i64> = (start..start + count).collect();
        let [winners, losers] = latents.each_ref().map(|latents| latents.narrow(0, start, count));
        let seeds = &seeds[pairs];
        let twice = |tensor: Tensor| Tensor::cat(&[&tensor, &tensor], 0);
        let noised = Noised {
            latents: &Tensor::cat(&[winners, losers], 0),
            noise: &twice(self.scene.noise(seeds, Stream::Fresh { draw: *draw, step: 0 })),
            timesteps: &twice(self.scene.levels(seeds, Stream::Level(*draw))),
            prompts: &prompts.select(&[&rows[..], &rows].concat()),
        };
        let errors = |policy: &Policy| {
            let errors = losses(policy.unet, &policy.schedule, policy.prediction, &noised, None);
            [errors.narrow(0, 0, count), errors.narrow(0, count, count)]
        };
        let reference = tch::no_grad(|| match &self.method.reference {
            Some(old) => Ok(old.stand_in(policy, || errors(policy))),
            None => policy.as_base(|base| Ok(errors(base))),
        })?;
        Ok(preference::inside(&errors(policy), &reference, self.method.settings.beta))
    }
}

impl Round for DpoRound<'_> {
    fn items(&self, _: usize) -> usize {
        self.pairs.seeds.len()
    }

    fn loss(&self, _: usize, items: Range<usize>) -> Result<Loss> {
        let Settings { preference_loss, beta, .. } = self.method.settings;
        let inside = self.inside(items)?;
        let accuracy = accuracies(&inside.detach()).mean(Kind::Double).double_value(&[]);
        let loss = preference::of_pairs(&inside, preference_loss, beta).mean(Kind::Float);
        Ok(Loss::new(loss).with(vec![("implicit_accuracy", accuracy)]))
    }

    fn rewards(&self) -> &[Vec<f64>] {
        &self.scores.raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_set_against_the_worst() {
        assert_eq!(best_and_worst(&[1.0, 5.0, 5.0, 0.0, 0.0]), [1, 3]);
        assert_eq!(best_and_worst(&[2.0, 2.0]), [0, 0]);
    }
}
