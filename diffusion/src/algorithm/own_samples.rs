//! Images that the model makes of the run's prompts, scored: what the methods that need no gradient of a reward learn from.

use std::ops::Range;

use tch::Tensor;

use super::Scene;
use crate::{Result, noise::Stream, objective::Scores};

/// Latents decoded at a time, without a graph.
const DECODED: i64 = 8;

/// Makes this rank's share of the images of `scene` with `make`, as many at a time as fit, and scores them. `make` gives what is
/// to be kept of some images, and their finished latents `[b, C, h, w]`. The scores are those of all images.
///
/// # Errors
/// A reward fails, one image does not fit into memory, or another rank is lost.
pub(super) fn roll<T>(scene: &Scene, make: impl Fn(Range<usize>) -> (T, Tensor)) -> Result<(Vec<T>, Scores)> {
    let (kept, scores) = scene.micro_batches.run(scene.items.len(), |ranges| {
        let (mut kept, mut pending) = (Vec::new(), Vec::new());
        for images in ranges {
            let (some, latents) = make(images.clone());
            kept.push(some);
            let mut start = images.start;
            for latents in latents.split(DECODED, 0) {
                let batch = scene.batch(start..start + latents.size()[0] as usize);
                start += latents.size()[0] as usize;
                pending.push(scene.objective.begin_scores(&scene.objective.decode(&latents), &batch)?);
            }
        }
        // Only now: a reward in another program scores the first images while the next are made.
        let mut scores = Scores::default();
        for wait in pending {
            scores.extend(wait()?);
        }
        Ok((kept, scores))
    })?;
    Ok((kept, scores.of_all(scene.micro_batches.world())?))
}

/// The finished latents of the images of `scene`, `[B, C, h, w]`, and their scores, by any sampler.
///
/// # Errors
/// As [`roll`].
pub(super) fn images(scene: &Scene) -> Result<(Tensor, Scores)> {
    let policy = scene.policy;
    let steps = policy.sampler.timesteps().len();
    let (latents, scores) = policy.merged(|| {
        roll(scene, |images| {
            let batch = scene.batch(images);
            let latents = policy.roll(&batch.noise(Stream::Latents), 0..steps, &batch);
            (latents.shallow_clone(), latents)
        })
    })?;
    Ok((scene.micro_batches.world().concatenated(&latents)?, scores))
}
