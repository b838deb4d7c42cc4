//! Validation within a run: the frozen prefixes come from the run's cache.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use super::{
    config::TrainConfig,
    encoder::{Encoder, Examples},
};
use crate::{
    Error, Result,
    data::{loader::ordered, preflight::OnBadImage},
    event::{Event, Observer},
    statistics::{pairwise::Validation, table::Table},
    world::World,
};

/// The figures of the model as it is now. Batches of images and prompts are dealt over the ranks, of which all give the same.
///
/// # Errors
/// An image cannot be read (unless bad images are skipped), a score is not finite, or another rank is lost.
pub(super) fn validate(
    config: &TrainConfig,
    world: &World,
    encoder: &Encoder,
    examples: &Examples,
    observer: &dyn Observer,
) -> Result<Validation> {
    let (triplets, batch) = (&examples.triplets, config.batch_size.max(16));
    let images: Vec<u32> = (0..triplets.images.len() as u32).collect();
    let prompts: Vec<u32> = (0..triplets.prompts.len() as u32).collect();
    let own = |all: &[u32]| -> Vec<Vec<u32>> {
        let batches: Vec<&[u32]> = all.chunks(batch).collect();
        batches[world.share(batches.len())].iter().map(|batch| batch.to_vec()).collect()
    };
    let mut table = Table::new(images.len(), prompts.len(), encoder.clip.config.embed_dim);
    let mut found = Found::new(encoder.clip.config.embed_dim);
    for chunk in own(&prompts) {
        let embedded = encoder.embed_prompts(examples, &chunk);
        found.add(chunk, embedded);
    }
    found.of_all_ranks(world, |indexes, rows| table.set_prompts(indexes, rows))?;
    let (fetcher, own) = (encoder.fetcher, own(&images));
    let total = own.iter().map(Vec::len).sum();
    let fetch = |image: u32| (image, fetcher.fetch(examples, image));
    let found = ordered(own.iter().flatten().copied(), config.workers(), 2 * batch, fetch, |fetched| {
        let (mut found, mut done) = (Found::new(encoder.clip.config.embed_dim), 0);
        for chunk in &own {
            let mut order = Vec::new();
            let mut data = HashMap::new();
            for (image, result) in fetched.take(chunk.len()) {
                match result {
                    Ok(image_data) => {
                        order.push(image);
                        data.insert(image, image_data);
                    }
                    Err(_) if config.on_bad_image == OnBadImage::Skip => {}
                    Err(error) => return Err(error),
                }
            }
            if !order.is_empty() {
                let embedded = encoder.embed_images(examples, &order, data)?;
                found.add(order, embedded);
            }
            done += chunk.len();
            observer.event(&Event::Progress { phase: "validation", done, total });
        }
        Ok(found)
    })?;
    found.of_all_ranks(world, |indexes, rows| table.set_images(indexes, rows))?;
    table.validation(triplets, examples.tokens(), config.seed)
}

/// Embeddings that this rank found, by index.
struct Found {
    indexes: Vec<i64>,
    embeddings: Vec<Tensor>,
}

impl Found {
    /// Nothing, of embeddings of `width` numbers.
    fn new(width: usize) -> Self {
        Self { indexes: Vec::new(), embeddings: vec![Tensor::zeros([0, width as i64], (Kind::Float, Device::Cpu))] }
    }

    fn add(&mut self, indexes: Vec<u32>, embeddings: Tensor) {
        self.indexes.extend(indexes.into_iter().map(i64::from));
        self.embeddings.push(embeddings);
    }

    /// Gives `set` what each rank found.
    fn of_all_ranks(self, world: &World, mut set: impl FnMut(&[u32], &[Vec<f32>])) -> Result<()> {
        let read = |error| Error::data("embeddings cannot be read back").caused_by(error);
        let indexes = world.all_gather(&Tensor::from_slice(&self.indexes))?;
        let embeddings = world.all_gather(&Tensor::cat(&self.embeddings, 0))?;
        for (indexes, embeddings) in indexes.iter().zip(&embeddings) {
            let indexes: Vec<i64> = Vec::try_from(indexes).map_err(read)?;
            let indexes: Vec<u32> = indexes.into_iter().map(|index| index as u32).collect();
            set(&indexes, &Vec::<Vec<f32>>::try_from(embeddings).map_err(read)?);
        }
        Ok(())
    }
}
