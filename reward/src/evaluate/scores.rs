//! `scores.parquet`: a row for every image and metric. It is also the cache: what is in it is not computed again. Evaluations at the same time add to one table. Those that share the images of one have a part each in `scores.parquet.parts/`, until all
//! are there.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use arrow_array::{Array, cast::AsArray, types::Float64Type};

use crate::{
    Error, Result,
    data::{
        columns::{Table, strings, whole_numbers},
        parquet_writer::{self, Column},
    },
    files::{folder_of, followed, replace_file},
    world::shard::Shard,
};

const TEXT_COLUMNS: [&str; 7] = ["set", "prompt", "path", "metric", "convention", "image_sha256", "checkpoint_sha256"];
const BATCH_ROWS: usize = 4096;
const DISTANCES: &str = "set-distances.json";
/// Ending of a part that is not finished.
const PART: &str = "part";
/// Ending of a finished part.
const DONE: &str = "done";
/// Held by the process that puts parts together.
const LOCK: &str = "joining.lock";

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRow {
    /// Name of the image set.
    pub set: String,
    /// What the image was made for.
    pub prompt: String,
    /// As the image set spells it.
    pub path: String,
    /// What it was made from.
    pub seed: u64,
    /// Label of the metric.
    pub metric: String,
    /// Absent where the metric has none for this image.
    pub score: Option<f64>,
    /// What the number is.
    pub convention: String,
    /// SHA-256 of the image file.
    pub image_sha256: String,
    /// SHA-256 of the weights; empty for a metric without any.
    pub checkpoint_sha256: String,
}

/// What a score depends on: prompt, metric without its path, convention, image, checkpoint.
pub type Key = [String; 5];

impl ScoreRow {
    fn key(&self) -> Key {
        let metric = metric_name(&self.metric);
        [&self.prompt, metric, &self.convention, &self.image_sha256, &self.checkpoint_sha256].map(str::to_owned)
    }

    /// What it is the score of, whatever the image and the set looked like then.
    fn place(&self) -> (&str, &str, &str, u64, &str, &str) {
        let Self { set, prompt, path, seed, metric, checkpoint_sha256, .. } = self;
        (set, prompt, path, *seed, metric_name(metric), checkpoint_sha256)
    }
}

/// A label less the path that tells metrics of one name apart.
fn metric_name(label: &str) -> &str {
    label.split('=').next().unwrap_or(label)
}

/// The table: rows of this run, and of others those that this one has no other row for.
#[derive(Debug, Default)]
pub struct Store {
    path: PathBuf,
    others: Vec<ScoreRow>,
    /// Rows of parts, and the files that they are from.
    of_parts: Vec<ScoreRow>,
    parts: Vec<(PathBuf, Option<Stamp>)>,
    known: HashMap<Key, Option<f64>>,
    /// Which file `others` are from.
    read: Option<Stamp>,
    /// Whether this is a part, which no other process writes.
    is_part: bool,
    /// The rows of this run.
    pub rows: Vec<ScoreRow>,
    /// Distances of sets, which no image has a share of, by what they depend on: `set-distances.json` beside the table.
    pub distances: BTreeMap<String, f64>,
}

/// What tells a file from the one that replaces it: inode, size, time of change in seconds and nanoseconds.
type Stamp = [u64; 4];

impl Store {
    /// Reads `scores.parquet`; nothing is known where there is none.
    ///
    /// # Errors
    /// What is there is not a table of scores, or `set-distances.json` beside it is something else: neither is written over.
    pub fn open(path: &Path) -> Result<Self> {
        let mut store = Self { path: path.to_owned(), ..Self::default() };
        // Before the table: whoever joins parts writes the table before they go.
        let parts = parts_folder(&followed(path)?);
        for part in in_folder(&parts, |name| name.ends_with(PART) || name.ends_with(DONE))? {
            let read_at = stamp(&part)?;
            // One that is being finished has another name now, and one that is damaged is computed again.
            store.of_parts.extend(read(&part).unwrap_or_default());
            store.parts.push((part, read_at));
        }
        store.read_others()?;
        let rows = store.others.iter().chain(&store.of_parts);
        store.known = rows.map(|row| (row.key(), row.score)).collect();
        store.distances = read_distances(&path.with_file_name(DISTANCES))?;
        Ok(store)
    }

    /// The table of a part of the images beside the one at `path`, with all that is known there and in the other parts. `identity`
    /// names the evaluation that it is a part of.
    ///
    /// # Errors
    /// As [`Self::open`], or the folder of parts cannot be made.
    pub fn open_part(path: &Path, shard: Shard, identity: &str) -> Result<Self> {
        let known = Self::open(path)?.known;
        let folder = parts_folder(&followed(path)?);
        fs_err::create_dir_all(&folder)?;
        let own = folder.join(format!("{identity}-{:05}-of-{:05}.{PART}", shard.index, shard.count));
        if own.with_extension(DONE).exists() {
            // It has to be finished again.
            fs_err::rename(own.with_extension(DONE), &own)?;
        }
        let mut store = Self { path: own, known, is_part: true, ..Self::default() };
        store.read_others()?;
        Ok(store)
    }

    /// Writes this part as a finished one. If all `count` parts of the evaluation `identity` are finished, this process puts them together, as long as it holds what it is given.
    ///
    /// # Errors
    /// The disk is full or not writable.
    pub fn finish_part(mut self, count: usize, identity: &str) -> Result<Option<fs_err::File>> {
        self.write()?;
        let done = self.path.with_extension(DONE);
        fs_err::rename(&self.path, &done)?;
        let place = folder_of(&done);
        let is_done = |name: &str| name.starts_with(identity) && name.ends_with(&format!("-of-{count:05}.{DONE}"));
        let all = || -> Result<bool> { Ok(in_folder(place, is_done)?.len() == count) };
        if !all()? {
            return Ok(None);
        }
        // Of two that end at the same time one waits, and then finds no parts any more. Without locks, both write the same.
        let lock = match fs_err::File::create(place.join(LOCK)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            lock => lock?,
        };
        lock.file().lock().ok();
        Ok(all()?.then_some(lock))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The score, or that there is none, if it is known.
    pub fn get(&self, key: &Key) -> Option<Option<f64>> {
        self.known.get(key).copied()
    }

    /// Writes the table, with what another evaluation has put there meanwhile.
    ///
    /// # Errors
    /// The disk is full or not writable, or what is there is no table of scores any more.
    pub fn write(&mut self) -> Result<()> {
        if self.is_part {
            // It goes where an evaluation of the whole has taken the part up.
            fs_err::create_dir_all(folder_of(&self.path))?;
        }
        // The folder's own lock leaves no file behind. A file system without locks has none: then the last one stays.
        let folder = fs_err::File::open(folder_of(&followed(&self.path)?)).ok().filter(|_| !self.is_part);
        if let Some(folder) = &folder {
            folder.file().lock().ok();
        }
        self.read_others()?;
        let keys: HashSet<Key> = self.rows.iter().map(ScoreRow::key).collect();
        let places: HashSet<_> = self.rows.iter().map(ScoreRow::place).collect();
        let mut seen = HashSet::new();
        let kept = self.others.iter().chain(&self.of_parts).filter(|row| {
            let is_ours = keys.contains(&row.key()) || places.contains(&row.place());
            !is_ours && seen.insert((row.key(), row.place()))
        });
        let rows: Vec<&ScoreRow> = self.rows.iter().chain(kept).collect();
        parquet_writer::write(&self.path, &columns(&rows))?;
        self.read = stamp(&self.path)?;
        self.remove_parts()?;
        if self.distances.is_empty() {
            return Ok(());
        }
        let place = self.path.with_file_name(DISTANCES);
        let mut distances = read_distances(&place)?;
        distances.extend(self.distances.iter().map(|(key, distance)| (key.clone(), *distance)));
        let text = format!("{:#}\n", serde_json::json!(distances));
        replace_file(&place, |partial| Ok(fs_err::write(partial, text)?))
    }

    /// Removes the parts whose rows are in the table now, and their folder with the last of them.
    fn remove_parts(&mut self) -> Result<()> {
        for (part, read_at) in std::mem::take(&mut self.parts) {
            if read_at.is_some() && stamp(&part)? == read_at {
                fs_err::remove_file(&part).ok();
            }
            let place = folder_of(&part);
            // The lock alone is left when the last part goes.
            if in_folder(place, |name| name != LOCK).is_ok_and(|others| others.is_empty()) {
                fs_err::remove_file(place.join(LOCK)).ok();
                fs_err::remove_dir(place).ok();
            }
        }
        self.others.append(&mut self.of_parts);
        Ok(())
    }

    /// Reads the table again if it is another file than before.
    fn read_others(&mut self) -> Result<()> {
        let stamp = stamp(&self.path)?;
        if stamp.is_some() && stamp != self.read {
            self.others = read(&self.path).map_err(|error| {
                let why = error.to_string().replace(&self.path.display().to_string(), "it");
                Error::data(format!(
                    "{} is no table that evaluate wrote, and stays as it is: {why}",
                    self.path.display()
                ))
                .hint("--output DIR writes the scores into another folder; or move the file away")
            })?;
            self.read = stamp;
        }
        Ok(())
    }
}

/// Where the parts of the table at `path` lie.
fn parts_folder(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.parts"))
}

/// The files in a folder whose names are wanted, by name; none where there is no folder.
fn in_folder(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if folder.is_dir() {
        for entry in fs_err::read_dir(folder)? {
            let entry = entry?;
            if wanted(&entry.file_name().to_string_lossy()) {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Nothing where there is no file. A link that leads nowhere is named here, before anything is computed.
fn stamp(path: &Path) -> Result<Option<Stamp>> {
    let found = fs_err::metadata(followed(path)?).ok();
    Ok(found.map(|found| [found.ino(), found.size(), found.mtime() as u64, found.mtime_nsec() as u64]))
}

/// The distances of sets in this file; none where there is none.
fn read_distances(path: &Path) -> Result<BTreeMap<String, f64>> {
    if !followed(path)?.exists() {
        return Ok(BTreeMap::new());
    }
    let parsed: Option<BTreeMap<String, Option<f64>>> = serde_json::from_slice(&fs_err::read(path)?).ok();
    let ours = parsed.filter(|distances| distances.keys().all(|key| key.contains(", images ")));
    let distances = ours.ok_or_else(|| {
        Error::data(format!("{} is not what evaluate wrote, and stays as it is", path.display()))
            .hint("--output DIR writes the distances into another folder; or move the file away")
    })?;
    Ok(distances.into_iter().filter_map(|(key, distance)| Some((key, distance?))).collect())
}

fn read(path: &Path) -> Result<Vec<ScoreRow>> {
    let table = Table::open(path)?;
    let columns: Vec<&str> = TEXT_COLUMNS.into_iter().chain(["seed", "score"]).collect();
    // With a column more it is somebody's work on our table, which would be lost.
    let names = table.names();
    if names.len() != columns.len() || columns.iter().any(|column| !names.iter().any(|name| name == column)) {
        return Err(Error::data(format!("it has the columns {}", names.join(", "))));
    }
    let mut rows = Vec::new();
    for batch in table.batches(&columns, BATCH_ROWS)? {
        let batch = batch?;
        let [set, prompt, path_column, metric, convention, image, checkpoint] =
            TEXT_COLUMNS.map(|column| strings(path, &batch, column));
        let (set, prompt, path_column, metric) = (set?, prompt?, path_column?, metric?);
        let (convention, image, checkpoint) = (convention?, image?, checkpoint?);
        let seeds = whole_numbers(path, &batch, "seed", 0)?;
        let Some(scores) = batch["score"].as_primitive_opt::<Float64Type>() else {
            return Err(Error::data(format!("{}: not a table of scores", path.display())));
        };
        rows.extend((0..batch.num_rows()).map(|row| ScoreRow {
            set: set.value(row).to_owned(),
            prompt: prompt.value(row).to_owned(),
            path: path_column.value(row).to_owned(),
            seed: seeds.get(row).unwrap_or_default(),
            metric: metric.value(row).to_owned(),
            score: scores.is_valid(row).then(|| scores.value(row)),
            convention: convention.value(row).to_owned(),
            image_sha256: image.value(row).to_owned(),
            checkpoint_sha256: checkpoint.value(row).to_owned(),
        }));
    }
    Ok(rows)
}

fn columns(rows: &[&ScoreRow]) -> Vec<(&'static str, Column)> {
    let text = |value: fn(&ScoreRow) -> &String| Column::Text(rows.iter().map(|row| value(row).clone()).collect());
    vec![
        ("set", text(|row| &row.set)),
        ("prompt", text(|row| &row.prompt)),
        ("path", text(|row| &row.path)),
        ("seed", Column::Seeds(rows.iter().map(|row| row.seed).collect())),
        ("metric", text(|row| &row.metric)),
        ("score", Column::Optional(rows.iter().map(|row| row.score).collect())),
        ("convention", text(|row| &row.convention)),
        ("image_sha256", text(|row| &row.image_sha256)),
        ("checkpoint_sha256", text(|row| &row.checkpoint_sha256)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(image: &str, metric: &str, score: Option<f64>) -> ScoreRow {
        ScoreRow {
            set: "s".to_owned(),
            prompt: "a fox".to_owned(),
            path: format!("{image}.png"),
            seed: u64::MAX - 2,
            metric: metric.to_owned(),
            score,
            convention: "c".to_owned(),
            image_sha256: image.to_owned(),
            checkpoint_sha256: String::new(),
        }
    }

    fn key(image: &str) -> Key {
        ["a fox", "m", "c", image, ""].map(str::to_owned)
    }

    #[test]
    fn what_is_written_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.parquet");
        let mut store = Store::open(&path).unwrap();
        store.rows = vec![row("x", "m=PATH", Some(0.1)), row("y", "m", None), row("z", "m", Some(-2.0))];
        store.write().unwrap();
        let read = Store::open(&path).unwrap();
        assert_eq!(read.others, store.rows);
        let known = ["x", "y", "z", "none"].map(|image| read.get(&key(image)));
        assert_eq!(known, [Some(Some(0.1)), Some(None), Some(Some(-2.0)), None]);
    }

    #[test]
    fn rows_of_earlier_runs_stay_unless_this_run_has_their_like() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.parquet");
        let mut first = Store::open(&path).unwrap();
        let replaced = ScoreRow { image_sha256: "older picture".to_owned(), ..row("y", "m", Some(2.0)) };
        let renamed = ScoreRow { set: "other name".to_owned(), ..row("x", "m", Some(1.0)) };
        first.rows = vec![renamed, replaced, row("x", "another", Some(3.0)), row("z", "m", Some(4.0))];
        first.write().unwrap();
        let mut second = Store::open(&path).unwrap();
        second.rows = vec![row("x", "m", Some(1.0)), row("y", "m", Some(5.0))];
        second.write().unwrap();
        let kept = [row("x", "another", Some(3.0)), row("z", "m", Some(4.0))];
        assert_eq!(Store::open(&path).unwrap().others, [&second.rows[..], &kept].concat());
    }

    /// The table of `score`, of a user, of a user who added a column to ours, and no table at all.
    #[test]
    fn what_is_not_ours_stays_and_the_way_out_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.parquet");
        let refused = || {
            let error = Store::open(&path).unwrap_err();
            assert!(error.hint_text().unwrap().starts_with("--output DIR"), "{error}");
            error.to_string().replace(&format!("{}/", folder.path().display()), "")
        };
        let own = |name: &str| std::iter::once(name).chain(TEXT_COLUMNS).map(str::to_owned).collect::<Vec<_>>();
        for columns in [vec!["path".to_owned(), "score".to_owned()], own("seed")] {
            let empty = columns.iter().map(|name| (name.as_str(), Column::Text(Vec::new()))).collect::<Vec<_>>();
            parquet_writer::write(&path, &empty).unwrap();
            let bytes = fs_err::read(&path).unwrap();
            let columns = columns.join(", ");
            let wanted = format!(
                "scores.parquet is no table that evaluate wrote, and stays as it is: it has the columns {columns}"
            );
            assert_eq!(refused(), wanted);
            assert_eq!(fs_err::read(&path).unwrap(), bytes);
        }
        fs_err::write(&path, "no table").unwrap();
        assert!(refused().starts_with("scores.parquet is no table that evaluate wrote, and stays as it is: it is "));
        fs_err::remove_file(&path).unwrap();
        // Also where it has come after this run began.
        let mut store = Store::open(&path).unwrap();
        fs_err::write(&path, "no table").unwrap();
        store.rows = vec![row("x", "m", Some(1.0))];
        store.write().unwrap_err();
        assert_eq!(fs_err::read(&path).unwrap(), b"no table");
        fs_err::remove_file(&path).unwrap();
        fs_err::write(folder.path().join(DISTANCES), r#"{"berlin": 7}"#).unwrap();
        assert_eq!(refused(), "set-distances.json is not what evaluate wrote, and stays as it is");
    }

    #[test]
    fn evaluations_at_the_same_time_keep_each_others_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.parquet");
        std::thread::scope(|scope| {
            for metric in ["a", "b", "c", "d"] {
                let path = &path;
                scope.spawn(move || {
                    let mut store = Store::open(path).unwrap();
                    for image in 0..5 {
                        store.rows.push(row(&image.to_string(), metric, Some(1.0)));
                        store.distances.insert(format!("{metric}, images {image}"), 1.0);
                        store.write().unwrap();
                    }
                });
            }
        });
        let all = Store::open(&path).unwrap();
        assert_eq!((all.others.len(), all.distances.len()), (20, 20));
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    }
}
