//! The models, the data and the images that a method makes a round from.

use std::ops::Range;

use crate::{
    micro_batches::MicroBatches,
    objective::Objective,
    pictures::Pictures,
    policy::{Batch, Policy},
    prompt_encoder::Embeddings,
};

/// The models, the data and the images of a round.
pub struct Scene<'a> {
    /// The UNet that trains, and its sampling steps.
    pub policy: &'a Policy<'a>,
    /// The objective, whose VAE decodes and encodes.
    pub objective: &'a Objective<'a>,
    /// Every prompt of the run, encoded.
    pub embeddings: &'a Embeddings,
    /// Distinct prompts of the run, or of its pictures.
    pub prompts: &'a [String],
    /// The run's pictures; none where it trains on prompts.
    pub pictures: &'a Pictures,
    /// Number of images that go through at a time.
    pub micro_batches: &'a MicroBatches<'a>,
    /// Channels, height and width of latents.
    pub latents: [i64; 3],
    /// The run's seed.
    pub seed: u64,
    /// The prompt, or the row of the pictures, of each image.
    pub items: Vec<usize>,
    /// The effective seed of each image.
    pub seeds: Vec<u64>,
}

impl Scene<'_> {
    /// Prompts and noise of images `images`.
    pub fn batch(&self, images: Range<usize>) -> Batch {
        let prompts: Vec<String> = self.items[images.clone()].iter().map(|item| self.prompts[*item].clone()).collect();
        let conditioning = self.embeddings.of(&prompts);
        Batch::new(prompts, conditioning, self.seeds[images].to_vec(), self.latents)
    }
}
