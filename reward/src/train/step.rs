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

/// What one step measured.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Mean over the effective batch before the update.
    pub loss: f64,
    /// The gradient, and whether the weights moved.
    pub updated: Updated,
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

    /// One optimizer step at rate `rate` over the micro-batches of one effective batch.
    ///
    /// # Errors
    /// An input cannot be made, or the loss or gradient was not finite for the third time in a row.
    pub fn step(
        &mut self,
        encoder: &Encoder,
        micro_batches: impl ExactSizeIterator<Item = Result<Inputs>>,
        rows: usize,
        rate: f64,
    ) -> Result<Outcome> {
        self.update.adam.zero_gradients();
        let loss = if self.loss.spans_batch() && micro_batches.len() > 1 {
            self.two_passes(encoder, &micro_batches.collect::<Result<Vec<_>>>()?)
        } else {
            let mut total = 0.0;
            for inputs in micro_batches {
                let inputs = inputs?;
                let loss = self.mean_loss(encoder, &encoder.embed(&inputs)) * (inputs.rows as f64 / rows as f64);
                loss.backward();
                total += loss.double_value(&[]);
            }
            total
        };
        let updated = self.update.apply(loss, rate)?;
        let mut scale = encoder.clip.parameters["logit_scale"].shallow_clone();
        if updated.applied && scale.requires_grad() {
            tch::no_grad(|| drop(scale.clamp_max_(MAX_LOGIT_SCALE)));
        }
        Ok(Outcome { loss, updated })
    }

    fn mean_loss(&self, encoder: &Encoder, embeddings: &Embeddings) -> Tensor {
        self.loss.mean(embeddings, &encoder.clip.logit_scale(), self.margin)
    }

    /// A loss over the whole effective batch in the memory of one micro-batch (Gao et al., 2021, "GradCache",
    /// <https://arxiv.org/abs/2101.06983>): embeddings without a graph, the loss's gradient at them, then each micro-batch
    /// again with that gradient.
    fn two_passes(&self, encoder: &Encoder, micro_batches: &[Inputs]) -> f64 {
        let parts: Vec<Embeddings> =
            micro_batches.iter().map(|inputs| tch::no_grad(|| encoder.embed(inputs))).collect();
        let join = |part: fn(&Embeddings) -> &Tensor| Tensor::cat(&parts.iter().map(part).collect::<Vec<_>>(), 0);
        let leaf = |part: fn(&Embeddings) -> &Tensor| join(part).set_requires_grad(true);
        let whole = Embeddings {
            text: leaf(|part| &part.text),
            positive: leaf(|part| &part.positive),
            negative: leaf(|part| &part.negative),
            prompt: join(|part| &part.prompt),
        };
        let loss = self.mean_loss(encoder, &whole);
        loss.backward();
        let mut start = 0;
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
        loss.double_value(&[])
    }
}
