//! Metrics that see an image's pixels as a tensor, in its own size.

use tch::{Device, Kind, Tensor};

use super::{Item, Run};
use crate::{
    Error, Result,
    clip::preprocess::rgb,
    data::{
        image::{DecodeOptions, Decoded, decode, probe},
        loader::ordered,
        preflight::check_header,
    },
    engine::warn_of_truncated,
    error::interrupted,
    event::Event,
    measures::PixelMeasure,
};

/// A decoded image: height, width, RGB bytes row by row.
struct Pixels {
    size: [i64; 2],
    bytes: Vec<u8>,
    truncated: bool,
}

/// The measure of every image, set in `found` as soon as it is known.
pub(super) fn measured(measure: PixelMeasure, items: &[Item], run: &Run, found: &mut [Option<f64>]) -> Result<()> {
    scores(measure.as_str(), items, Device::Cpu, run, found, |pixels, _| Ok(measure.of(pixels)))
}

/// What `score` gives for batches of neighbours of one size: `pixels` `[B, 3, H, W]`, fp32 in 0..=1, and B prompts to `[B]`;
/// set in `found` batch by batch.
///
/// # Errors
/// An image cannot be read, `score` fails, or the user asked to stop.
pub(super) fn scores(
    phase: &'static str,
    items: &[Item],
    device: Device,
    run: &Run,
    found: &mut [Option<f64>],
    mut score: impl FnMut(&Tensor, &[&str]) -> Result<Tensor>,
) -> Result<()> {
    let options = &run.options.embed;
    let decode_options = DecodeOptions { fast_for: None, ..options.decode.clone() };
    let load = |item: &Item| -> Result<Pixels> {
        let Decoded { picture, truncated, .. } = decode(&item.image.read()?, &item.image.label(), &decode_options)?;
        Ok(Pixels { size: [picture.height(), picture.width()].map(i64::from), bytes: rgb(&picture), truncated })
    };
    let (mut done, mut truncated) = (0, Vec::<&Item>::new());
    while done < items.len() {
        let group = &items[done..][..count_that_may_wait(&items[done..])];
        ordered(group.iter(), options.workers, 2 * options.batch_size, load, |loaded| -> Result<()> {
            let mut loaded = loaded.peekable();
            while let Some(first) = loaded.next() {
                interrupted(run.stop)?;
                let mut batch = vec![first?];
                let (size, bytes) = (batch[0].size, batch[0].bytes.len());
                let count = options.batch_size.min(BATCH_BYTES.div_euclid(bytes.max(1)));
                while batch.len() < count
                    && let Some(Ok(next)) = loaded.next_if(|next| next.as_ref().is_ok_and(|next| next.size == size))
                {
                    batch.push(next);
                }
                let own = &items[done..][..batch.len()];
                truncated.extend(own.iter().zip(&batch).filter(|(_, pixels)| pixels.truncated).map(|(item, _)| item));
                let prompts: Vec<&str> = own.iter().map(|item| item.prompt).collect();
                let scored = tch::no_grad(|| score(&tensor(&batch, device), &prompts))?;
                let scored = Vec::<f64>::try_from(scored.to_device(Device::Cpu).to_kind(Kind::Double))
                    .map_err(|error| Error::data("scores cannot be read back").caused_by(error))?;
                for ((found, score), item) in found[done..].iter_mut().zip(scored).zip(own) {
                    if !score.is_finite() {
                        return Err(Error::data(format!("{phase} of {}: the score is {score}", item.image.label()))
                            .hint("its weights are too large for fp32, as a run that diverged leaves them"));
                    }
                    *found = Some(score);
                }
                done += batch.len();
                run.observer.event(&Event::Progress { phase, done, total: items.len() });
            }
            Ok(())
        })?;
    }
    // Another metric may have named them before.
    let mut known = run.truncated();
    truncated.retain(|item: &&Item| known.insert(item.sha256.to_owned()));
    warn_of_truncated(truncated.into_iter().map(|item| item.image), run.observer);
    Ok(())
}

/// Bytes of a batch of pictures, before they become numbers of four bytes.
const BATCH_BYTES: usize = 128 << 20;

/// How many of the next pictures may be decoded and wait for the model at once: one, or more while they are small.
fn count_that_may_wait(items: &[Item]) -> usize {
    const WAITING_BYTES: u64 = 512 << 20;
    let mut bytes = 0;
    let bytes_of = |item: &Item| {
        let mut pixels = 0;
        // What cannot be read is an error in its turn.
        let _ = check_header(item.image, |head| probe(head, "").map(|header| pixels = header.pixels()));
        3 * pixels
    };
    let fits = |item: &&Item| {
        bytes += bytes_of(item);
        bytes <= WAITING_BYTES
    };
    items.iter().take_while(fits).count().max(1)
}

fn tensor(batch: &[Pixels], device: Device) -> Tensor {
    let image = |Pixels { size: [height, width], bytes, .. }: &Pixels| {
        Tensor::from_slice(bytes).view([*height, *width, 3]).permute([2, 0, 1])
    };
    let bytes = Tensor::stack(&batch.iter().map(image).collect::<Vec<_>>(), 0);
    bytes.to_device(device).to_kind(Kind::Float) / 255.0
}
