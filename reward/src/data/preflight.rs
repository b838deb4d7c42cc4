//! The look at all data before any training. It checks that every image is there and is one, that no prompt is cut, and
//! that nothing of the training data is validated on.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::named::NAMED;
use super::source::ImageSource;
use super::triplets::{Triplet, Triplets};
use crate::{Error, Result};

/// How closely images are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Magic bytes and size.
    #[default]
    Headers,
    /// Every image is decoded.
    Full,
    /// Nothing is checked.
    Off,
}

/// What becomes of rows whose image cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadImage {
    /// The run stops before it begins.
    #[default]
    Stop,
    /// The rows are left out, with a warning.
    Skip,
}

/// What to check, and what to make of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How closely images are looked at.
    pub level: Level,
    /// What becomes of rows whose image cannot be read.
    pub on_bad_image: OnBadImage,
    /// Warnings are errors, except the one that `on_bad_image` asks for.
    pub strict: bool,
}

/// How much data there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Rows, each a triplet.
    pub rows: usize,
    /// Prompts that differ.
    pub distinct_prompts: usize,
    /// Images that differ by path or, where embedded, by content.
    pub distinct_images: usize,
}

/// One thing that is wrong, in one or many places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A line with the number of places.
    pub what: String,
    /// How many prompts or images it is about.
    pub count: usize,
    /// The first few places: file, row (counted from 0), and what is there.
    pub examples: Vec<String>,
}

/// What the preflight found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Size of the training data.
    pub training: Counts,
    /// Size of the validation data.
    pub validation: Option<Counts>,
    /// What a run must not start with.
    pub errors: Vec<Finding>,
    /// What a run can live with.
    pub warnings: Vec<Finding>,
    /// Indexes of training images that cannot be read, for [`Triplets::without`].
    pub bad_images: HashSet<u32>,
    /// Indexes of validation images that cannot be read.
    pub bad_validation_images: HashSet<u32>,
    /// The way out for the first image that cannot be read, where it has one.
    pub hint: Option<String>,
}

/// What a look at an image found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing wrong, as far as it went.
    Whole,
    /// The file ends too early, and is decoded as far as it goes.
    Truncated,
}

/// Checks all rows; images in parallel.
///
/// `check` looks at one image ([`check_header`], or a full decode); `truncated` says whether a prompt is longer than the
/// model reads and is called once per distinct prompt; `progress` gets the number of images done and of all, from any
/// thread.
pub fn preflight(
    train: &Triplets,
    validation: Option<&Triplets>,
    options: &Options,
    check: &(dyn Fn(&ImageSource) -> Result<Look> + Sync),
    truncated: &(dyn Fn(&str) -> bool + Sync),
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Report {
    let mut report = Report {
        training: counts(train),
        validation: validation.map(counts),
        errors: Vec::new(),
        warnings: Vec::new(),
        bad_images: HashSet::new(),
        bad_validation_images: HashSet::new(),
        hint: None,
    };
    if options.level == Level::Off {
        return report;
    }
    let total = train.images.len() + validation.map_or(0, |validation| validation.images.len());
    let done = AtomicUsize::new(0);
    let check = |image: &ImageSource| {
        let result = check(image);
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
        result
    };
    let mut warnings = Vec::new();
    for (name, triplets) in [("training", Some(train)), ("validation", validation)] {
        let Some(triplets) = triplets else { continue };
        let Looks { bad, cut } = looks(triplets, &check);
        let hits = Hits::new(triplets, |row| {
            [row.positive, row.negative].map(|image| bad.contains_key(&image).then_some(image))
        });
        let skip = options.on_bad_image == OnBadImage::Skip && hits.rows < triplets.rows.len();
        let what = format!("{} cannot be read, in {}", plural(bad.len(), "image"), plural(hits.rows, "row"));
        let what = if skip { format!("{what}, which are left out") } else { what };
        if skip { &mut report.warnings } else { &mut report.errors }
            .extend(hits.finding(name, what, |image| bad[&image].0.clone()));
        let first = bad.iter().min_by_key(|(image, _)| **image);
        report.hint = report.hint.or_else(|| first.and_then(|(_, (_, hint))| hint.clone()));
        warnings.extend(cut_images(name, triplets, &cut));
        warnings.extend(equal_images(name, triplets));
        warnings.extend(cut_prompts(name, triplets, truncated));
        let indexes = if name == "training" { &mut report.bad_images } else { &mut report.bad_validation_images };
        indexes.extend(bad.into_keys());
    }
    if let Some(validation) = validation {
        warnings.extend(shared_prompts(train, validation));
        warnings.extend(shared_images(train, validation));
    }
    if options.strict { &mut report.errors } else { &mut report.warnings }.extend(warnings);
    report
}

/// The check of [`Level::Headers`]. `probe` gets the start of the image, and all of it if that is not enough. A JPEG may hold a
/// long colour profile before its size.
pub fn check_header(image: &ImageSource, mut probe: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    const HEAD_BYTES: usize = 64 << 10;
    let head = image.read_head(HEAD_BYTES)?;
    match probe(&head) {
        Err(_) if head.len() == HEAD_BYTES => probe(&image.read()?),
        result => result,
    }
}

fn counts(triplets: &Triplets) -> Counts {
    Counts {
        rows: triplets.rows.len(),
        distinct_prompts: triplets.prompts.len(),
        distinct_images: triplets.images.len(),
    }
}

/// What is wrong with images, by their index.
struct Looks {
    /// Those that cannot be read, with the reason and the way out.
    bad: HashMap<u32, (String, Option<String>)>,
    /// Those that are truncated.
    cut: HashSet<u32>,
}

fn looks(triplets: &Triplets, check: &(dyn Fn(&ImageSource) -> Result<Look> + Sync)) -> Looks {
    let images = triplets.images.par_iter().enumerate();
    let found: Vec<(u32, Result<Look>)> = images
        .map(|(index, image)| (index as u32, check(image)))
        .filter(|(_, look)| !matches!(look, Ok(Look::Whole)))
        .collect();
    let mut looks = Looks { bad: HashMap::new(), cut: HashSet::new() };
    for (index, look) in found {
        let Err(error) = look else {
            looks.cut.insert(index);
            continue;
        };
        let (message, label) = (error.to_string(), triplets.images[index as usize].label());
        let message = if message.contains(&label) { message } else { format!("{label}: {message}") };
        looks.bad.insert(index, (message, error.hint_text().map(str::to_owned)));
    }
    looks
}

fn cut_images(name: &str, triplets: &Triplets, cut: &HashSet<u32>) -> Option<Finding> {
    let hits =
        Hits::new(triplets, |row| [row.positive, row.negative].map(|image| cut.contains(&image).then_some(image)));
    let images = plural(hits.distinct.len(), "truncated image");
    let what = format!("{images}, read as far as there is data, in {}", plural(hits.rows, "row"));
    hits.finding(name, what, |image| triplets.images[image as usize].label())
}

fn equal_images(name: &str, triplets: &Triplets) -> Option<Finding> {
    let hits = Hits::new(triplets, |row| [(row.positive == row.negative).then_some(row.positive), None]);
    let what = format!("{} whose positive image is also the negative one", plural(hits.rows, "row"));
    hits.finding(name, what, |image| triplets.images[image as usize].label())
}

fn cut_prompts(name: &str, triplets: &Triplets, truncated: &(dyn Fn(&str) -> bool + Sync)) -> Option<Finding> {
    let cut: Vec<bool> = triplets.prompts.par_iter().map(|prompt| truncated(prompt)).collect();
    let hits = Hits::new(triplets, |row| [cut[row.prompt as usize].then_some(row.prompt), None]);
    let prompts = plural(hits.distinct.len(), "prompt");
    let what = format!("{prompts} longer than the model reads, cut at the end, in {}", plural(hits.rows, "row"));
    hits.finding(name, what, |prompt| quoted(&triplets.prompts[prompt as usize]))
}

fn shared_prompts(train: &Triplets, validation: &Triplets) -> Option<Finding> {
    let known: HashSet<&String> = train.prompts.iter().collect();
    let shared: Vec<bool> = validation.prompts.iter().map(|prompt| known.contains(prompt)).collect();
    let hits = Hits::new(validation, |row| [shared[row.prompt as usize].then_some(row.prompt), None]);
    let what =
        format!("{} also in the training data, {}", plural(hits.distinct.len(), "prompt"), hits.share(validation));
    hits.finding("validation", what, |prompt| quoted(&validation.prompts[prompt as usize]))
}

fn shared_images(train: &Triplets, validation: &Triplets) -> Option<Finding> {
    let known: HashSet<blake3::Hash> = train.images.iter().map(ImageSource::identity).collect();
    let shared: Vec<bool> = validation.images.iter().map(|image| known.contains(&image.identity())).collect();
    let hits =
        Hits::new(validation, |row| [row.positive, row.negative].map(|image| shared[image as usize].then_some(image)));
    let what =
        format!("{} also in the training data, {}", plural(hits.distinct.len(), "image"), hits.share(validation));
    hits.finding("validation", what, |image| validation.images[image as usize].label())
}

/// The rows in which something was found.
struct Hits<'a> {
    triplets: &'a Triplets,
    /// The prompts or images that are concerned, each with its first row.
    distinct: Vec<(usize, u32)>,
    rows: usize,
}

impl<'a> Hits<'a> {
    /// `concerned` gives the prompts or images of a row that are concerned.
    fn new(triplets: &'a Triplets, concerned: impl Fn(&Triplet) -> [Option<u32>; 2]) -> Self {
        let (mut seen, mut distinct, mut rows) = (HashSet::new(), Vec::new(), 0);
        for (number, row) in triplets.rows.iter().enumerate() {
            let found = concerned(row);
            rows += usize::from(found != [None, None]);
            distinct
                .extend(found.into_iter().flatten().filter(|index| seen.insert(*index)).map(|index| (number, index)));
        }
        Self { triplets, distinct, rows }
    }

    fn share(&self, triplets: &Triplets) -> String {
        format!("in {} of {}", self.rows, plural(triplets.rows.len(), "row"))
    }

    fn finding(self, data: &str, what: String, text: impl Fn(u32) -> String) -> Option<Finding> {
        let example = |&(row, index): &(usize, u32)| {
            let (file, number) = self.triplets.origin(row);
            format!("{} row {number}: {}", file.display(), text(index))
        };
        (self.rows > 0).then(|| Finding {
            what: format!("{data} data: {what}"),
            count: self.distinct.len(),
            examples: self.distinct.iter().take(NAMED).map(example).collect(),
        })
    }
}

fn plural(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A prompt as one short line.
fn quoted(prompt: &str) -> String {
    const SHOWN: usize = 60;
    let more = if prompt.chars().count() > SHOWN { "…" } else { "" };
    format!("{:?}{more}", prompt.chars().take(SHOWN).collect::<String>())
}

impl Report {
    /// An error if there is anything that the run must not start with.
    ///
    /// # Errors
    ///
    /// Names the first finding and its first place; the others are in the report.
    pub fn verdict(&self) -> Result<()> {
        let Some(first) = self.errors.first() else { return Ok(()) };
        let place = first.examples.first().map_or(String::new(), |example| format!(", first {example}"));
        let others = match self.errors.len() - 1 {
            0 => String::new(),
            others => format!(" (and {})", plural(others, "other error")),
        };
        let error = Error::data(format!("preflight, {}{place}{others}", first.what));
        Err(if self.bad_images.is_empty() && self.bad_validation_images.is_empty() {
            error
        } else {
            const COMMON: &str = "relative paths start at the folder of the parquet file, or at --image-root; \
                                  --max-pixels raises the limit on their size";
            let first = self.hint.as_deref().unwrap_or(COMMON);
            error.hint(format!("{first}; --on-bad-image skip leaves out the rows of images that cannot be read"))
        })
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { rows, distinct_prompts, distinct_images } = *self;
        let (rows, prompts) = (plural(rows, "row"), plural(distinct_prompts, "distinct prompt"));
        write!(f, "{rows}, {prompts}, {}", plural(distinct_images, "distinct image"))
    }
}

/// A line for each data set, then one for each finding with its first places below it.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "training data: {}", self.training)?;
        if let Some(validation) = self.validation {
            write!(f, "\nvalidation data: {validation}")?;
        }
        let findings = self.errors.iter().map(|finding| ("problem", finding));
        for (kind, finding) in findings.chain(self.warnings.iter().map(|finding| ("warning", finding))) {
            write!(f, "\n{kind}: {} (rows count from 0)", finding.what)?;
            for example in &finding.examples {
                write!(f, "\n  {example}")?;
            }
            if finding.count > finding.examples.len() {
                write!(f, "\n  and {} more", finding.count - finding.examples.len())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
