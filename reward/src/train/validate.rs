//! Validation within a run: the frozen prefixes come from the run's cache.

use std::collections::HashMap;

use tch::Tensor;

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
    for chunk in own(&prompts) {
        table.set_prompts(&chunk, &rows(&encoder.embed_prompts(examples, &chunk))?);
    }
    let (fetcher, own) = (encoder.fetcher, own(&images));
    let total = own.iter().map(Vec::len).sum();
    let fetch = |image: u32| (image, fetcher.fetch(examples, image));
    ordered(own.iter().flatten().copied(), config.workers(), 2 * batch, fetch, |fetched| {
        let mut done = 0;
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
                table.set_images(&order, &rows(&encoder.embed_images(examples, &order, data)?)?);
            }
            done += chunk.len();
            observer.event(&Event::Progress { phase: "validation", done, total });
        }
        Ok(())
    })?;
    table.of_all_ranks(world)?;
    table.validation(triplets, examples.tokens(), config.seed)
}

/// The rows of embeddings `[n, embed_dim]`.
fn rows(embeddings: &Tensor) -> Result<Vec<Vec<f32>>> {
    Vec::try_from(embeddings).map_err(|error| Error::data("embeddings cannot be read back").caused_by(error))
}
