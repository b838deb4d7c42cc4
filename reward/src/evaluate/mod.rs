//! Judging sets of generated images: scores by several metrics, and one set against another.

mod clip;
mod diversity;
pub mod metric;
#[cfg(feature = "torch")]
mod pixels;
pub mod scores;
pub mod sha256;
pub mod summary;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::atomic::AtomicBool,
};

use self::{
    clip::SharedClip,
    metric::{MetricName, MetricSpec, PixelMeasure, SetDistance},
    scores::{Cache, Key, ScoreRow},
    summary::{MetricSummary, SetSummary, Summary},
};
use crate::{
    Error, Result,
    data::{
        image_set::{ImageSet, Pairs},
        loader::ordered,
        source::ImageSource,
    },
    device::DeviceName,
    eval::{
        best_of::best_of,
        comparison::{Pair, compare},
    },
    event::{Event, Observer},
    score::{EmbedOptions, interrupted, spec::RewardName},
    weights::OpenOptions,
};

/// What to measure, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The metrics, in the order of the answer.
    pub metrics: Vec<MetricSpec>,
    /// The CLIP that diversity and distances of sets are measured with; otherwise that of the first metric that has one.
    pub clip: Option<String>,
    /// Where to compute.
    pub device: DeviceName,
    /// How checkpoints are opened.
    pub open: OpenOptions<'static>,
    /// How images are read.
    pub embed: EmbedOptions,
    /// Seed of the bootstraps.
    pub seed: u64,
}

impl Options {
    /// The CLIP for metrics that [want](MetricName::wants_clip) one.
    fn embedding_clip(&self) -> Option<&str> {
        let is_clip = |spec: &&MetricSpec| spec.name == MetricName::Reward(RewardName::SocialReward);
        self.clip.as_deref().or_else(|| self.metrics.iter().find(is_clip)?.path.as_deref())
    }

    /// Refuses what cannot be measured, before anything is read.
    ///
    /// # Errors
    /// No metric, one asked for twice, diversity without a CLIP, a CLIP without use, a distance without `baseline`, or what this
    /// build cannot compute.
    pub fn check(&self, baseline: bool) -> Result<()> {
        let known: Vec<&str> = MetricName::all().map(MetricName::as_str).collect();
        if self.metrics.is_empty() {
            return Err(Error::usage("no metric to evaluate by").hint(format!("--metrics, of {}", known.join(", "))));
        }
        let twice = self.metrics.iter().enumerate().find(|(index, spec)| self.metrics[..*index].contains(spec));
        if let Some((_, spec)) = twice {
            return Err(Error::usage(format!("metric `{spec}` is named twice")));
        }
        let wants_clip = self.metrics.iter().find(|spec| spec.name.wants_clip());
        match (wants_clip, &self.clip) {
            (Some(spec), _) if self.embedding_clip().is_none() => {
                return Err(Error::usage(format!("metric `{spec}` needs a CLIP to measure with"))
                    .hint("--clip PATH, or a metric with a CLIP such as social-reward=PATH"));
            }
            (None, Some(_)) => {
                return Err(Error::usage("--clip is given, but no metric uses it")
                    .hint("`diversity`, `fid-clip` and `kid-clip` do"));
            }
            _ => {}
        }
        let distance = self.metrics.iter().find(|spec| matches!(spec.name, MetricName::SetDistance(_)));
        if let Some(spec) = distance.filter(|_| !baseline) {
            return Err(Error::usage(format!("metric `{spec}` needs another set")).hint("--baseline SET"));
        }
        let needs_torch = |spec: &&MetricSpec| {
            !matches!(spec.name, MetricName::Reward(RewardName::SocialReward) | MetricName::Diversity)
        };
        match self.metrics.iter().find(needs_torch).filter(|_| cfg!(not(feature = "torch"))) {
            Some(spec) => {
                Err(Error::usage(format!("metric `{}` needs libtorch, this is the portable build", spec.name.as_str()))
                    .hint("build with default features (`make setup`)"))
            }
            None => Ok(()),
        }
    }
}

/// An image to score for its prompt.
#[derive(Clone, Copy)]
struct Item<'a> {
    prompt: &'a str,
    image: &'a ImageSource,
    sha256: &'a str,
}

/// What every step of an evaluation needs.
struct Run<'a> {
    options: &'a Options,
    observer: &'a dyn Observer,
    stop: &'a AtomicBool,
}

/// One metric's scores.
#[derive(Debug, Clone)]
pub struct Column {
    /// What is measured.
    pub name: MetricName,
    /// The metric's name, with its path if the name alone is not unique.
    pub label: String,
    /// What the numbers are.
    pub convention: String,
    /// Of the weights; empty where there are none.
    pub checkpoint_sha256: String,
    /// A score for every row of every set.
    pub scores: Vec<Vec<Option<f64>>>,
}

/// Everything that was found.
pub struct Evaluation<'a> {
    /// The set, then the baseline.
    pub sets: Vec<&'a ImageSet>,
    /// SHA-256 of the image of every row of every set.
    pub hashes: Vec<Vec<String>>,
    /// The scores, by metric.
    pub columns: Vec<Column>,
    /// Rows of the set and of the baseline that belong together.
    pub pairs: Option<Pairs>,
    /// Scores that were not in the cache.
    pub computed: usize,
    /// The figures.
    pub summary: Summary,
}

/// Scores `set` and `baseline` by all metrics; scores that `cache` has are taken from it.
///
/// # Errors
/// What [`Options::check`] refuses, no pairs, weights or images that cannot be read, or `stop` was set.
pub fn evaluate<'a>(
    set: &'a ImageSet,
    baseline: Option<&'a ImageSet>,
    options: &Options,
    cache: &Cache,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Evaluation<'a>> {
    options.check(baseline.is_some())?;
    let run = Run { options, observer, stop };
    let pairs = baseline.map(|baseline| set.pairs(baseline)).transpose()?;
    if let Some(mismatch) = pairs.as_ref().and_then(|pairs| pairs.mismatch.as_deref()) {
        observer.event(&Event::Warning(&format!("{mismatch}; only pairs are compared")));
    }
    let sets: Vec<&ImageSet> = std::iter::once(set).chain(baseline).collect();
    let hashes = sets.iter().map(|set| row_hashes(set, &run)).collect::<Result<Vec<_>>>()?;
    let mut scorer = Scorer { run: &run, sets: &sets, hashes: &hashes, cache, clips: HashMap::new(), computed: 0 };
    let (mut columns, mut distances) = (Vec::new(), Vec::new());
    for spec in &options.metrics {
        match spec.name {
            MetricName::SetDistance(distance) => distances.push(scorer.distance(distance)?),
            _ => columns.extend(scorer.columns(spec)?),
        }
    }
    let computed = scorer.computed;
    let mut summary = summary(&sets, &columns, pairs.as_ref(), options.seed);
    summary.sets[0].metrics.extend(distances);
    Ok(Evaluation { sets, hashes, columns, pairs, computed, summary })
}

impl Evaluation<'_> {
    /// The rows of `scores.parquet`.
    pub fn rows(&self) -> Vec<ScoreRow> {
        let mut rows = Vec::new();
        for (place, set) in self.sets.iter().enumerate() {
            for (index, row) in set.rows.iter().enumerate() {
                rows.extend(self.columns.iter().map(|column| ScoreRow {
                    set: set.name.clone(),
                    prompt: set.prompt(row).to_owned(),
                    path: row.path.clone(),
                    seed: row.seed,
                    metric: column.label.clone(),
                    score: column.scores[place][index],
                    convention: column.convention.clone(),
                    image_sha256: self.hashes[place][index].clone(),
                    checkpoint_sha256: column.checkpoint_sha256.clone(),
                }));
            }
        }
        rows
    }

    /// What picking the best of n images of a prompt is worth, for each set, by a learned score; by others it means nothing.
    pub fn best_of(&self, column: &Column) -> Vec<Vec<f64>> {
        if !matches!(column.name, MetricName::Reward(_)) {
            return Vec::new();
        }
        let curve = |(set, scores): (&&ImageSet, &Vec<Option<f64>>)| {
            let scored = set.rows.iter().zip(scores).filter_map(|(row, score)| Some((set.prompt(row), (*score)?)));
            let (prompts, scores): (Vec<&str>, Vec<f64>) = scored.unzip();
            best_of(&prompts, &scores)
        };
        self.sets.iter().zip(&column.scores).map(curve).collect()
    }

    /// The pairs that have both scores by this metric; none without a baseline.
    pub fn scored_pairs(&self, column: &Column) -> Vec<Pair<'_>> {
        scored_pairs(&self.sets, column, self.pairs.as_ref())
    }
}

fn scored_pairs<'a>(sets: &[&'a ImageSet], column: &Column, pairs: Option<&Pairs>) -> Vec<Pair<'a>> {
    let pair = |&(row, other): &(usize, usize)| {
        let (score, baseline) = (column.scores[0][row]?, column.scores[1][other]?);
        Some(Pair { prompt: sets[0].prompt(&sets[0].rows[row]), score, baseline })
    };
    pairs.iter().flat_map(|pairs| &pairs.matched).filter_map(pair).collect()
}

fn summary(sets: &[&ImageSet], columns: &[Column], pairs: Option<&Pairs>, seed: u64) -> Summary {
    let of_set = |(place, set): (usize, &&ImageSet)| {
        let of_column = |column: &Column| {
            let scored = set.rows.iter().zip(&column.scores[place]);
            let scored: Vec<(&str, f64)> =
                scored.filter_map(|(row, score)| Some((set.prompt(row), (*score)?))).collect();
            let summary = MetricSummary::of(&scored, &column.convention, &column.checkpoint_sha256, seed);
            (column.label.clone(), summary)
        };
        SetSummary {
            name: set.name.clone(),
            n_images: set.rows.len(),
            n_prompts: set.prompts.len(),
            metrics: columns.iter().map(of_column).collect(),
        }
    };
    let comparisons = columns.iter().filter_map(|column| {
        let pairs = scored_pairs(sets, column, pairs);
        compare(&column.label, &pairs, seed)
    });
    Summary { sets: sets.iter().enumerate().map(of_set).collect(), comparisons: comparisons.collect() }
}

/// Turns a metric's name into scores.
struct Scorer<'a> {
    run: &'a Run<'a>,
    sets: &'a [&'a ImageSet],
    hashes: &'a [Vec<String>],
    cache: &'a Cache,
    clips: HashMap<String, SharedClip>,
    computed: usize,
}

impl<'a> Scorer<'a> {
    /// The columns a metric gives: one, but diversity has one within prompts and one over the set.
    fn columns(&mut self, spec: &MetricSpec) -> Result<Vec<Column>> {
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
            MetricName::Reward(RewardName::SocialReward) => {
                let clip = self.clip(path)?;
                let convention = format!("cosine of unit CLIP embeddings ({}), -1..1", clip.activation());
                let sha256 = clip.sha256.clone();
                let compute = |scorer: &mut Self, items: &[Item]| {
                    let run = scorer.run;
                    scorer.clip(path)?.scores(items, run)
                };
                Ok(vec![self.column(spec.name, label, convention, sha256, compute)?])
            }
        }
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
    fn distance(&mut self, distance: SetDistance) -> Result<(String, MetricSummary)> {
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
    fn distance(&mut self, distance: SetDistance) -> Result<(String, MetricSummary)> {
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

/// Hashes of the images of all rows; a file is read once.
fn row_hashes(set: &ImageSet, run: &Run) -> Result<Vec<String>> {
    let hash = |image: &ImageSource| match image {
        ImageSource::File(path) => sha256::of_file(path),
        ImageSource::Embedded(_) => Ok(sha256::of_bytes(&image.read()?)),
    };
    let workers = run.options.embed.workers;
    let hashes: Vec<String> = ordered(set.images.iter(), workers, 2 * workers, hash, |hashes| {
        hashes.map(|hash| interrupted(run.stop).and(hash)).collect::<Result<_>>()
    })?;
    Ok(set.rows.iter().map(|row| hashes[row.image as usize].clone()).collect())
}

/// Of the weights file; of several, of what `sha256sum` would print in their folder; of random weights, of name and seed.
fn checkpoint_sha256(name: &str, files: &[&Path], seed: u64) -> Result<String> {
    if let [file] = files {
        return sha256::of_file(file);
    }
    let mut listing = BTreeMap::new();
    for file in files {
        listing.insert(file.file_name().unwrap_or_default(), sha256::of_file(file)?);
    }
    let lines = listing.iter().map(|(name, sha256)| format!("{sha256}  {}\n", name.display()));
    let text = if files.is_empty() { format!("{name} seed {seed}") } else { lines.collect() };
    Ok(sha256::of_bytes(text.as_bytes()))
}
