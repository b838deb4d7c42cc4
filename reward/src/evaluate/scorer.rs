//! From a metric's name to scores: the seam where a new metric is plugged in.

use std::collections::HashMap;

use super::{
    Column, Item, Run,
    clip::SharedClip,
    diversity,
    metric::{MetricName, MetricSpec, PixelMeasure, SetDistance},
    scores::{Cache, Key},
    summary::MetricSummary,
};
#[cfg(feature = "torch")]
use super::{clip::checkpoint_sha256, pixels};
#[cfg(feature = "torch")]
use crate::score::spec::RewardSpec;
use crate::{Error, Result, data::image_set::ImageSet, event::Event, score::spec::RewardName, weights::sha256};

/// Turns a metric's name into scores.
pub(super) struct Scorer<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) sets: &'a [&'a ImageSet],
    pub(super) hashes: &'a [Vec<String>],
    pub(super) cache: &'a Cache,
    pub(super) clips: HashMap<String, SharedClip>,
    pub(super) computed: usize,
}

impl<'a> Scorer<'a> {
    /// The columns a metric gives: one, but diversity has one within prompts and one over the set.
    pub(super) fn columns(&mut self, spec: &MetricSpec) -> Result<Vec<Column>> {
        let path = spec.path.as_deref().unwrap_or_default();
        let namesakes = self.run.options.metrics.iter().filter(|other| other.name == spec.name).count();
        let label = if namesakes > 1 { spec.to_string() } else { spec.name.as_str().to_owned() };
        match spec.name {
            MetricName::Diversity => self.diversity(),
            MetricName::SetDistance(_) => Ok(Vec::new()),
            MetricName::Pixels(measure) => {
                let compute = |scorer: &mut Self, items: &[Item]| scorer.pixels(measure, items);
                Ok(vec![self.column(spec.name, label, measure.convention().to_owned(), String::new(), compute)?])
            }
            MetricName::Reward(RewardName::SocialReward | RewardName::ClipScore) => {
                let clip = self.clip(path)?;
                let convention = format!("cosine of unit CLIP embeddings ({}), -1..1", clip.activation());
                let sha256 = clip.sha256.clone();
                let compute = |scorer: &mut Self, items: &[Item]| {
                    let run = scorer.run;
                    scorer.clip(path)?.scores(items, run)
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
        let device = options.device.resolve()?;
        let spec = RewardSpec { name, path: path.to_owned(), weight: 1.0 };
        let reward = spec.load(options.clip.as_deref(), device, tch::Kind::Float)?;
        let sha256 = checkpoint_sha256(path, reward.files(), options.open.seed)?;
        let convention = name.convention().as_str().to_owned();
        let compute = |scorer: &mut Self, items: &[Item]| {
            pixels::scores(name.as_str(), items, device, scorer.run, |pixels, prompts| reward.score(pixels, prompts))
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

    /// Scores of all rows, from the cache where it has them; `compute` gives those of the distinct (prompt, image) left.
    fn column(
        &mut self,
        name: MetricName,
        label: String,
        convention: String,
        checkpoint_sha256: String,
        compute: impl FnOnce(&mut Self, &[Item]) -> Result<Vec<Option<f64>>>,
    ) -> Result<Column> {
        let items = self.items();
        let key = |item: &Item| -> Key {
            [item.prompt, &label, &convention, item.sha256, &checkpoint_sha256].map(str::to_owned)
        };
        let mut known: HashMap<(&str, &str), Option<f64>> = HashMap::new();
        let mut missing = Vec::new();
        for item in &items {
            known.entry((item.prompt, item.sha256)).or_insert_with(|| {
                let cached = self.cache.get(&key(item));
                if cached.is_none() {
                    missing.push(*item);
                }
                cached
            });
        }
        if !missing.is_empty() {
            let computed = compute(self, &missing)?;
            self.computed += missing.len();
            known.extend(missing.iter().map(|item| (item.prompt, item.sha256)).zip(computed));
        }
        if let Some((item, score)) = items
            .iter()
            .find_map(|item| Some((item, known[&(item.prompt, item.sha256)].filter(|score| !score.is_finite())?)))
        {
            return Err(Error::data(format!("{label} of {} is {score}: wanted a finite score", item.image.label()))
                .hint("the model's weights may hold NaN, as after a training run that diverged"));
        }
        let mut all = items.iter().map(|item| known[&(item.prompt, item.sha256)]);
        let scores = self.sets.iter().map(|set| all.by_ref().take(set.rows.len()).collect()).collect();
        Ok(Column { name, label, convention, checkpoint_sha256, scores })
    }

    #[cfg(feature = "torch")]
    fn pixels(&self, measure: PixelMeasure, items: &[Item]) -> Result<Vec<Option<f64>>> {
        pixels::measured(measure, items, self.run)
    }

    #[cfg(not(feature = "torch"))]
    fn pixels(&self, measure: PixelMeasure, _: &[Item]) -> Result<Vec<Option<f64>>> {
        Err(Error::usage(format!("metric `{}` needs libtorch", measure.as_str())))
    }

    /// The distance of the set from the baseline, as the set's metric.
    #[cfg(feature = "torch")]
    pub(super) fn distance(&mut self, distance: SetDistance) -> Result<(String, MetricSummary)> {
        let path = self.run.options.embedding_clip().unwrap_or_default().to_owned();
        let (run, items, sets) = (self.run, self.items(), self.sets);
        let clip = self.clip(&path)?;
        let sha256 = clip.sha256.clone();
        let known = clip.embeddings(&items, run)?;
        let (own, others) = items.split_at(sets[0].rows.len());
        if own.len().min(others.len()) < 2 {
            return Err(Error::data(format!("{} needs at least two images in either set", distance.as_str())));
        }
        let features = |items: &[Item]| {
            let values: Vec<f32> = items.iter().flat_map(|item| known[item.sha256].iter().copied()).collect();
            tch::Tensor::from_slice(&values).view([items.len() as i64, -1])
        };
        let of = match distance {
            SetDistance::FidClip => crate::metrics::frechet_distance,
            SetDistance::KidClip => crate::metrics::kernel_distance,
        };
        let summary = MetricSummary {
            mean: Some(of(&features(own), &features(others))),
            ..MetricSummary::of(&[], distance.convention(), &sha256, 0)
        };
        Ok((distance.as_str().to_owned(), summary))
    }

    #[cfg(not(feature = "torch"))]
    pub(super) fn distance(&mut self, distance: SetDistance) -> Result<(String, MetricSummary)> {
        Err(Error::usage(format!("metric `{}` needs libtorch", distance.as_str())))
    }

    /// Within prompts and over the set. A value depends on the whole set, whose hash is therefore part of the convention.
    fn diversity(&mut self) -> Result<Vec<Column>> {
        let path = self.run.options.embedding_clip().unwrap_or_default().to_owned();
        let (run, sha256) = (self.run, self.clip(&path)?.sha256.clone());
        let (items, sets) = (self.items(), self.sets);
        let mut sorted: Vec<String> = items.iter().map(|item| format!("{} {}\n", item.sha256, item.prompt)).collect();
        sorted.sort_unstable();
        let images = &sha256::of_bytes(sorted.concat().as_bytes())[..8];
        let mut columns = Vec::new();
        for (label, others) in [("diversity", "the prompt's"), ("diversity-set", "the set's")] {
            let convention = format!("mean 1 - cosine to {others} other images, 0..2 (images {images})");
            let cached = |set: &ImageSet, hashes: &[String]| -> Option<Vec<Option<f64>>> {
                let rows = set.rows.iter().zip(hashes);
                let scores = rows.map(|(row, image)| {
                    let key = [set.prompt(row), label, &convention, image, &sha256].map(str::to_owned);
                    self.cache.get(&key)
                });
                let scores: Vec<Option<f64>> = scores.collect();
                scores.iter().any(Option::is_some).then_some(scores)
            };
            let cached: Option<Vec<_>> =
                sets.iter().zip(self.hashes).map(|(set, hashes)| cached(set, hashes)).collect();
            let scores = match cached {
                Some(scores) => scores,
                None => {
                    self.computed += items.len();
                    let known = self.clip(&path)?.embeddings(&items, run)?;
                    let mut rest = items.iter();
                    let mut of_set = |set: &&ImageSet| {
                        let own: Vec<&Item> = rest.by_ref().take(set.rows.len()).collect();
                        let embeddings: Vec<&[f32]> = own.iter().map(|item| &known[item.sha256][..]).collect();
                        let group = |item: &&Item<'a>| if label == "diversity" { item.prompt } else { "" };
                        diversity::distances(&own.iter().map(group).collect::<Vec<_>>(), &embeddings)
                    };
                    sets.iter().map(&mut of_set).collect()
                }
            };
            let (label, checkpoint_sha256) = (label.to_owned(), sha256.clone());
            columns.push(Column { name: MetricName::Diversity, label, convention, checkpoint_sha256, scores });
        }
        if columns[0].scores.iter().flatten().all(Option::is_none) {
            run.observer.event(&Event::Warning("no prompt has two images: diversity within prompts is unknown"));
        }
        Ok(columns)
    }
}
