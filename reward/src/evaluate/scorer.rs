//! From a metric's name to scores: the seam where a new metric is plugged in.

use std::collections::HashMap;

use super::{
    Column, Item, Run,
    clip::SharedClip,
    diversity,
    metric::{MetricName, MetricSpec, SetDistance},
    scores::{Key, ScoreRow, Store},
    summary::MetricSummary,
};
#[cfg(feature = "torch")]
use super::{
    clip::{checkpoint_sha256, reading},
    pixels,
};
use crate::{
    Error, Result, data::image_set::ImageSet, event::Event, measures::PixelMeasure, rewards::name::RewardName,
    weights::sha256,
};
#[cfg(feature = "torch")]
use crate::{
    clip::{config::Activation, preprocessing::Preprocessing},
    rewards::{external::Limits, load::LoadOptions, spec::RewardSpec},
};

/// Turns a metric's name into scores.
pub(super) struct Scorer<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) sets: &'a [&'a ImageSet],
    pub(super) hashes: &'a [Vec<String>],
    pub(super) store: &'a mut Store,
    pub(super) clips: HashMap<String, SharedClip>,
    pub(super) computed: usize,
}

/// Columns of scores, and for every judged set its distances from the baseline.
pub(super) type Measured = (Vec<Column>, Vec<Vec<(String, MetricSummary)>>);

impl<'a> Scorer<'a> {
    /// Measures by all metrics. A checkpoint that is not there is found before the first is at work.
    pub(super) fn measure(&mut self, metrics: &[MetricSpec]) -> Result<Measured> {
        #[cfg(feature = "torch")]
        for MetricSpec { name, path } in metrics {
            if let (MetricName::Reward(name), Some(path)) = (*name, path) {
                RewardSpec::known(name, path).files(self.run.options.clip.as_deref())?;
            }
        }
        let (mut columns, mut distances) = (Vec::new(), vec![Vec::new(); self.sets.len()]);
        for spec in metrics {
            match spec.name {
                MetricName::SetDistance(distance) => {
                    let found = self.distances(distance)?;
                    distances.iter_mut().zip(found).for_each(|(all, found)| all.push(found));
                }
                _ => columns.extend(self.columns(spec)?),
            }
        }
        Ok((columns, distances))
    }

    /// The columns a metric gives: one, but diversity has one within prompts and one over the set.
    pub(super) fn columns(&mut self, spec: &MetricSpec) -> Result<Vec<Column>> {
        let path = spec.path.as_deref().unwrap_or_default();
        let namesakes = self.run.options.metrics.iter().filter(|other| other.name == spec.name).count();
        let label = if namesakes > 1 { spec.to_string() } else { spec.name.as_str().to_owned() };
        match spec.name {
            MetricName::Diversity => self.diversity(),
            MetricName::SetDistance(_) => Ok(Vec::new()),
            MetricName::Pixels(measure) => {
                let compute = |scorer: &mut Self, items: &[Item], scores: &mut [Option<f64>]| {
                    scorer.pixels(measure, items, scores)
                };
                Ok(vec![self.column(spec.name, label, measure.convention().to_owned(), String::new(), compute)?])
            }
            MetricName::Reward(RewardName::SocialReward | RewardName::ClipScore) => {
                let clip = self.clip(path)?;
                let convention = format!("cosine of unit CLIP embeddings ({}), -1..1", clip.reading());
                let sha256 = clip.sha256.clone();
                let compute = |scorer: &mut Self, items: &[Item], scores: &mut [Option<f64>]| {
                    let run = scorer.run;
                    scorer.clip(path)?.scores(items, run, scores)
                };
                Ok(vec![self.column(spec.name, label, convention, sha256, compute)?])
            }
            MetricName::Reward(name) => self.reward(name, path, label),
        }
    }

    /// A learned score that is more than a CLIP's cosine.
    #[cfg(feature = "torch")]
    fn reward(&mut self, name: RewardName, path: &str, label: String) -> Result<Vec<Column>> {
        let options = self.run.options;
        let device = options.device.resolve(0)?;
        let spec = RewardSpec::known(name, path);
        let sha256 = checkpoint_sha256(path, &spec.files(options.clip.as_deref())?, options.open.seed)?;
        let mut convention = name.convention().as_str().to_owned();
        // As published, but for HPSv2, whose pictures are prepared in its own way whatever a folder says.
        if let Some(config) = spec.clip_config(options.clip.as_deref(), options.open.activation)?
            && !name.is_hps()
        {
            let published = if name == RewardName::PickScore { Activation::Gelu } else { Activation::QuickGelu };
            if (config.vision.activation, &config.preprocessing) != (published, &Preprocessing::default()) {
                convention += &format!(" ({})", reading(&config));
            }
        }
        let compute = |scorer: &mut Self, items: &[Item], scores: &mut [Option<f64>]| {
            scorer.run.observer.event(&Event::Note(&format!("loading {}={path}", name.as_str())));
            let (clip, activation, kind) = (options.clip.as_deref(), options.open.activation, tch::Kind::Float);
            let options = LoadOptions { clip, activation, device, kind, limits: Limits::default() };
            let reward = spec.load_with(&options, scorer.run.observer)?;
            let score = |pixels: &tch::Tensor, prompts: &[&str]| reward.score(pixels, prompts);
            pixels::scores(name.as_str(), items, device, scorer.run, scores, score)
        };
        Ok(vec![self.column(MetricName::Reward(name), label, convention, sha256, compute)?])
    }

    #[cfg(not(feature = "torch"))]
    fn reward(&mut self, name: RewardName, _: &str, _: String) -> Result<Vec<Column>> {
        Err(Error::usage(format!("metric `{}` needs libtorch", name.as_str())))
    }

    /// A checkpoint is opened once.
    fn clip(&mut self, path: &str) -> Result<&mut SharedClip> {
        if !self.clips.contains_key(path) {
            let options = self.run.options;
            let wanted = options.metrics.iter().any(|spec| spec.name.wants_clip());
            let keep = wanted && options.embedding_clip() == Some(path);
            self.clips.insert(path.to_owned(), SharedClip::open(path, keep, self.run)?);
        }
        self.clips.get_mut(path).ok_or_else(|| Error::data(format!("{path}: not open")))
    }

    fn items(&self) -> Vec<Item<'a>> {
        let (sets, hashes) = (self.sets, self.hashes);
        let of_set = |(set, hashes): (&&'a ImageSet, &'a Vec<String>)| {
            let (set, rows): (&'a ImageSet, _) = (set, set.rows.iter().zip(hashes));
            rows.map(move |(row, sha256)| Item {
                prompt: set.prompt(row),
                image: &set.images[row.image as usize],
                sha256,
            })
            .collect::<Vec<_>>()
        };
        sets.iter().zip(hashes).flat_map(of_set).collect()
    }

    /// Scores of all rows, from the table where it has them; `compute` sets those of the distinct (prompt, image) left. What
    /// it has set is kept, also where it fails.
    fn column(
        &mut self,
        name: MetricName,
        label: String,
        convention: String,
        checkpoint_sha256: String,
        compute: impl FnOnce(&mut Self, &[Item], &mut [Option<f64>]) -> Result<()>,
    ) -> Result<Column> {
        let items = self.items();
        let key = |item: &Item| -> Key {
            [item.prompt, name.as_str(), &convention, item.sha256, &checkpoint_sha256].map(str::to_owned)
        };
        let mut known: HashMap<(&str, &str), Option<f64>> = HashMap::new();
        let mut missing = Vec::new();
        for item in &items {
            known.entry((item.prompt, item.sha256)).or_insert_with(|| {
                let cached = self.store.get(&key(item)).flatten();
                if cached.is_none() {
                    missing.push(*item);
                }
                cached
            });
        }
        let mut computed = vec![None; missing.len()];
        let mut done = if missing.is_empty() { Ok(()) } else { compute(self, &missing, &mut computed) };
        for (item, score) in missing.iter().zip(&computed) {
            let Some(score) = score.filter(|score| !score.is_finite()) else { continue };
            done = done.and_then(|()| {
                Err(Error::data(format!("{label} of {} is {score}: wanted a finite score", item.image.label()))
                    .hint("the model's weights may hold NaN, as after a training run that diverged"))
            });
        }
        let computed: Vec<Option<f64>> =
            computed.into_iter().map(|score| score.filter(|score| score.is_finite())).collect();
        let new = computed.iter().flatten().count();
        known.extend(missing.iter().map(|item| (item.prompt, item.sha256)).zip(computed));
        let mut all = items.iter().map(|item| known[&(item.prompt, item.sha256)]);
        let scores = self.sets.iter().map(|set| all.by_ref().take(set.rows.len()).collect()).collect();
        let conventions = vec![convention; self.sets.len()];
        let column = Column { name, label, conventions, checkpoint_sha256, scores };
        let kept = self.keep(&column, new);
        done.and(kept)?;
        Ok(column)
    }

    /// Adds a column, or what is known of it, to the table, and writes it if `new` of it are.
    ///
    /// The convention says where an image is truncated, so that such a score is never found as that of a whole image. It is
    /// computed each time, with its warning. Diversity depends on all images of its set.
    fn keep(&mut self, column: &Column, new: usize) -> Result<()> {
        const TRUNCATED: &str = "; truncated image";
        let truncated = self.run.truncated();
        for (place, set) in self.sets.iter().enumerate() {
            let is_in_set = self.hashes[place].iter().any(|sha256| truncated.contains(sha256));
            for ((row, score), image_sha256) in set.rows.iter().zip(&column.scores[place]).zip(&self.hashes[place]) {
                // An image has a score, or it is not known yet; but an only image has no diversity.
                let is_diversity = column.name == MetricName::Diversity;
                let is_marked = if is_diversity { is_in_set } else { truncated.contains(image_sha256) };
                if score.is_some() || is_diversity {
                    self.store.rows.push(ScoreRow {
                        set: set.name.clone(),
                        prompt: set.prompt(row).to_owned(),
                        path: row.path.clone(),
                        seed: row.seed,
                        metric: column.label.clone(),
                        score: *score,
                        convention: column.conventions[place].clone() + if is_marked { TRUNCATED } else { "" },
                        image_sha256: image_sha256.clone(),
                        checkpoint_sha256: column.checkpoint_sha256.clone(),
                    });
                }
            }
        }
        drop(truncated);
        if new > 0 {
            self.store.write()?;
        }
        self.computed += new;
        Ok(())
    }

    #[cfg(feature = "torch")]
    fn pixels(&self, measure: PixelMeasure, items: &[Item], scores: &mut [Option<f64>]) -> Result<()> {
        pixels::measured(measure, items, self.run, scores)
    }

    #[cfg(not(feature = "torch"))]
    fn pixels(&self, measure: PixelMeasure, _: &[Item], _: &mut [Option<f64>]) -> Result<()> {
        Err(Error::usage(format!("metric `{}` needs libtorch", measure.as_str())))
    }

    /// The distance of every set from the baseline, the last one, as a metric of the set.
    #[cfg(feature = "torch")]
    pub(super) fn distances(&mut self, distance: SetDistance) -> Result<Vec<(String, MetricSummary)>> {
        if self.sets.iter().any(|set| set.rows.len() < 2) {
            return Err(Error::data(format!("{} needs at least two images in either set", distance.as_str())));
        }
        let path = self.run.options.embedding_clip().unwrap_or_default().to_owned();
        let clip = self.clip(&path)?;
        let (sha256, unlike) = (clip.sha256.clone(), clip.unlike_openais());
        let images = |hashes: &Vec<String>| {
            let mut hashes: Vec<&str> = hashes.iter().map(String::as_str).collect();
            hashes.sort_unstable();
            sha256::of_bytes(hashes.concat().as_bytes())
        };
        let (baseline, judged) =
            self.hashes.split_last().map_or_else(Default::default, |(last, judged)| (images(last), judged));
        let key =
            |own| format!("{}, checkpoint {sha256}{unlike}, images {} to {baseline}", distance.as_str(), images(own));
        let keys: Vec<String> = judged.iter().map(key).collect();
        let mut known: Vec<Option<f64>> = keys.iter().map(|key| self.store.distances.get(key).copied()).collect();
        if known.contains(&None) {
            let features = self.features(&path)?;
            let of = match distance {
                SetDistance::FidClip => crate::measures::frechet_distance,
                SetDistance::KidClip => crate::measures::kernel_distance,
            };
            for ((key, own), known) in keys.iter().zip(&features).zip(&mut known) {
                let value = of(own, &features[features.len() - 1]);
                *known = Some(value);
                // Those of truncated images are computed each time, with their warning.
                if self.run.truncated().is_empty() {
                    self.store.distances.insert(key.clone(), value);
                }
            }
            self.store.write()?;
        }
        let summary = |mean| MetricSummary { mean, ..MetricSummary::of(&[], distance.convention(), &sha256, 0) };
        Ok(known.into_iter().map(|mean| (distance.as_str().to_owned(), summary(mean))).collect())
    }

    /// The embeddings of each set's images, `[n, embed_dim]`.
    #[cfg(feature = "torch")]
    fn features(&mut self, path: &str) -> Result<Vec<tch::Tensor>> {
        let (run, items, sets) = (self.run, self.items(), self.sets);
        let known = self.clip(path)?.embeddings(&items, run)?;
        let mut rest = items.iter();
        let features = sets.iter().map(|set| {
            let own = rest.by_ref().take(set.rows.len());
            let values: Vec<f32> = own.flat_map(|item| known[item.sha256].iter().copied()).collect();
            tch::Tensor::from_slice(&values).view([set.rows.len() as i64, -1])
        });
        Ok(features.collect())
    }

    #[cfg(not(feature = "torch"))]
    pub(super) fn distances(&mut self, distance: SetDistance) -> Result<Vec<(String, MetricSummary)>> {
        Err(Error::usage(format!("metric `{}` needs libtorch", distance.as_str())))
    }

    /// Within prompts and over the set. A value depends on the whole set, whose hash is therefore part of the convention.
    fn diversity(&mut self) -> Result<Vec<Column>> {
        let path = self.run.options.embedding_clip().unwrap_or_default().to_owned();
        let clip = self.clip(&path)?;
        let (sha256, unlike) = (clip.sha256.clone(), clip.unlike_openais());
        let (run, items, sets) = (self.run, self.items(), self.sets);
        let mut columns = Vec::new();
        for (label, others) in [("diversity", "the prompt's"), ("diversity-set", "the set's")] {
            let (mut conventions, mut scores, mut new) = (Vec::new(), Vec::new(), 0);
            let mut rest = &items[..];
            for set in sets {
                let (own, behind) = rest.split_at(set.rows.len());
                rest = behind;
                let mut lines: Vec<String> =
                    own.iter().map(|item| format!("{} {}\n", item.sha256, item.prompt)).collect();
                lines.sort_unstable();
                let images = &sha256::of_bytes(lines.concat().as_bytes())[..8];
                let convention = format!("mean 1 - cosine to {others} other images, 0..2 (images {images}{unlike})");
                let key = |item: &Item| [item.prompt, label, &convention, item.sha256, &sha256].map(str::to_owned);
                let known: Option<Vec<_>> = own.iter().map(|item| self.store.get(&key(item))).collect();
                scores.push(match known {
                    Some(known) => known,
                    None => {
                        new += own.len();
                        let known = self.clip(&path)?.embeddings(own, run)?;
                        let embeddings: Vec<&[f32]> = own.iter().map(|item| &known[item.sha256][..]).collect();
                        let group = |item: &Item<'a>| if label == "diversity" { item.prompt } else { "" };
                        diversity::distances(&own.iter().map(group).collect::<Vec<_>>(), &embeddings)
                    }
                });
                conventions.push(convention);
            }
            let (label, checkpoint_sha256) = (label.to_owned(), sha256.clone());
            let column = Column { name: MetricName::Diversity, label, conventions, checkpoint_sha256, scores };
            self.keep(&column, new)?;
            columns.push(column);
        }
        if columns[0].scores.iter().flatten().all(Option::is_none) {
            run.observer.event(&Event::Warning("no prompt has two images: diversity within prompts is unknown"));
        }
        Ok(columns)
    }
}
