//! One optimizer step of the reward: losses of micro-batches, or of the whole batch in their memory.

use crate::{
    Result,
    clip::model::Clip,
    loss::{Embeddings, LossName},
    native::AdamSettings,
    optim::{Update, Updated},
    train::{
        encoder::{Encoder, Inputs},
        trainable::TrainingMode,
    },
    world::World,
};
use tch::Tensor;

/// `logit_scale` never exceeds ln 100 (Radford et al., 2021, section 2.5).
const MAX_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// Loss, backward pass and update.
pub struct Stepper {
    /// Optimizer and clipping.
    pub update: Update,
    loss: LossName,
    margin: f64,
}

impl Stepper {
    /// Adam or AdamW (weight decay 0.01) as the mode has it.
    pub fn new(clip: &Clip, mode: TrainingMode, loss: LossName, margin: f64, clip_norm: Option<f64>) -> Self {
        let decoupled = mode.uses_adamw();
        let settings = AdamSettings {
            rate: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: if decoupled { 0.01 } else { 0.0 },
            epsilon: 1e-8,
            decoupled,
        };
        let trained = clip.parameters.iter().filter(|(_, tensor)| tensor.requires_grad());
        let trained = trained.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        Self { update: Update::new(trained, settings, clip_norm, None), loss, margin }
    }

    /// One optimizer step at rate `rate` over the micro-batches of this rank's part of one effective batch of `rows` rows.
    ///
    /// # Errors
    /// An input cannot be made; the loss or gradient was not finite for the third time in a row; another rank is lost.
    pub fn step(
        &mut self,
        world: &World,
        encoder: &Encoder,
        micro_batches: impl ExactSizeIterator<Item = Result<Inputs>>,
        rows: usize,
        rate: f64,
    ) -> Result<Updated> {
        self.update.adam.zero_gradients();
        let loss = if self.loss.spans_batch() && (micro_batches.len() > 1 || world.size() > 1) {
            self.two_passes(world, encoder, &micro_batches.collect::<Result<Vec<_>>>()?)?
        } else {
            let mut total = 0.0;
            for inputs in micro_batches {
                let inputs = inputs?;
                let mean = self.loss.mean(&encoder.embed(&inputs), &encoder.clip.logit_scale(), self.margin);
                let loss = mean * (inputs.rows as f64 / rows as f64);
                loss.backward();
                total += loss.double_value(&[]);
            }
            total
        };
        let updated = self.update.apply(world, loss, rate)?;
        let mut scale = encoder.clip.parameters["logit_scale"].shallow_clone();
        if updated.applied && scale.requires_grad() {
            tch::no_grad(|| drop(scale.clamp_max_(MAX_LOGIT_SCALE)));
        }
        Ok(updated)
    }

    /// A loss over the whole effective batch in the memory of one micro-batch (Gao et al., 2021, "GradCache",
    /// <https://arxiv.org/abs/2101.06983>). It takes embeddings without a graph, the loss's gradient at them, then each
    /// micro-batch again with that gradient. Every rank has the embeddings of all; rank 0 alone gives the loss and the gradient
    /// of its scale.
    fn two_passes(&self, world: &World, encoder: &Encoder, micro_batches: &[Inputs]) -> Result<f64> {
        let parts: Vec<Embeddings> =
            micro_batches.iter().map(|inputs| tch::no_grad(|| encoder.embed(inputs))).collect();
        let own_rows: i64 = micro_batches.iter().map(|inputs| inputs.rows as i64).sum();
        let device = encoder.clip.device;
        let none = Embeddings::none(encoder.clip.config.embed_dim as i64, device);
        let join = |part: fn(&Embeddings) -> &Tensor| -> Result<Tensor> {
            let own = Tensor::cat(&std::iter::once(&none).chain(&parts).map(part).collect::<Vec<_>>(), 0);
            Ok(Tensor::cat(&world.all_gather(&own)?, 0))
        };
        let whole = Embeddings {
            text: join(|part| &part.text)?.set_requires_grad(true),
            positive: join(|part| &part.positive)?.set_requires_grad(true),
            negative: join(|part| &part.negative)?.set_requires_grad(true),
            prompt: join(|part| &part.prompt)?,
        };
        let counts = world.all_gather(&Tensor::from_slice(&[own_rows]))?;
        let before: i64 = counts.iter().take(world.rank()).map(|count| count.int64_value(&[0])).sum();
        let scale = encoder.clip.logit_scale();
        let loss = self.loss.mean(&whole, &if world.leads() { scale } else { scale.detach() }, self.margin);
        loss.backward();
        let mut start = before;
        for inputs in micro_batches {
            let rows = inputs.rows as i64;
            let again = encoder.embed(inputs);
            let dot = |now: &Tensor, leaf: &Tensor| (now * leaf.grad().narrow(0, start, rows)).sum(tch::Kind::Float);
            (dot(&again.text, &whole.text)
                + dot(&again.positive, &whole.positive)
                + dot(&again.negative, &whole.negative))
            .backward();
            start += rows;
        }
        Ok(if world.leads() { loss.double_value(&[]) } else { 0.0 })
    }
}
