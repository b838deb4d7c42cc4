//! Reading and checking the data of a run before anything is trained.

use std::sync::atomic::AtomicBool;

use super::{config::TrainConfig, encoder::Examples};
use crate::{
    Error, Result,
    clip::{config::ClipConfig, preprocess, tokenizer::Tokenizer},
    data::{
        image::{self, DecodeOptions},
        preflight::{self, Level, Look, OnBadImage, check_header, preflight},
        source::ImageSource,
        triplets::{ReadOptions, Triplets},
    },
    event::{Event, Observer},
    run::inputs::Inputs,
};

/// Training and validation triplets, checked.
pub(super) struct Data {
    pub(super) training: Examples,
    pub(super) validation: Option<Examples>,
    /// What they hold.
    pub(super) inputs: Inputs,
}

/// How images are decoded under these settings.
pub(super) fn decode_options(config: &TrainConfig, clip: &ClipConfig) -> DecodeOptions {
    let default = DecodeOptions::default();
    DecodeOptions {
        max_pixels: config.max_pixels.unwrap_or(default.max_pixels),
        exif_rotate: config.exif_rotate,
        fast_for: config.fast_decode.then_some(clip.image_size as u32),
    }
}

/// Reads the parquet files and runs the preflight.
///
/// # Errors
/// The data cannot be read, or the preflight found errors.
pub(super) fn prepare(
    config: &TrainConfig,
    clip: &ClipConfig,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Data> {
    let options = ReadOptions { image_root: config.image_root.clone(), slice_by: None };
    let mut training = Triplets::read(&config.training_file, &options)?;
    let mut validation = match config.validation_file.as_slice() {
        [] => None,
        files => Some(Triplets::read(files, &options)?),
    };
    let decode = decode_options(config, clip);
    let tokenizer = Tokenizer::openai();
    let check = |source: &ImageSource| -> Result<Look> {
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(Look::Whole);
        }
        match config.preflight {
            Level::Full => {
                let size = clip.image_size as u32;
                let loaded = preprocess::load(&source.read()?, &source.label(), size, &clip.preprocessing, &decode)?;
                Ok(if loaded.truncated { Look::Truncated } else { Look::Whole })
            }
            Level::Headers | Level::Off => check_header(source, |head| {
                image::probe(head, &source.label())?.check_pixels(&source.label(), decode.max_pixels)
            })
            .map(|()| Look::Whole),
        }
    };
    let options =
        preflight::Options { level: config.preflight, on_bad_image: config.on_bad_image, strict: config.strict };
    let report = preflight(
        &training,
        validation.as_ref(),
        &options,
        &check,
        &|prompt| tokenizer.encode(prompt, clip.context_length).truncated,
        &|done, total| observer.event(&Event::Progress { phase: "preflight", done, total }),
    );
    observer.event(&Event::Preflight(&report));
    report.verdict()?;
    if config.on_bad_image == OnBadImage::Skip {
        training = training.without(&report.bad_images);
        validation = validation.map(|triplets| triplets.without(&report.bad_validation_images));
        if training.rows.is_empty() || validation.as_ref().is_some_and(|triplets| triplets.rows.is_empty()) {
            return Err(Error::data("no row is left: every row uses an image that cannot be read"));
        }
    }
    let mut inputs = Inputs::default();
    for (setting, files, triplets) in [
        ("training_file", &config.training_file, Some(&training)),
        ("validation_file", &config.validation_file, validation.as_ref()),
    ] {
        if let Some(triplets) = triplets {
            inputs.add_rows(setting, &files.join(" "), triplets.rows.len(), triplets.content_hash());
        }
    }
    let examples = |triplets| Examples::new(triplets, clip.context_length);
    Ok(Data { training: examples(training), validation: validation.map(examples), inputs })
}
