//! `scores.parquet`: a row for every image and metric. It is also the cache: what is in it is not computed again.

use std::{collections::HashMap, path::Path, sync::Arc};

use arrow_array::{Array, cast::AsArray, types::Float64Type};
use parquet::{
    data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use crate::{
    Error, Result,
    data::columns::{Table, strings},
    weights::save::replace_file,
};

const SCHEMA: &str = "message scores {
    required binary set (STRING); required binary prompt (STRING); required binary path (STRING); required int64 seed;
    required binary metric (STRING); optional double score; required binary convention (STRING);
    required binary image_sha256 (STRING); required binary checkpoint_sha256 (STRING);
}";
/// The columns of the cache's keys, in the order of [`Key`].
const KEY_COLUMNS: [&str; 5] = ["prompt", "metric", "convention", "image_sha256", "checkpoint_sha256"];
const BATCH_ROWS: usize = 4096;

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
    pub seed: i64,
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

/// What a score depends on: prompt, metric, convention, image, checkpoint.
pub type Key = [String; 5];

/// What earlier runs computed.
#[derive(Debug, Default)]
pub struct Cache(HashMap<Key, f64>);

impl Cache {
    /// Reads `scores.parquet`; nothing is known where there is none, or where it is not ours or damaged.
    pub fn read(path: &Path) -> Self {
        if path.is_file() { Self::try_read(path).unwrap_or_default() } else { Self::default() }
    }

    fn try_read(path: &Path) -> Result<Self> {
        let table = Table::open(path)?;
        let mut columns = KEY_COLUMNS.to_vec();
        columns.push("score");
        for column in &columns {
            table.require(&[column])?;
        }
        let mut known = HashMap::new();
        for batch in table.batches(&columns, BATCH_ROWS)? {
            let batch = batch?;
            let keys = [0, 1, 2, 3, 4].map(|column| strings(path, &batch, KEY_COLUMNS[column]));
            let scores = batch["score"].as_primitive_opt::<Float64Type>();
            let ([Ok(a), Ok(b), Ok(c), Ok(d), Ok(e)], Some(scores)) = (&keys, scores) else {
                return Err(Error::data(format!("{}: not a table of scores", path.display())));
            };
            for row in (0..batch.num_rows()).filter(|row| scores.is_valid(*row)) {
                known.insert([a, b, c, d, e].map(|column| column.value(row).to_owned()), scores.value(row));
            }
        }
        Ok(Self(known))
    }

    /// The score, if it is known.
    pub fn get(&self, key: &Key) -> Option<f64> {
        self.0.get(key).copied()
    }
}

/// Writes the table.
///
/// # Errors
/// The disk is full or not writable.
pub fn write(path: &Path, rows: &[ScoreRow]) -> Result<()> {
    let bytes =
        encode(rows).map_err(|error| Error::data(format!("{}: cannot be written", path.display())).caused_by(error))?;
    replace_file(path, |partial| Ok(fs_err::write(partial, bytes)?))
}

fn encode(rows: &[ScoreRow]) -> Result<Vec<u8>, parquet::errors::ParquetError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut file = SerializedFileWriter::new(Vec::new(), schema.clone(), Arc::new(WriterProperties::default()))?;
    let mut group = file.next_row_group()?;
    for field in schema.get_fields() {
        // The schema has a column for each field.
        let Some(mut column) = group.next_column()? else { break };
        match field.name() {
            "seed" => {
                let values: Vec<i64> = rows.iter().map(|row| row.seed).collect();
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

    #[test]
    fn what_is_written_is_known_and_what_is_no_table_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.parquet");
        assert!(Cache::read(&path).0.is_empty());
        fs_err::write(&path, "no table").unwrap();
        assert!(Cache::read(&path).0.is_empty());
        let row = |image: &str, score| ScoreRow {
            set: "s".to_owned(),
            prompt: "a fox".to_owned(),
            path: "1.png".to_owned(),
            seed: -3,
            metric: "m".to_owned(),
            score,
            convention: "c".to_owned(),
            image_sha256: image.to_owned(),
            checkpoint_sha256: String::new(),
        };
        write(&path, &[row("x", Some(0.1)), row("y", None), row("z", Some(-2.0))]).unwrap();
        let cache = Cache::read(&path);
        let known = ["x", "y", "z"].map(|image| cache.get(&["a fox", "m", "c", image, ""].map(str::to_owned)));
        assert_eq!(known, [Some(0.1), None, Some(-2.0)]);
    }
}
