//! The models, the data and the images that a method makes a round from.

use std::ops::Range;

use rand::RngExt;
use tch::{Kind, Tensor};

use crate::{
    Result,
    conditioning::Conditioning,
    micro_batches::MicroBatches,
    noise::{self, Stream},
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
    /// Images in turn that share a prompt.
    pub group: usize,
}

impl Scene<'_> {
    /// Prompts and noise of images `images`.
    pub fn batch(&self, images: Range<usize>) -> Batch {
        let prompts: Vec<String> = self.items[images.clone()].iter().map(|item| self.prompts[*item].clone()).collect();
        let conditioning = self.embeddings.of(&prompts);
        Batch::new(prompts, conditioning, self.seeds[images].to_vec(), self.latents)
    }

    /// The prompts of all images.
    pub fn conditioning(&self) -> Conditioning {
        let prompts: Vec<String> = self.items.iter().map(|item| self.prompts[*item].clone()).collect();
        self.embeddings.of(&prompts)
    }

    /// The seed of the first image in the group of each of `images`.
    pub fn first_seeds(&self, images: Range<usize>) -> Vec<u64> {
        images.map(|image| self.seeds[image.div_euclid(self.group) * self.group]).collect()
    }

    /// Latents of pictures, one row of the run's pictures for each seed, `[N, C, h, w]`; each rank encodes its share.
    ///
    /// # Errors
    /// A picture cannot be read, or another rank is lost.
    pub fn encoded(&self, rows: &[usize]) -> Result<Tensor> {
        let world = self.micro_batches.world();
        let own = world.share(rows.len());
        let latents = match own.is_empty() {
            true => {
                Tensor::zeros([&[0], self.latents.as_slice()].concat(), (Kind::Float, self.policy.negative.device()))
            }
            false => self.pictures.latents(&rows[own.clone()], &self.seeds[own], self.objective.vae)?,
        };
        world.concatenated(&[latents])
    }

    /// The noise `stream` of some images by their seeds, `[N, C, h, w]` on the device, of unit variance.
    pub fn noise(&self, seeds: &[u64], stream: Stream) -> Tensor {
        noise::named(seeds, stream, self.latents).to_device(self.policy.negative.device())
    }

    /// A training step of the forward process for each seed, all equally likely, `[N]` int64 on the device.
    pub fn levels(&self, seeds: &[u64], stream: Stream) -> Tensor {
        let steps = self.policy.schedule.alphas_cumprod().len() as i64;
        let level = |seed: &u64| noise::stream(*seed, stream).random_range(0..steps);
        let levels: Vec<i64> = seeds.iter().map(level).collect();
        Tensor::from_slice(&levels).to_device(self.policy.negative.device())
    }
}
