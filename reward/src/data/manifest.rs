//! Images to score, each with its prompt: a table in parquet, CSV or JSON lines.

use std::path::Path;

use arrow_array::Array;
use serde_json::{Map, Value};

use super::columns::{NullRows, Table, labels, missing_column, strings, whole_numbers};
use super::distinct::{DistinctImages, DistinctStrings};
use super::source::{ImageSource, not_opened};
use crate::{Error, Result};

/// Rows of a parquet manifest held at a time.
const BATCH_ROWS: usize = 4096;

/// The rows of a manifest; equal prompts and images are held once.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The distinct prompts, in order of their first row.
    pub prompts: Vec<String>,
    /// The distinct images, by resolved path, in order of their first row.
    pub images: Vec<ImageSource>,
    /// The rows, in the order of the file.
    pub rows: Vec<ManifestRow>,
    /// What each row is in the column that was asked for; empty if none was.
    pub labels: Vec<String>,
}

/// One image and the prompt to score it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRow {
    /// Index into [`Manifest::prompts`].
    pub prompt: u32,
    /// Index into [`Manifest::images`].
    pub image: u32,
    /// The path as the manifest spells it.
    pub path: String,
    /// The seed the image was made from, if it was asked for and the manifest has a column `seed`.
    pub seed: Option<i64>,
}

impl Manifest {
    /// Reads a manifest with the columns `prompt` and `path`; its extension says what it is: `parquet`, `csv` or
    /// `jsonl`. Relative image paths start at the manifest's own folder. Other columns are ignored.
    ///
    /// # Errors
    ///
    /// Another extension, an unreadable file, a missing column, a cell that is null or of another type, an empty path
    /// (rows of parquet count from 0, lines of text from 1), or no row at all.
    pub fn read(file: &Path) -> Result<Self> {
        Self::read_with(Reader::new(file))
    }

    /// Reads the column `seed` too, whole numbers, if there is one, and the column `label`, of any type.
    ///
    /// # Errors
    /// As [`Self::read`], and there is no column `label`.
    pub fn read_labelled(file: &Path, label: Option<&str>) -> Result<Self> {
        Self::read_with(Reader { seeds: true, label, ..Reader::new(file) })
    }

    /// The same rows with images whose relative paths start at `root`.
    pub fn rooted_at(mut self, root: &Path) -> Self {
        let mut images = DistinctImages::default();
        for row in &mut self.rows {
            if matches!(self.images[row.image as usize], ImageSource::File(_)) {
                row.image = images.file(root, &row.path);
            } else {
                row.image = images.other(&self.images[row.image as usize]);
            }
        }
        Self { images: images.sources, ..self }
    }

    fn read_with(mut reader: Reader) -> Result<Self> {
        let file = reader.file;
        match file.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("parquet") => reader.parquet()?,
            Some("csv") => reader.csv()?,
            Some("jsonl" | "ndjson") => reader.json_lines()?,
            _ => {
                return Err(Error::usage(format!(
                    "manifest {}: wanted a file that ends in .parquet, .csv or .jsonl",
                    file.display()
                )));
            }
        }
        let Reader { prompts, images, rows, labels, .. } = reader;
        if rows.is_empty() {
            return Err(Error::data(format!("no rows in {}", file.display())));
        }
        Ok(Self { prompts: prompts.into_names(), images: images.sources, rows, labels })
    }
}

struct Reader<'a> {
    file: &'a Path,
    seeds: bool,
    label: Option<&'a str>,
    prompts: DistinctStrings,
    images: DistinctImages,
    rows: Vec<ManifestRow>,
    labels: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(file: &'a Path) -> Self {
        let (prompts, images) = (DistinctStrings::default(), DistinctImages::default());
        Self { file, seeds: false, label: None, prompts, images, rows: Vec::new(), labels: Vec::new() }
    }

    fn add(&mut self, prompt: &str, path: &str, seed: Option<i64>) {
        let prompt = self.prompts.index(prompt);
        let image = self.images.file(self.file.parent().unwrap_or(Path::new("")), path);
        self.rows.push(ManifestRow { prompt, image, path: path.to_owned(), seed });
    }

    fn parquet(&mut self) -> Result<()> {
        let table = Table::open(self.file)?;
        let mut columns = vec![table.require(&["prompt"])?, table.require(&["path"])?];
        let seed = table.require(&["seed"]).ok().filter(|_| self.seeds);
        columns.extend(seed);
        columns.extend(self.label.map(|label| table.require(&[label])).transpose()?);
        let mut nulls = [NullRows::default(), NullRows::default(), NullRows::default()];
        let mut row = 0;
        for batch in table.batches(&columns, BATCH_ROWS)? {
            let batch = batch?;
            let (prompts, paths) = (strings(self.file, &batch, "prompt")?, strings(self.file, &batch, "path")?);
            let seeds = seed.map(|name| whole_numbers(self.file, &batch, name)).transpose()?;
            for (index, (prompt, path)) in prompts.iter().zip(paths).enumerate() {
                let path = path.filter(|path| !path.is_empty());
                let seed = seeds.as_ref().map(|seeds| seeds.is_valid(index).then(|| seeds.value(index)));
                if let (Some(prompt), Some(path)) = (prompt, path) {
                    self.add(prompt, path, seed.flatten());
                }
                let empty = [prompt.is_none(), path.is_none(), seed == Some(None)];
                for (empty, nulls) in empty.into_iter().zip(&mut nulls) {
                    if empty {
                        nulls.add(row);
                    }
                }
                row += 1;
            }
            if let Some(label) = self.label {
                self.labels.extend(labels(self.file, &batch, label)?);
            }
        }
        columns.iter().zip(&nulls).try_for_each(|(column, nulls)| nulls.check(self.file, column))
    }

    fn csv(&mut self) -> Result<()> {
        let file = self.file;
        let wrong = |error: csv::Error| Error::data(format!("{}: {error}", file.display()));
        let mut table = csv::Reader::from_reader(fs_err::File::open(file).map_err(|error| not_opened(file, error))?);
        let header = table.headers().map_err(wrong)?.clone();
        let place = |name| {
            header
                .iter()
                .position(|column| column == name)
                .ok_or_else(|| missing_column(self.file.display(), &[name], header.iter()))
        };
        let (prompt, path, seed) = (place("prompt")?, place("path")?, place("seed").ok().filter(|_| self.seeds));
        let label = self.label.map(place).transpose()?;
        for record in table.records() {
            let record = record.map_err(wrong)?;
            // Every record has the header's length, or the reader refuses it.
            let line = record.position().map_or(0, csv::Position::line);
            if record[path].is_empty() {
                return Err(self.wrong_line(line, "`path` is empty"));
            }
            let seed = seed.map(|seed| {
                let what = |_| self.wrong_line(line, format!("`seed` is \"{}\", wanted a whole number", &record[seed]));
                record[seed].parse().map_err(what)
            });
            self.add(&record[prompt], &record[path], seed.transpose()?);
            self.labels.extend(label.map(|label| record[label].to_owned()));
        }
        Ok(())
    }

    fn json_lines(&mut self) -> Result<()> {
        let text = fs_err::read_to_string(self.file).map_err(|error| not_opened(self.file, error))?;
        for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
            let object: Map<String, Value> =
                serde_json::from_str(line).map_err(|error| self.wrong_line(number, error))?;
            let value = |name: &str| {
                let place = format!("{} line {number}", self.file.display());
                object.get(name).ok_or_else(|| missing_column(place, &[name], object.keys().map(String::as_str)))
            };
            let cell = |name: &str| match value(name)? {
                Value::String(text) => Ok(text),
                other => Err(self.wrong_line(number, format!("`{name}` is {other}, wanted a string"))),
            };
            let (prompt, path) = (cell("prompt")?, cell("path")?);
            if path.is_empty() {
                return Err(self.wrong_line(number, "`path` is empty"));
            }
            let seed = object.get("seed").filter(|_| self.seeds).map(|seed| {
                seed.as_i64().ok_or_else(|| self.wrong_line(number, format!("`seed` is {seed}, wanted a whole number")))
            });
            let label = self.label.map(value).transpose()?;
            self.add(prompt, path, seed.transpose()?);
            self.labels.extend(label.map(|label| label.as_str().map_or_else(|| label.to_string(), str::to_owned)));
        }
        Ok(())
    }

    fn wrong_line(&self, line: u64, what: impl std::fmt::Display) -> Error {
        Error::data(format!("{} line {line}: {what}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tables");

    #[test]
    fn the_same_rows_from_every_format() {
        for name in ["manifest.parquet", "manifest.csv", "manifest_excel.csv", "manifest.jsonl"] {
            let manifest = Manifest::read(&Path::new(TABLES).join(name)).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(manifest.prompts, ["a red fox", "she said \"hi\", twice"], "{name}");
            let row = |prompt, image, path: &str| ManifestRow { prompt, image, path: path.to_owned(), seed: None };
            assert_eq!(manifest.rows, [row(0, 0, "a.png"), row(1, 1, "sub/b.png"), row(0, 0, "a.png")], "{name}");
            assert_eq!(manifest.images[1].label(), format!("{TABLES}/sub/b.png"), "{name}");
        }
    }

    #[test]
    fn relative_paths_start_at_another_root() {
        let manifest = Manifest::read(&Path::new(TABLES).join("manifest.csv")).unwrap().rooted_at(Path::new("/data"));
        let labels: Vec<_> = manifest.images.iter().map(ImageSource::label).collect();
        assert_eq!(labels, ["/data/a.png", "/data/sub/b.png"]);
        let images: Vec<_> = manifest.rows.iter().map(|row| (row.image, row.path.as_str())).collect();
        assert_eq!(images, [(0, "a.png"), (1, "sub/b.png"), (0, "a.png")]);
    }

    #[test]
    fn labels_are_text_in_every_format() {
        let folder = tempfile::tempdir().unwrap();
        let labels = |name: &str, content: &str| {
            let file = folder.path().join(name);
            fs_err::write(&file, content).unwrap();
            Manifest::read_labelled(&file, Some("n")).map(|manifest| manifest.labels)
        };
        assert_eq!(labels("m.csv", "n,prompt,path\n7,a,b\n,a,c\n").unwrap(), ["7", ""]);
        let lines = [r#"{"prompt":"a","path":"b","n":7}"#, r#"{"prompt":"a","path":"c","n":null}"#];
        assert_eq!(labels("m.jsonl", &lines.join("\n")).unwrap(), ["7", "null"]);
        let error = labels("m.jsonl", r#"{"prompt":"a","path":"b"}"#).unwrap_err().to_string();
        assert!(error.ends_with("m.jsonl line 1 has no column `n` (it has: prompt, path)"), "{error}");
        let parquet = Path::new(TABLES).join("manifest.parquet");
        assert_eq!(Manifest::read_labelled(&parquet, Some("path")).unwrap().labels, ["a.png", "sub/b.png", "a.png"]);
        let error = Manifest::read_labelled(&parquet, Some("paths")).unwrap_err();
        assert_eq!(error.hint_text(), Some("did you mean `path`?"));
    }

    /// The message and hint for a manifest of this content.
    fn refused(name: &str, content: impl AsRef<[u8]>) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        fs_err::write(&file, content).unwrap();
        let error = Manifest::read_labelled(&file, None).unwrap_err();
        let message = error.to_string().replace(&format!("{}/", folder.path().display()), "");
        (message, error.hint_text().unwrap_or_default().to_owned())
    }

    #[test]
    fn bad_csv_is_refused_by_line() {
        let (message, hint) = refused("m.csv", "prompt,paths\na,b\n");
        assert_eq!(message, "m.csv has no column `path` (it has: prompt, paths)");
        assert_eq!(hint, "did you mean `paths`?");
        assert_eq!(refused("m.csv", "prompt,path\na,b\nc,\n").0, "m.csv line 3: `path` is empty");
        let ragged = refused("m.csv", "prompt,path\na,b\nc\n").0;
        assert!(ragged.starts_with("m.csv: CSV error: record 2 (line: 3, "), "{ragged}");
        let latin = refused("m.csv", b"prompt,path\nF\xfcchse,b\n").0;
        assert!(latin.contains("(line 2, ") && latin.contains("UTF-8"), "{latin}");
        let seed = refused("m.csv", "prompt,path,seed\na,b,7\na,c,-x\n").0;
        assert_eq!(seed, "m.csv line 3: `seed` is \"-x\", wanted a whole number");
        assert_eq!(refused("m.csv", "prompt,path\n").0, "no rows in m.csv");
        assert_eq!(refused("m.csv", "").0, "m.csv has no column `prompt` (it has: )");
    }

    #[test]
    fn bad_json_lines_are_refused_by_line() {
        let good = r#"{"prompt": "a", "path": "b"}"#;
        for (bad, wanted) in [
            (r#"{"prompt": "a""#, "m.jsonl line 3: EOF while parsing an object at line 1 column 14"),
            (r#"{"prompt": "a", "path": null}"#, "m.jsonl line 3: `path` is null, wanted a string"),
            (r#"{"prompt": 7, "path": "b"}"#, "m.jsonl line 3: `prompt` is 7, wanted a string"),
            (r#"{"prompt": "a", "file": "b"}"#, "m.jsonl line 3 has no column `path` (it has: prompt, file)"),
            (r#"{"prompt": "a", "path": ""}"#, "m.jsonl line 3: `path` is empty"),
            (r#"{"prompt": "a", "path": "b", "seed": 1.5}"#, "m.jsonl line 3: `seed` is 1.5, wanted a whole number"),
            ("[]", "m.jsonl line 3: invalid type: sequence, expected a map at line 1 column 0"),
        ] {
            assert_eq!(refused("m.jsonl", format!("{good}\n\n{bad}\n")).0, wanted);
        }
        assert_eq!(refused("m.jsonl", "").0, "no rows in m.jsonl");
    }

    #[test]
    fn bad_parquet_and_other_files_are_refused() {
        let refused = |name: &str| {
            let error = Manifest::read(&Path::new(TABLES).join(name)).unwrap_err();
            (error.kind(), error.to_string().replace(&format!("{TABLES}/"), ""))
        };
        let missing = "pandas.parquet has no column `path` (it has: prompt, pos_path, neg_path, age, style, id)";
        assert_eq!(refused("pandas.parquet"), (crate::ErrorKind::Data, missing.to_owned()));
        let other = "manifest a.png: wanted a file that ends in .parquet, .csv or .jsonl";
        assert_eq!(refused("a.png"), (crate::ErrorKind::Usage, other.to_owned()));
    }
}
