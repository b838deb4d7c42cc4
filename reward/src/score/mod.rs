//! Scoring images for prompts: the cosine of their CLIP embeddings, on libtorch or, without it, on candle; and rewards
//! for fine-tuning, whose images are tensors.

#[cfg(feature = "torch")]
mod fast;
pub mod portable;
#[cfg(feature = "torch")]
pub mod reward;
pub mod spec;

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    Error, Result,
    clip::{config::ClipConfig, preprocess, tokenizer::Tokens},
    data::{image::DecodeOptions, loader::ordered, named::Named, preflight::OnBadImage, source::ImageSource},
    device::DeviceName,
    eval::table::Table,
    event::{Event, Observer},
    weights::Checkpoint,
};

/// A loaded CLIP that embeds.
pub trait Engine {
    /// The architecture.
    fn config(&self) -> &ClipConfig;

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
    return Ok(Box::new(fast::Fast::load(checkpoint, device)?));
    #[cfg(not(feature = "torch"))]
    {
        device.check_portable()?;
        Ok(Box::new(portable::Portable::load(checkpoint)?))
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
    let mut table = Table::new(images.len(), prompts.len(), engine.config().embed_dim);
    embed_prompts(engine, prompts, options, observer, stop, |indexes, embeddings| {
        table.set_prompts(indexes, &embeddings);
    })?;
    let all: Vec<&ImageSource> = images.iter().collect();
    embed_images(engine, &all, options, observer, stop, |indexes, embeddings| table.set_images(indexes, &embeddings))?;
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
    mut each: impl FnMut(&[u32], Vec<Vec<f32>>),
) -> Result<()> {
    // Prompts of like length share a pass: text is cut at the longest.
    let mut by_length: Vec<u32> = (0..prompts.len() as u32).collect();
    by_length.sort_by_key(|prompt| prompts[*prompt as usize].ids.len());
    for (pass, chunk) in by_length.chunks(options.batch_size).enumerate() {
        interrupted(stop)?;
        let tokens: Vec<&Tokens> = chunk.iter().map(|prompt| &prompts[*prompt as usize]).collect();
        each(chunk, engine.texts(&tokens)?);
        let done = (pass + 1).saturating_mul(options.batch_size).min(prompts.len());
        observer.event(&Event::Progress { phase: "prompts", done, total: prompts.len() });
    }
    Ok(())
}

/// Embeds images, a pass at a time, and hands on indexes and unit embeddings; images that could not be read are left out.
/// Gives the indexes of those that are truncated. The first few of either kind are named in warnings.
///
/// # Errors
/// As those of [`embed`].
pub fn embed_images(
    engine: &dyn Engine,
    images: &[&ImageSource],
    options: &EmbedOptions,
    observer: &dyn Observer,
    stop: &AtomicBool,
    mut each: impl FnMut(&[u32], Vec<Vec<f32>>),
) -> Result<Vec<u32>> {
    let size = engine.config().image_size as u32;
    let (mut left_out, mut truncated) = (Named::default(), Vec::new());
    let load = |index: u32| {
        let source = images[index as usize];
        preprocess::load(&source.read()?, &source.label(), size, &options.decode)
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
                each(&indexes, engine.images(&pictures)?);
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

pub(crate) fn passes(count: usize, batch_size: usize) -> Vec<Range<usize>> {
    (0..count).step_by(batch_size).map(|start| start..count.min(start + batch_size)).collect()
}

pub(crate) fn interrupted(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(Error::interrupted()) } else { Ok(()) }
}
