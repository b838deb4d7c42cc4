//! Judging sets of generated images: scores by several metrics, and one set against another.

pub(crate) mod clip;
mod diversity;
pub mod metric;
#[cfg(feature = "torch")]
mod pixels;
mod scorer;
pub mod scores;
pub mod summary;
mod tables;

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use self::{
    metric::{MetricName, MetricSpec},
    scorer::{Measured, Scorer},
    scores::Store,
    summary::Summary,
    tables::Tables,
};
use crate::{
    Error, Result,
    data::{
        image_set::{ImageSet, Pairs},
        image_sets::ImageSets,
        loader::ordered,
        source::ImageSource,
    },
    device::DeviceName,
    engine::EmbedOptions,
    error::interrupted,
    event::{Event, Observer},
    statistics::{best_of::best_of, comparison::Pair},
    weights::{OpenOptions, sha256},
    world::shard::Shard,
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
        let is_clip = |spec: &&MetricSpec| spec.name.is_clip();
        self.clip.as_deref().or_else(|| self.metrics.iter().find(is_clip)?.path.as_deref())
    }

    /// The metrics that look at one image at a time.
    pub fn image_by_image(&self) -> impl Iterator<Item = &MetricSpec> {
        self.metrics.iter().filter(|spec| !spec.name.wants_clip())
    }

    /// A short hash of what parts of one evaluation have in common: metrics, settings and rows.
    pub fn identity(&self, image_sets: &ImageSets) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(format!("{:?} {:?} {:?}", self.metrics, self.clip, self.open).as_bytes());
        for set in image_sets.judged.iter().chain(&image_sets.baseline) {
            hash.update(format!("\n{:?}", set.name).as_bytes());
            for row in &set.rows {
                hash.update(format!("{:?}{:?}", row.path, set.prompt(row)).as_bytes());
            }
        }
        hash.finalize().to_hex()[..12].to_owned()
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
        let stands_on_clip =
            self.metrics.iter().any(|spec| matches!(spec.name, MetricName::Reward(name) if name.needs_clip()));
        match (wants_clip, &self.clip) {
            (Some(spec), _) if self.embedding_clip().is_none() => {
                return Err(Error::usage(format!("metric `{spec}` needs a CLIP to measure with"))
                    .hint("--clip PATH, or a metric with a CLIP such as social-reward=PATH"));
            }
            (None, Some(_)) if !stands_on_clip => {
                return Err(Error::usage("--clip is given, but no metric uses it")
                    .hint("`diversity`, `fid-clip`, `kid-clip` and `aesthetic` do"));
            }
            _ => {}
        }
        if stands_on_clip && self.clip.is_none() {
            return Err(Error::usage("metric `aesthetic` needs the CLIP that its head stands on")
                .hint("--clip openai/clip-vit-large-patch14, or a file of it"));
        }
        let takes_activation = |spec: &MetricSpec| match spec.name {
            MetricName::Reward(name) => name.takes_activation(),
            name => name.wants_clip(),
        };
        if self.open.activation.is_some() && !self.metrics.iter().any(takes_activation) {
            return Err(Error::usage("--activation is given, but no metric uses it").hint(
                "it is for `social-reward`, `clip-score` and the CLIP of --clip; those of published rewards are known",
            ));
        }
        let distance = self.metrics.iter().find(|spec| matches!(spec.name, MetricName::SetDistance(_)));
        if let Some(spec) = distance.filter(|_| !baseline) {
            return Err(Error::usage(format!("metric `{spec}` needs another set")).hint("--baseline SET"));
        }
        let needs_torch = |spec: &&MetricSpec| !spec.name.is_clip() && spec.name != MetricName::Diversity;
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
    /// SHA-256 of the images that were found cut off.
    truncated: Mutex<HashSet<String>>,
}

impl Run<'_> {
    fn truncated(&self) -> MutexGuard<'_, HashSet<String>> {
        self.truncated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One metric's scores.
#[derive(Debug, Clone)]
pub struct Column {
    /// What is measured.
    pub name: MetricName,
    /// The metric's name, with its path if the name alone is not unique.
    pub label: String,
    /// What the numbers are, for every set.
    pub conventions: Vec<String>,
    /// SHA-256 of the weights; empty for a metric without any.
    pub checkpoint_sha256: String,
    /// A score for every row of every set.
    pub scores: Vec<Vec<Option<f64>>>,
}

/// Everything that was found.
pub struct Evaluation<'a> {
    /// The sets that are judged, then the baseline.
    pub sets: Vec<&'a ImageSet>,
    /// How many of them are judged.
    pub judged: usize,
    /// SHA-256 of the image of every row of every set.
    pub hashes: Vec<Vec<String>>,
    /// The scores, by metric.
    pub columns: Vec<Column>,
    /// Rows of each judged set and of the baseline that belong together; empty without a baseline.
    pub pairs: Vec<Pairs>,
    /// Scores that were not in the table.
    pub computed: usize,
    /// The figures.
    pub summary: Summary,
}

/// Scores all sets by all metrics, and compares each with the baseline. Scores that `store` has are taken from it; it is written
/// after each metric, and with what is known when something fails.
///
/// # Errors
/// What [`Options::check`] refuses, no pairs, weights or images that cannot be read, or `stop` was set.
pub fn evaluate<'a>(
    image_sets: &'a ImageSets,
    options: &Options,
    store: &mut Store,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Evaluation<'a>> {
    let ImageSets { judged, baseline, label, .. } = image_sets;
    options.check(baseline.is_some())?;
    let run = Run { options, observer, stop, truncated: Mutex::default() };
    let pairs_of = |baseline: &ImageSet| judged.iter().map(|set| set.pairs(baseline)).collect::<Result<Vec<_>>>();
    let pairs = baseline.as_ref().map_or(Ok(Vec::new()), pairs_of)?;
    for mismatch in pairs.iter().filter_map(|pairs| pairs.mismatch.as_deref()) {
        observer.event(&Event::Warning(&format!("{mismatch}; only pairs are compared")));
    }
    let sets: Vec<&ImageSet> = judged.iter().chain(baseline).collect();
    sets.iter().flat_map(|set| &set.notes).for_each(|note| observer.event(&Event::Warning(note)));
    let hashes = hashes(&sets, &run)?;
    let ((columns, distances), computed) = measure(&sets, &hashes, &options.metrics, store, &run)?;
    store.write()?;
    let tables = Tables { sets: &sets, judged: judged.len(), columns: &columns, pairs: &pairs, seed: options.seed };
    let mut summary = tables.summary(label.as_deref());
    for (set, distances) in summary.sets.iter_mut().zip(distances) {
        set.metrics.extend(distances);
    }
    Ok(Evaluation { judged: judged.len(), sets, hashes, columns, pairs, computed, summary })
}

/// Scores `shard` of all sets image by image into `store`, which is of that part; what needs all images at once is left. Gives how
/// many scores are new.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_part(
    image_sets: &ImageSets,
    shard: Shard,
    options: &Options,
    store: &mut Store,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<usize> {
    let ImageSets { judged, baseline, .. } = image_sets;
    options.check(baseline.is_some())?;
    let metrics: Vec<MetricSpec> = options.image_by_image().cloned().collect();
    let run = Run { options, observer, stop, truncated: Mutex::default() };
    let sets: Vec<&ImageSet> = judged.iter().chain(baseline).collect();
    // As one row of images, so that many small sets are shared too.
    let own = shard.of_batches(sets.iter().map(|set| set.rows.len()).sum(), options.embed.batch_size);
    let mut start = 0;
    let part = |set: &&ImageSet| {
        let (first, count) = (start, set.rows.len());
        start += count;
        let within = |bound: usize| bound.clamp(first, first + count) - first;
        set.of_rows(within(own.start)..within(own.end))
    };
    let sets: Vec<ImageSet> = sets.iter().map(part).collect();
    let sets: Vec<&ImageSet> = sets.iter().collect();
    let hashes = hashes(&sets, &run)?;
    Ok(measure(&sets, &hashes, &metrics, store, &run)?.1)
}

/// Measures the images of `sets` by `metrics`, and counts the scores that are new. On an error, says what is kept.
fn measure(
    sets: &[&ImageSet],
    hashes: &[Vec<String>],
    metrics: &[MetricSpec],
    store: &mut Store,
    run: &Run,
) -> Result<(Measured, usize)> {
    let mut scorer = Scorer { run, sets, hashes, store, clips: HashMap::new(), computed: 0 };
    let measured = scorer.measure(metrics);
    let computed = scorer.computed;
    if measured.is_err() && computed > 0 {
        let kept =
            format!("{computed} new scores are kept in {}: the next run goes on from them", store.path().display());
        run.observer.event(&Event::Note(&kept));
    }
    Ok((measured?, computed))
}

impl Evaluation<'_> {
    /// The place of the set that is shown image by image: the last that is judged.
    pub fn last(&self) -> usize {
        self.judged - 1
    }

    /// The name of the last judged set, as far as others have to be told from it: `set` if it is the only one.
    pub fn shown_name(&self) -> &str {
        if self.judged > 1 { &self.sets[self.last()].name } else { "set" }
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

    /// The pairs of the last set that have both scores by this metric; none without a baseline.
    pub fn scored_pairs(&self, column: &Column) -> Vec<Pair<'_>> {
        let Self { sets, pairs, .. } = self;
        pairs.last().map_or(Vec::new(), |pairs| scored_pairs(sets, self.last(), column, &pairs.matched))
    }
}

/// Those of `matched` rows of set `place` and of the baseline, the last set, that have both scores.
fn scored_pairs<'a>(sets: &[&'a ImageSet], place: usize, column: &Column, matched: &[(usize, usize)]) -> Vec<Pair<'a>> {
    let pair = |&(row, other): &(usize, usize)| {
        let (score, baseline) = (column.scores[place][row]?, column.scores[sets.len() - 1][other]?);
        Some(Pair { prompt: sets[place].prompt(&sets[place].rows[row]), score, baseline })
    };
    matched.iter().filter_map(pair).collect()
}

/// Hashes of the images of the rows of each set.
fn hashes(sets: &[&ImageSet], run: &Run) -> Result<Vec<Vec<String>>> {
    sets.iter().map(|set| row_hashes(set, run)).collect()
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
