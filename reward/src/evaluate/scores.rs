//! `scores.parquet`: a row for every image and metric. It is also the cache: what is in it is not computed again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{Array, cast::AsArray, types::Float64Type};
use parquet::{
    data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use crate::{
    Error, Result,
    data::columns::{Table, strings, whole_numbers},
    seed,
    weights::save::replace_file,
};

const SCHEMA: &str = "message scores {
    required binary set (STRING); required binary prompt (STRING); required binary path (STRING); required int64 seed;
    required binary metric (STRING); optional double score; required binary convention (STRING);
    required binary image_sha256 (STRING); required binary checkpoint_sha256 (STRING);
}";
const TEXT_COLUMNS: [&str; 7] = ["set", "prompt", "path", "metric", "convention", "image_sha256", "checkpoint_sha256"];
const BATCH_ROWS: usize = 4096;
const DISTANCES: &str = "set-distances.json";

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
    /// Of the image file.
    pub image_sha256: String,
    /// Of the weights; empty where there are none.
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

/// The table: rows of this run, and of earlier runs those that this one has no other row for.
#[derive(Debug, Default)]
pub struct Store {
    path: PathBuf,
    earlier: Vec<ScoreRow>,
    known: HashMap<Key, Option<f64>>,
    /// The rows of this run.
    pub rows: Vec<ScoreRow>,
    /// Distances of sets, which no image has a share of, by what they depend on: `set-distances.json` beside the table.
    pub distances: BTreeMap<String, f64>,
}

impl Store {
    /// Reads `scores.parquet`; nothing is known where there is none, or where it is not ours or damaged.
    pub fn open(path: &Path) -> Self {
        let earlier = if path.is_file() { read(path).unwrap_or_default() } else { Vec::new() };
        let known = earlier.iter().map(|row| (row.key(), row.score)).collect();
        let distances = fs_err::read(path.with_file_name(DISTANCES)).ok();
        let distances = distances.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path: path.to_owned(), earlier, known, rows: Vec::new(), distances }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The score, or that there is none, if it is known.
    pub fn get(&self, key: &Key) -> Option<Option<f64>> {
        self.known.get(key).copied()
    }

    /// Writes the table.
    ///
    /// # Errors
    /// The disk is full or not writable.
    pub fn write(&self) -> Result<()> {
        let keys: HashSet<Key> = self.rows.iter().map(ScoreRow::key).collect();
        let places: HashSet<_> = self.rows.iter().map(ScoreRow::place).collect();
        let kept = self.earlier.iter().filter(|row| !keys.contains(&row.key()) && !places.contains(&row.place()));
        let rows: Vec<&ScoreRow> = self.rows.iter().chain(kept).collect();
        let bytes = encode(&rows)
            .map_err(|error| Error::data(format!("{}: cannot be written", self.path.display())).caused_by(error))?;
        replace_file(&self.path, |partial| Ok(fs_err::write(partial, bytes)?))?;
        if self.distances.is_empty() {
            return Ok(());
        }
        let text = format!("{:#}\n", serde_json::json!(self.distances));
        replace_file(&self.path.with_file_name(DISTANCES), |partial| Ok(fs_err::write(partial, text)?))
    }
}

fn read(path: &Path) -> Result<Vec<ScoreRow>> {
    let table = Table::open(path)?;
    let columns: Vec<&str> = TEXT_COLUMNS.into_iter().chain(["seed", "score"]).collect();
    for column in &columns {
        table.require(&[column])?;
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

fn encode(rows: &[&ScoreRow]) -> Result<Vec<u8>, parquet::errors::ParquetError> {
    let unsigned = seed::parquet_annotation(rows.iter().map(|row| row.seed));
    let schema = SCHEMA.replace("int64 seed", &format!("int64 seed{unsigned}"));
    let schema = Arc::new(parse_message_type(&schema)?);
    let mut file = SerializedFileWriter::new(Vec::new(), schema.clone(), Arc::new(WriterProperties::default()))?;
    let mut group = file.next_row_group()?;
    for field in schema.get_fields() {
        // The schema has a column for each field.
        let Some(mut column) = group.next_column()? else { break };
        match field.name() {
            "seed" => {
                let values: Vec<i64> = rows.iter().map(|row| row.seed as i64).collect();
                column.typed::<Int64Type>().write_batch(&values, None, None)?
            }
            "score" => {
                let values: Vec<f64> = rows.iter().filter_map(|row| row.score).collect();
                let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.score.is_some())).collect();
                column.typed::<DoubleType>().write_batch(&values, Some(&levels), None)?
            }
            name => {
                let values: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(text(row, name))).collect();
                column.typed::<ByteArrayType>().write_batch(&values, None, None)?
            }
        };
        column.close()?;
    }
    group.close()?;
    file.into_inner()
}

fn text<'a>(row: &'a ScoreRow, column: &str) -> &'a str {
    match column {
        "set" => &row.set,
        "prompt" => &row.prompt,
        "path" => &row.path,
        "metric" => &row.metric,
        "convention" => &row.convention,
        "image_sha256" => &row.image_sha256,
        _ => &row.checkpoint_sha256,
    }
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
    fn what_is_written_is_known_and_what_is_no_table_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.parquet");
        let mut store = Store::open(&path);
        fs_err::write(&path, "no table").unwrap();
        assert!(Store::open(&path).known.is_empty());
        store.rows = vec![row("x", "m=PATH", Some(0.1)), row("y", "m", None), row("z", "m", Some(-2.0))];
        store.write().unwrap();
        let read = Store::open(&path);
        assert_eq!(read.earlier, store.rows);
        let known = ["x", "y", "z", "none"].map(|image| read.get(&key(image)));
        assert_eq!(known, [Some(Some(0.1)), Some(None), Some(Some(-2.0)), None]);
    }

    #[test]
    fn rows_of_earlier_runs_stay_unless_this_run_has_their_like() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.parquet");
        let mut first = Store::open(&path);
        let replaced = ScoreRow { image_sha256: "older picture".to_owned(), ..row("y", "m", Some(2.0)) };
        let renamed = ScoreRow { set: "other name".to_owned(), ..row("x", "m", Some(1.0)) };
        first.rows = vec![renamed, replaced, row("x", "another", Some(3.0)), row("z", "m", Some(4.0))];
        first.write().unwrap();
        let mut second = Store::open(&path);
        second.rows = vec![row("x", "m", Some(1.0)), row("y", "m", Some(5.0))];
        second.write().unwrap();
        let kept = [row("x", "another", Some(3.0)), row("z", "m", Some(4.0))];
        assert_eq!(Store::open(&path).earlier, [&second.rows[..], &kept].concat());
    }
}
