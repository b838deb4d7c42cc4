//! What no trainer sees: how popular the images of a set truly are, and whether they show what was asked for.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result};
use reward::{
    Error,
    data::image_set::ImageSet,
    statistics::{
        comparison::{Comparison, Pair, compare},
        intervals::{Interval, bootstrap_by_prompt, bootstrap_mean_by_prompt},
        mean,
    },
};

use super::{
    detector::detect,
    world::{Colour, Request, Scene, Shape, popularity},
};

/// The truth about the image set `tuned` beside `base`, as text.
///
/// # Errors
/// A set cannot be read, holds prompts that the toy world does not know, or they have no prompt and seed in common.
pub(super) fn table(tuned: &Path, base: &Path) -> Result<String> {
    if !base.exists() {
        let error = Error::data(format!("{}: no such folder", base.display()));
        return Err(error.hint("--output DIR names the folder of a demo, whose base images these are beside").into());
    }
    let (tuned, base) = (ImageSet::read(tuned, None)?, ImageSet::read(base, None)?);
    let (tuned, base) = (Truth::of(&tuned)?, Truth::of(&base)?);
    let gain = tuned.against(&base)?;
    let row = |what: &str, base: Figure, tuned: Figure, chance: String| {
        let figure =
            |Figure { mean, interval }: Figure| format!("{mean:.3} [{:.3}, {:.3}]", interval.low, interval.high);
        format!("  {what:<22}{:<24}{:<24}{chance}\n", figure(base), figure(tuned))
    };
    let chance = |members: usize| format!("{:.3}", 1.0 / members as f64);
    Ok(format!(
        "The truth, which no trainer saw (95 % intervals, prompts resampled)\n  {:<22}{:<24}{:<24}by chance\n{}{}{}\
         true popularity rose by {:+.3} [{:+.3}, {:+.3}]; tuned images win {:.3} [{:.3}, {:.3}] of {} pairs\n",
        "",
        "base",
        "tuned",
        row("true popularity", base.popularity(), tuned.popularity(), String::new()),
        row("colour as asked", base.colour(), tuned.colour(), chance(Colour::ALL.len())),
        row("shape as asked", base.shape(), tuned.shape(), chance(Shape::ALL.len())),
        gain.mean_difference,
        gain.mean_difference_low,
        gain.mean_difference_high,
        gain.win_rate,
        gain.interval_low,
        gain.interval_high,
        gain.n_pairs,
    ))
}

/// How popular a picture is that shows nothing: less than the palest, whoever asked.
const OF_NOTHING: f64 = -1.5;

/// An image as the toy world sees it.
struct Judged {
    request: Request,
    scene: Option<Scene>,
    popularity: f64,
}

/// A set as the toy world sees it.
struct Truth<'a> {
    set: &'a ImageSet,
    judged: Vec<Judged>,
}

/// A mean over images with its 95 % interval, prompts resampled.
#[derive(Debug, Clone, Copy)]
struct Figure {
    mean: f64,
    interval: Interval,
}

impl<'a> Truth<'a> {
    /// Looks at every image.
    ///
    /// # Errors
    /// An image cannot be read, or a prompt is not a request as the toy world words it.
    fn of(set: &'a ImageSet) -> Result<Self> {
        let requests: HashMap<String, Request> =
            Request::all().into_iter().map(|request| (request.to_string(), request)).collect();
        let judge = |row: usize| {
            let image = &set.images[set.rows[row].image as usize];
            let picture = image::load_from_memory(&image.read()?).with_context(|| image.label())?.into_rgb8();
            let prompt = set.prompt(&set.rows[row]);
            let request =
                *requests.get(prompt).with_context(|| format!("\"{prompt}\" is no request of the toy world"))?;
            let scene = detect(&picture, picture.width());
            let popularity = scene.as_ref().map_or(OF_NOTHING, |scene| popularity(&request, scene));
            Ok(Judged { request, scene, popularity })
        };
        Ok(Self { set, judged: (0..set.rows.len()).map(judge).collect::<Result<_>>()? })
    }

    fn prompts(&self) -> Vec<&str> {
        self.set.rows.iter().map(|row| self.set.prompt(row)).collect()
    }

    /// Mean true popularity.
    fn popularity(&self) -> Figure {
        let values: Vec<f64> = self.judged.iter().map(|judged| judged.popularity).collect();
        Figure { mean: mean(&values), interval: bootstrap_mean_by_prompt(&self.prompts(), &values, 0) }
    }

    fn share(&self, obeys: impl Fn(&Request, &Scene) -> bool) -> Figure {
        let obeys = |judged: &Judged| judged.scene.as_ref().is_some_and(|scene| obeys(&judged.request, scene));
        let values: Vec<f64> = self.judged.iter().map(|judged| f64::from(u8::from(obeys(judged)))).collect();
        Figure { mean: mean(&values), interval: bootstrap_by_prompt(&self.prompts(), &values, 0) }
    }

    /// Share of images in the colour that was asked for.
    fn colour(&self) -> Figure {
        self.share(|request, scene| request.colour == scene.colour)
    }

    /// Share of images that show the shape that was asked for.
    fn shape(&self) -> Figure {
        self.share(|request, scene| request.shape == scene.shape)
    }

    /// True popularity against that of `baseline`, by pairs of the same prompt and seed.
    ///
    /// # Errors
    /// There are no pairs.
    fn against(&self, baseline: &Self) -> Result<Comparison> {
        let pairs = self.set.pairs(baseline.set)?;
        let pair = |(row, other): &(usize, usize)| Pair {
            prompt: self.set.prompt(&self.set.rows[*row]),
            score: self.judged[*row].popularity,
            baseline: baseline.judged[*other].popularity,
        };
        let pairs: Vec<Pair> = pairs.matched.iter().map(pair).collect();
        compare("true popularity", &pairs, 0).context("no pairs of images to compare")
    }
}
