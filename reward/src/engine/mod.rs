//! CLIP forward passes over sets of images and prompts: on libtorch or, without it, on candle.

pub mod candle;
#[cfg(feature = "torch")]
mod torch;

use std::{ops::Range, sync::atomic::AtomicBool};

use crate::{
    Error, Result,
    clip::{config::ClipConfig, preprocess, tokenizer::Tokens},
    data::{image::DecodeOptions, loader::ordered, named::Named, preflight::OnBadImage, source::ImageSource},
    device::DeviceName,
    error::interrupted,
    event::{Event, Observer},
    statistics::table::Table,
    weights::Checkpoint,
    world::shard::Shard,
};

/// A loaded CLIP that embeds.
pub trait Engine {
    /// The architecture.
    fn config(&self) -> &ClipConfig;

    /// How errors name the model.
    fn label(&self) -> &str;

    /// Unit embeddings of preprocessed pictures, each S·S·3 RGB bytes, HWC.
    ///
    /// # Errors
    /// The engine fails, for example out of memory.
    fn images(&self, pictures: &[&[u8]]) -> Result<Vec<Vec<f32>>>;

    /// Unit embeddings of tokenized prompts.
    ///
    /// # Errors
    /// As [`Self::images`].
    fn texts(&self, prompts: &[&Tokens]) -> Result<Vec<Vec<f32>>>;
}

/// Loads a checkpoint into the engine of this build: libtorch where it is built in, else candle.
///
/// # Errors
/// The weights cannot be read, the tokenizer does not fit, or the device is not there.
pub fn engine(checkpoint: &Checkpoint, device: DeviceName) -> Result<Box<dyn Engine>> {
    checkpoint.check_vocabulary()?;
    #[cfg(feature = "torch")]
    return Ok(Box::new(torch::Torch::load(checkpoint, device)?));
    #[cfg(not(feature = "torch"))]
    {
        device.check_portable()?;
        Ok(Box::new(candle::Candle::load(checkpoint)?))
    }
}

/// How a set is embedded.
#[derive(Debug, Clone)]
pub struct EmbedOptions {
    /// Images, or prompts, per pass.
    pub batch_size: usize,
    /// Threads that decode.
    pub workers: usize,
    /// How images are decoded.
    pub decode: DecodeOptions,
    /// What an unreadable image does.
    pub on_bad_image: OnBadImage,
}

/// Embeds every distinct image and prompt once.
///
/// # Errors
/// An image cannot be read (unless bad images are skipped), the engine fails, or `stop` was set.
pub fn embed(
    engine: &dyn Engine,
    images: &[ImageSource],
    prompts: &[Tokens],
    options: &EmbedOptions,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Table> {
    embed_part(engine, images, prompts, Shard::WHOLE, options, observer, stop)
}

/// As [`embed`], but of `shard` of the passes over images and of those over prompts: the table has a part of either.
///
/// # Errors
/// As there.
pub fn embed_part(
    engine: &dyn Engine,
    images: &[ImageSource],
    prompts: &[Tokens],
    shard: Shard,
    options: &EmbedOptions,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Table> {
    let mut table = Table::new(images.len(), prompts.len(), engine.config().embed_dim);
    let own = shard.of(prompts.len().div_ceil(options.batch_size));
    let is_own = |pass: usize, _: &[u32]| own.contains(&pass);
    embed_needed_prompts(engine, prompts, &is_own, options, observer, stop, |indexes, embeddings| {
        table.set_prompts(indexes, &embeddings);
    })?;
    let own = shard.of_batches(images.len(), options.batch_size);
    let sources: Vec<&ImageSource> = images[own.clone()].iter().collect();
    embed_images(engine, &sources, options, observer, stop, |indexes, embeddings| {
        let indexes: Vec<u32> = indexes.iter().map(|index| index + own.start as u32).collect();
        table.set_images(&indexes, &embeddings);
        Ok(())
    })?;
    Ok(table)
}

/// Embeds prompts, a pass at a time, and hands on indexes and unit embeddings.
///
/// # Errors
/// The engine fails, or `stop` was set.
pub fn embed_prompts(
    engine: &dyn Engine,
    prompts: &[Tokens],
    options: &EmbedOptions,
    observer: &dyn Observer,
    stop: &AtomicBool,
    each: impl FnMut(&[u32], Vec<Vec<f32>>),
) -> Result<()> {
    embed_needed_prompts(engine, prompts, &|_, _| true, options, observer, stop, each)
}

/// As [`embed_prompts`], but only the passes that are `needed`, by their number and their prompts. A pass has the same prompts,
/// whichever are needed, so that their embeddings are the same to the bit.
pub(crate) fn embed_needed_prompts(
    engine: &dyn Engine,
    prompts: &[Tokens],
    needed: &dyn Fn(usize, &[u32]) -> bool,
    options: &EmbedOptions,
    observer: &dyn Observer,
    stop: &AtomicBool,
    mut each: impl FnMut(&[u32], Vec<Vec<f32>>),
) -> Result<()> {
    // Prompts of like length share a pass: text is cut at the longest.
    let mut by_length: Vec<u32> = (0..prompts.len() as u32).collect();
    by_length.sort_by_key(|prompt| prompts[*prompt as usize].ids.len());
    for (pass, chunk) in by_length.chunks(options.batch_size).enumerate() {
        interrupted(stop)?;
        if !needed(pass, chunk) {
            continue;
        }
        let tokens: Vec<&Tokens> = chunk.iter().map(|prompt| &prompts[*prompt as usize]).collect();
        let embeddings = engine.texts(&tokens)?;
        if !embeddings.iter().all(|row| is_finite(row)) {
            return Err(not_finite(engine, "a prompt"));
        }
        each(chunk, embeddings);
        let done = (pass + 1).saturating_mul(options.batch_size).min(prompts.len());
        observer.event(&Event::Progress { phase: "prompts", done, total: prompts.len() });
    }
    Ok(())
}

/// Embeds images, a pass at a time, and hands on indexes and unit embeddings; images that could not be read are left out.
/// Gives the indexes of those that are truncated. The first few of either kind are named in warnings.
///
/// # Errors
/// As those of [`embed`], or what `each` says.
pub fn embed_images(
    engine: &dyn Engine,
    images: &[&ImageSource],
    options: &EmbedOptions,
    observer: &dyn Observer,
    stop: &AtomicBool,
    mut each: impl FnMut(&[u32], Vec<Vec<f32>>) -> Result<()>,
) -> Result<Vec<u32>> {
    let ClipConfig { image_size, preprocessing, .. } = engine.config();
    let (mut left_out, mut truncated) = (Named::default(), Vec::new());
    let load = |index: u32| {
        let source = images[index as usize];
        preprocess::load(&source.read()?, &source.label(), *image_size as u32, preprocessing, &options.decode)
    };
    let passes = passes(images.len(), options.batch_size);
    let all = 0..images.len() as u32;
    ordered(all, options.workers, 2 * options.batch_size, load, |loaded| -> Result<()> {
        for pass in passes {
            interrupted(stop)?;
            let mut pictures = Vec::new();
            let mut indexes = Vec::new();
            for (index, picture) in pass.clone().zip(&mut *loaded) {
                match picture {
                    Ok(picture) => {
                        indexes.push(index as u32);
                        truncated.extend(picture.truncated.then_some(index as u32));
                        pictures.push(picture.pixels);
                    }
                    Err(error) if options.on_bad_image == OnBadImage::Skip => {
                        if left_out.add(error.to_string()) {
                            observer.event(&Event::Warning(&format!("{error}: left out")));
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            if !pictures.is_empty() {
                let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
                let embeddings = engine.images(&pictures)?;
                if let Some(place) = embeddings.iter().position(|row| !is_finite(row)) {
                    return Err(not_finite(engine, &images[indexes[place] as usize].label()));
                }
                each(&indexes, embeddings)?;
            }
            observer.event(&Event::Progress { phase: "images", done: pass.end, total: images.len() });
        }
        Ok(())
    })?;
    if left_out.more() > 0 {
        observer.event(&Event::Warning(&format!("{} more images cannot be read: left out", left_out.more())));
    }
    warn_of_truncated(truncated.iter().map(|index| images[*index as usize]), observer);
    Ok(truncated)
}

/// Names the first few images that were cut off.
pub(crate) fn warn_of_truncated<'a>(images: impl Iterator<Item = &'a ImageSource>, observer: &dyn Observer) {
    let mut named = Named::default();
    for image in images {
        named.add(image.label());
    }
    if let Some(warning) = named.truncated_images() {
        observer.event(&Event::Warning(&warning));
    }
}

fn is_finite(row: &[f32]) -> bool {
    row.iter().all(|value| value.is_finite())
}

/// Weights are finite where they are read, so what is not finite now overflowed on the way.
fn not_finite(engine: &dyn Engine, what: &str) -> Error {
    Error::data(format!("{}: its embedding of {what} is not finite", engine.label()))
        .hint("its weights are too large for fp32, as a run that diverged leaves them: take an earlier checkpoint")
}

pub(crate) fn passes(count: usize, batch_size: usize) -> Vec<Range<usize>> {
    (0..count).step_by(batch_size).map(|start| start..count.min(start + batch_size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Silent;

    /// Gives rows that are not finite.
    struct Overflown(ClipConfig);

    impl Engine for Overflown {
        fn config(&self) -> &ClipConfig {
            &self.0
        }
        fn label(&self) -> &str {
            "huge.pt"
        }
        fn images(&self, pictures: &[&[u8]]) -> Result<Vec<Vec<f32>>> {
            Ok(vec![vec![0.5, f32::INFINITY]; pictures.len()])
        }
        fn texts(&self, prompts: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
            Ok(vec![vec![f32::NAN, 0.5]; prompts.len()])
        }
    }

    #[test]
    fn an_embedding_that_is_not_finite_names_model_and_image() {
        let engine = Overflown(ClipConfig::preset("tiny").unwrap());
        let (decode, on_bad_image) = (DecodeOptions::default(), OnBadImage::Stop);
        let options = EmbedOptions { batch_size: 2, workers: 1, decode, on_bad_image };
        let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/pixels/rgb.png");
        let stop = AtomicBool::new(false);
        let images = [ImageSource::File(picture.into())];
        let error = embed(&engine, &images, &[], &options, &Silent, &stop).err().unwrap();
        assert_eq!(error.to_string(), format!("huge.pt: its embedding of {picture} is not finite"));
        let prompts = [Tokens { ids: vec![1, 2], truncated: false }];
        let error = embed(&engine, &[], &prompts, &options, &Silent, &stop).err().unwrap();
        assert_eq!(error.to_string(), "huge.pt: its embedding of a prompt is not finite");
    }
}
