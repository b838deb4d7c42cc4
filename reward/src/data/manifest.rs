//! Images to score, each with its prompt: a table in parquet, CSV, TSV, a JSON array or JSON lines.

use std::path::Path;

use super::cell::{Column, Kind};
use super::content::content_hash;
use super::distinct::{DistinctImages, DistinctStrings};
use super::parts::parts;
use super::rows;
use super::source::ImageSource;
use crate::{Error, Result};

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
    pub seed: Option<u64>,
}

/// How to read a manifest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
    prompt: &'a [&'a str],
    path: &'a [&'a str],
    seeds: bool,
    label: Option<&'a str>,
}

impl<'a> Reading<'a> {
    const PLAIN: Self = Self { prompt: &["prompt"], path: &["path"], seeds: false, label: None };

    /// With seeds and this label.
    pub(super) fn labelled(label: Option<&'a str>) -> Self {
        Self { seeds: true, label, ..Self::PLAIN }
    }

    /// The names that a Hugging Face imagefolder's `metadata` has for prompt and path.
    pub(super) fn of_image_folder(self) -> Self {
        Self { prompt: &["prompt", "text", "caption"], path: &["path", "file_name"], ..self }
    }
}

impl Manifest {
    /// Reads a manifest with the columns `prompt` and `path`, given as a path, a glob or a folder of tables. The ending of a file
    /// says what it is: `parquet`, `csv`, `tsv`, `json` or `jsonl`. Relative image paths start at the file's own folder. Other
    /// columns are ignored.
    ///
    /// # Errors
    ///
    /// Another ending, an unreadable file, a missing column, a cell that is null or of another type, an empty path, or
    /// no row at all. Rows of parquet and JSON arrays count from 0, lines of text from 1.
    pub fn read(file: &Path) -> Result<Self> {
        Self::read_as(file, Reading::PLAIN)
    }

    /// Reads the column `seed` too, whole numbers or nothing, if there is one, and the column `label`, of any type.
    ///
    /// # Errors
    /// As [`Self::read`], and there is no column `label`.
    pub fn read_labelled(file: &Path, label: Option<&str>) -> Result<Self> {
        Self::read_as(file, Reading::labelled(label))
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

    pub(super) fn read_as(file: &Path, reading: Reading) -> Result<Self> {
        let Reading { prompt, path, seeds, label } = reading;
        let label = label.map(|label| [label]);
        let mut columns = vec![Column::new(prompt, Kind::Text), Column::new(path, Kind::Path)];
        columns.extend(seeds.then(|| Column::new(&["seed"], Kind::Seed)));
        columns.extend(label.as_ref().map(|label| Column::new(label, Kind::Label)));
        let (mut prompts, mut images) = (DistinctStrings::default(), DistinctImages::default());
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for part in parts(&[file])? {
            let root = part.path.parent().unwrap_or(Path::new(""));
            rows::read(&part, &columns, &mut |cells| {
                let (Some(prompt), Some(path)) = (cells[0].text(), cells[1].text()) else { return };
                rows.push(ManifestRow {
                    prompt: prompts.index(prompt),
                    image: images.file(root, path),
                    path: path.to_owned(),
                    seed: if seeds { cells[2].seed() } else { None },
                });
                labels.extend(
                    cells.last().filter(|_| label.is_some()).map(|label| label.text().unwrap_or_default().to_owned()),
                );
            })?;
        }
        if rows.is_empty() {
            return Err(Error::data(format!("no rows in {}", file.display())));
        }
        Ok(Self { prompts: prompts.into_names(), images: images.sources, rows, labels })
    }

    /// The hash of the rows: prompts, and paths as the table spells them, not where the table lies.
    pub fn content_hash(&self) -> String {
        content_hash(self.rows.iter().flat_map(|row| [&self.prompts[row.prompt as usize], &row.path]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        assert_eq!(latin, "m.csv line 2: not UTF-8 text, wanted a CSV table");
        let seed = refused("m.csv", "prompt,path,seed\na,b,7\na,c,-x\n").0;
        assert_eq!(seed, "m.csv line 3: `seed` is \"-x\", wanted a whole number");
        assert_eq!(refused("m.csv", "prompt,path\n").0, "no rows in m.csv");
        assert_eq!(refused("m.csv", "").0, "m.csv is an empty file (0 bytes), wanted a CSV table");
        let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        let pointer = refused("m.csv", lfs);
        assert_eq!(pointer.0, "m.csv is a Git LFS pointer, not the file it stands for, wanted a CSV table");
        assert!(pointer.1.contains("git lfs pull"));
        assert_eq!(
            refused("m.tsv", "<!DOCTYPE html>").0,
            "m.tsv is an HTML page, wanted a table of tab-separated values"
        );
        let twice = refused("m.csv", "path,prompt,path\na,b,c\n").0;
        assert_eq!(twice, "m.csv has two columns for `path`: path, path");
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
            ("[]", "m.jsonl line 3: an array, wanted an object"),
            ("\"a\"", "m.jsonl line 3: \"a\", wanted an object"),
        ] {
            assert_eq!(refused("m.jsonl", format!("{good}\n\n{bad}\n")).0, wanted);
        }
        assert_eq!(refused("m.jsonl", "").0, "m.jsonl is an empty file (0 bytes), wanted JSON lines");
        assert_eq!(refused("m.jsonl", "\n").0, "no rows in m.jsonl");
        assert_eq!(refused("m.json", "[]").0, "no rows in m.json");
        let object = "m.json is one JSON object (its keys: prompt), wanted an array of objects";
        assert_eq!(refused("m.json", r#"{"prompt": {"0": "a"}}"#).0, object);
    }

    #[test]
    fn bad_parquet_and_other_files_are_refused() {
        let refused = |name: &str| {
            let error = Manifest::read(&Path::new(TABLES).join(name)).unwrap_err();
            (error.kind(), error.to_string().replace(&format!("{TABLES}/"), ""))
        };
        let missing = "pandas.parquet has no column `path` (it has: prompt, pos_path, neg_path, age, style, id)";
        assert_eq!(refused("pandas.parquet"), (crate::ErrorKind::Data, missing.to_owned()));
        let other = "manifest a.png: wanted a file that ends in .parquet, .csv, .tsv, .json or .jsonl";
        assert_eq!(refused("a.png"), (crate::ErrorKind::Usage, other.to_owned()));
        let error = Manifest::read(Path::new("https://example.org/m.csv")).unwrap_err().to_string();
        assert!(error.starts_with("`https://example.org/m.csv` is a URL, wanted a table"), "{error}");
    }

    /// Rows as the text of a table in every format, less parquet.
    fn written(rows: &[(String, String, u64)]) -> [(&'static str, String); 4] {
        let delimited = |delimiter: u8| {
            let mut table = csv::WriterBuilder::new().delimiter(delimiter).from_writer(Vec::new());
            table.write_record(["prompt", "path", "seed"]).unwrap();
            for (prompt, path, seed) in rows {
                table.write_record([prompt, path, &seed.to_string()]).unwrap();
            }
            String::from_utf8(table.into_inner().unwrap()).unwrap()
        };
        let object = |(prompt, path, seed): &(String, String, u64)| {
            serde_json::json!({ "prompt": prompt, "path": path, "seed": seed }).to_string()
        };
        let objects: Vec<String> = rows.iter().map(object).collect();
        [
            ("m.csv", delimited(b',')),
            ("m.tsv", delimited(b'\t')),
            ("m.json", format!("[{}]\n", objects.join(",\n"))),
            ("m.jsonl", objects.join("\n") + "\n"),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_byte_order_mark_and_the_kind_of_line_ends_change_nothing(
            rows in prop::collection::vec(("[a-zß狐 ,;\"'\t]{0,12}", "[a-z/]{1,8}", any::<u64>()), 1..6),
        ) {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in written(&rows) {
                let file = folder.path().join(name);
                let read = |text: String| {
                    fs_err::write(&file, text).unwrap();
                    let Manifest { prompts, rows, .. } = Manifest::read_labelled(&file, None).unwrap();
                    let row = |row: ManifestRow| (prompts[row.prompt as usize].clone(), row.path, row.seed.unwrap());
                    rows.into_iter().map(row).collect::<Vec<_>>()
                };
                let windows = text.replace('\n', "\r\n");
                for text in [format!("\u{feff}{text}"), format!("\u{feff}{windows}"), windows, text] {
                    prop_assert_eq!(&read(text), &rows, "{}", name);
                }
            }
        }
    }

    #[test]
    fn folders_and_globs_are_one_table() {
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("m.parquet");
        for (part, style) in [("style=oil", "a"), ("style=ink", "b")] {
            let place = table.join(part);
            fs_err::create_dir_all(&place).unwrap();
            fs_err::copy(Path::new(TABLES).join("manifest.parquet"), place.join(format!("part-{style}.parquet")))
                .unwrap();
        }
        fs_err::write(table.join("_SUCCESS"), "").unwrap();
        let manifest = Manifest::read_labelled(&table, Some("style")).unwrap();
        assert_eq!(manifest.labels, ["ink", "ink", "ink", "oil", "oil", "oil"]);
        assert_eq!((manifest.prompts.len(), manifest.images.len()), (2, 4));
        // Each file's paths start at its own folder.
        assert_eq!(manifest.images[0].label(), table.join("style=ink/a.png").display().to_string());
        assert_eq!(Manifest::read(&table.join("*/*.parquet")).unwrap().content_hash(), manifest.content_hash());
    }
}
