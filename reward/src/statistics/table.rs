//! Every distinct image and prompt of a set embedded once; scores are products of the two.

use super::{
    pairwise::{ScoredPair, Validation, validation},
    slices::{PromptLength, slice_by},
};
#[cfg(feature = "torch")]
use tch::Tensor;

#[cfg(feature = "torch")]
use crate::world::World;
use crate::{Result, clip::tokenizer::Tokens, data::triplets::Triplets};

/// Unit embeddings by index; an image that could not be read has none.
pub struct Table {
    /// Numbers of an embedding.
    #[cfg(feature = "torch")]
    width: usize,
    /// Empty where the image could not be read.
    images: Vec<Vec<f32>>,
    prompts: Vec<Vec<f32>>,
}

impl Table {
    /// An empty table for embeddings of `width` numbers of so many images and prompts. The room is taken at once. Small pieces
    /// that stay between a model's large ones that go leave a heap of gaps (3 GB for 20,000 images).
    pub fn new(images: usize, prompts: usize, width: usize) -> Self {
        let room = |count| (0..count).map(|_| Vec::with_capacity(width)).collect();
        Self {
            #[cfg(feature = "torch")]
            width,
            images: room(images),
            prompts: room(prompts),
        }
    }

    /// Sets the embeddings of these images.
    pub fn set_images(&mut self, indexes: &[u32], embeddings: &[Vec<f32>]) {
        for (index, embedding) in indexes.iter().zip(embeddings) {
            self.images[*index as usize].clone_from(embedding);
        }
    }

    /// Sets the embeddings of these prompts.
    pub fn set_prompts(&mut self, indexes: &[u32], embeddings: &[Vec<f32>]) {
        for (index, embedding) in indexes.iter().zip(embeddings) {
            self.prompts[*index as usize].clone_from(embedding);
        }
    }

    /// Makes one table of those of all ranks, each of which holds a part.
    ///
    /// # Errors
    /// Another rank is lost.
    #[cfg(feature = "torch")]
    pub fn of_all_ranks(&mut self, world: &World) -> Result<()> {
        for rows in [&mut self.images, &mut self.prompts] {
            let own = rows.iter().enumerate().filter(|(_, row)| !row.is_empty());
            let (indexes, values): (Vec<i64>, Vec<&[f32]>) =
                own.map(|(index, row)| (index as i64, row.as_slice())).unzip();
            let values = Tensor::from_slice(&values.concat()).view([indexes.len() as i64, self.width as i64]);
            let indexes = world.all_gather(&Tensor::from_slice(&indexes))?;
            for (indexes, values) in indexes.iter().zip(world.all_gather(&values)?) {
                for place in 0..indexes.numel() as i64 {
                    let row = &mut rows[indexes.int64_value(&[place]) as usize];
                    row.resize(self.width, 0.0);
                    values.get(place).copy_data(row, self.width);
                }
            }
        }
        Ok(())
    }

    /// Cosine of prompt and image, in -1..=1; `None` for an image that could not be read.
    pub fn score(&self, prompt: u32, image: u32) -> Option<f32> {
        let image = &self.images[image as usize];
        (!image.is_empty()).then(|| self.cosine(prompt, image))
    }

    /// Cosine of a prompt and the unit embedding of an image that the table does not hold.
    pub fn cosine(&self, prompt: u32, image: &[f32]) -> f32 {
        self.prompts[prompt as usize].iter().zip(image).map(|(a, b)| a * b).sum()
    }

    /// The figures over all pairs, by slices of prompt length and of the column the triplets carry. `tokens`: of each
    /// distinct prompt.
    ///
    /// # Errors
    /// No pair is left, or a score is not finite.
    pub fn validation(&self, triplets: &Triplets, tokens: &[Tokens], seed: u64) -> Result<Validation> {
        let mut pairs = Vec::new();
        let (mut lengths, mut values) = (Vec::new(), Vec::new());
        for (index, row) in triplets.rows.iter().enumerate() {
            let scores = (self.score(row.prompt, row.positive), self.score(row.prompt, row.negative));
            let (Some(positive), Some(negative)) = scores else { continue };
            pairs.push(ScoredPair { prompt: &triplets.prompts[row.prompt as usize], positive, negative });
            // Start and end do not count.
            lengths.push(PromptLength::of(tokens[row.prompt as usize].ids.len().saturating_sub(2)));
            values.extend(triplets.slices.as_ref().map(|slices| slices.values[index].clone()));
        }
        let outcomes: Vec<f64> = pairs.iter().map(ScoredPair::outcome).collect();
        let mut slices = slice_by("prompt_length", &lengths, &outcomes);
        if let Some(column) = triplets.slices.as_ref().map(|slices| slices.column.as_str()) {
            slices.extend(slice_by(column, &values, &outcomes));
        }
        validation(&pairs, triplets.rows.len() - pairs.len(), slices, seed)
    }
}
