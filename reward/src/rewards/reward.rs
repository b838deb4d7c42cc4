//! What fine-tuning maximises: a score of pixels in memory, with a gradient where there is one.

use tch::Tensor;

use crate::{Error, Result};

/// Scores under way: waits for them, and gives what [`Reward::score`] would.
pub type Pending<'a> = Box<dyn FnOnce() -> Result<Tensor> + 'a>;

/// What fine-tuning maximises and evaluation reports.
pub trait Reward {
    /// The name in settings, files and reports.
    fn name(&self) -> &str;

    /// Scores pictures for prompts, one prompt a picture; higher is better.
    ///
    /// `pixels`: `[B, 3, H, W]`, fp32 in 0..=1, on the reward's device; gives `[B]`, fp32, as the model has it, neither
    /// weighted nor standardised.
    ///
    /// # Errors
    /// Another shape, or another number of prompts.
    ///
    /// # Panics
    /// Where libtorch does, for example out of memory.
    fn score(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Tensor>;

    /// Begins what [`Self::score`] does, and does not wait where another program does the work. Here: scores at once.
    ///
    /// # Errors
    /// As [`Self::score`]; what another program does wrong is found by the wait.
    fn begin<'a>(&'a self, pixels: &Tensor, prompts: &[&str]) -> Result<Pending<'a>> {
        let scores = self.score(pixels, prompts)?;
        Ok(Box::new(move || Ok(scores)))
    }

    /// Whether gradients reach `pixels` through [`Self::score`].
    fn differentiable(&self) -> bool;

    /// Whether activations are recomputed in the backward pass instead of kept. A reward that keeps none ignores it.
    fn set_checkpointing(&mut self, _on: bool) {}

    /// Unit embeddings of pictures, `[B, E]`, by which they can be told apart; nothing where the reward has none.
    fn embeddings(&self, _pixels: &Tensor) -> Option<Tensor> {
        None
    }

    /// Handles on the weights by which [`Self::score`] sees pictures.
    fn weights(&self) -> Vec<Tensor> {
        Vec::new()
    }
}

/// The door of every [`Reward::score`].
pub(crate) fn check(pixels: &Tensor, prompts: &[&str]) -> Result<()> {
    match pixels.size()[..] {
        [batch, 3, height, width] if batch.min(height).min(width) > 0 && batch == prompts.len() as i64 => Ok(()),
        ref found => Err(Error::data(format!(
            "pixels to score for {} prompt(s): want [{0}, 3, H, W], got {found:?}",
            prompts.len()
        ))),
    }
}
