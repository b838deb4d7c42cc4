//! Back-propagation of a reward through sampling, which DRaFT, DRTune, AlignProp and ReFL share: DDIM makes an image, some of its
//! steps with a graph, and the reward's gradient flows back through them. A method is a choice of steps.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::{Algorithm, Graph, Round, Scene, Settings};
use crate::{
    Result,
    noise::{self, Stream},
    objective::{Loss, Objective},
    policy::{Batch, Plan, Policy, Unrolled},
};

/// A method that follows the gradient of the reward.
pub trait Backprop {
    /// Chooses which of `steps` sampling steps run and train in one optimizer step; `random` is this step's own stream.
    fn plan(&self, steps: usize, random: &mut ChaCha8Rng) -> Plan;

    /// Images of one graph for each image of the batch.
    fn copies(&self) -> usize {
        1
    }

    /// The latents that training starts from, without a graph.
    fn rollout(&self, policy: &Policy, plan: &Plan, batch: &Batch) -> Tensor {
        policy.roll(&batch.noise(Stream::Latents), 0..plan.cut, batch)
    }

    /// The latents of images with a graph, from what [`Backprop::rollout`] gave. `anchored`: also the distance to the base.
    fn images(&self, policy: &Policy, start: &Tensor, plan: &Plan, batch: &Batch, anchored: bool) -> Unrolled {
        policy.unroll(start, plan, batch, anchored)
    }

    /// The mean loss over a micro-batch, from what [`Backprop::rollout`] gave.
    ///
    /// # Errors
    /// A reward fails.
    fn loss(&self, policy: &Policy, start: &Tensor, plan: &Plan, batch: &Batch, objective: &Objective) -> Result<Loss> {
        let unrolled = self.images(policy, start, plan, batch, objective.anchor > 0.0);
        objective.loss(&unrolled, batch)
    }
}

impl<M: Backprop> Algorithm for M {
    fn graph(&self, settings: &Settings) -> Graph {
        let plan = self.plan(settings.sample_steps, &mut noise::stream(0, Stream::Plan(0)));
        let predictions = plan.trained.len() * self.copies();
        Graph { items: settings.batch_size, predictions, decoded: self.copies(), guided: true }
    }

    fn round<'a>(&'a mut self, scene: &'a Scene<'a>, number: usize) -> Result<Box<dyn Round + 'a>> {
        let policy = scene.policy;
        let plan = self.plan(policy.sampler.timesteps().len(), &mut noise::stream(scene.seed, Stream::Plan(number)));
        let method = &*self;
        let roll =
            |images: &Range<usize>| (images.clone(), method.rollout(policy, &plan, &scene.batch(images.clone())));
        let roll_all =
            || scene.micro_batches.run(scene.items.len(), |images| Ok(images.iter().map(roll).collect::<Vec<_>>()));
        // Where no step runs, there is nothing to merge for.
        let starts = if plan.cut == 0 { roll_all()? } else { policy.merged(roll_all)? };
        Ok(Box::new(BackpropRound { method, scene, plan, starts }))
    }
}

struct BackpropRound<'a, M> {
    method: &'a M,
    scene: &'a Scene<'a>,
    plan: Plan,
    /// The latents that training starts from, `[B, C, h, w]` of some images each.
    starts: Vec<(Range<usize>, Tensor)>,
}

impl<M: Backprop> Round for BackpropRound<'_, M> {
    fn items(&self, _: usize) -> usize {
        self.scene.items.len()
    }

    fn loss(&self, _: usize, images: Range<usize>) -> Result<Loss> {
        let start = match self.starts.iter().find(|(rolled, _)| *rolled == images) {
            Some((_, start)) => start.shallow_clone(),
            None => {
                let all = Tensor::cat(&self.starts.iter().map(|(_, start)| start).collect::<Vec<_>>(), 0);
                let first = self.starts.first().map_or(0, |(rolled, _)| rolled.start);
                all.narrow(0, (images.start - first) as i64, images.len() as i64)
            }
        };
        let Scene { policy, objective, .. } = self.scene;
        self.method.loss(policy, &start, &self.plan, &self.scene.batch(images), objective)
    }
}
