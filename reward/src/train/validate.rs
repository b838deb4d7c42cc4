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
};

/// The figures of the model as it is now.
///
/// # Errors
/// An image cannot be read (unless bad images are skipped), or a score is not finite.
pub(super) fn validate(
    config: &TrainConfig,
    encoder: &Encoder,
    examples: &Examples,
    observer: &dyn Observer,
) -> Result<Validation> {
    let (triplets, batch) = (&examples.triplets, config.batch_size.max(16));
    let images: Vec<u32> = (0..triplets.images.len() as u32).collect();
    let prompts: Vec<u32> = (0..triplets.prompts.len() as u32).collect();
    let mut table = Table::new(images.len(), prompts.len(), encoder.clip.config.embed_dim);
    for chunk in prompts.chunks(batch) {
        table.set_prompts(chunk, &rows_of(&encoder.embed_prompts(examples, chunk))?);
    }
    let fetcher = encoder.fetcher;
    let fetch = |image: u32| (image, fetcher.fetch(examples, image));
    ordered(images.iter().copied(), config.workers(), 2 * batch, fetch, |fetched| -> Result<()> {
        for (done, chunk) in images.chunks(batch).enumerate() {
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
                table.set_images(&order, &rows_of(&encoder.embed_images(examples, &order, data)?)?);
            }
            let done = done * batch + chunk.len();
            observer.event(&Event::Progress { phase: "validation", done, total: images.len() });
        }
        Ok(())
    })?;
    table.validation(triplets, examples.tokens(), config.seed)
}

/// The rows of a `[n, E]` fp32 matrix on the CPU.
fn rows_of(matrix: &Tensor) -> Result<Vec<Vec<f32>>> {
    Vec::try_from(matrix).map_err(|error| Error::data("embeddings cannot be read back").caused_by(error))
}
