//! The table that scoring writes: path, prompt and score with the columns of the table that was scored; or that table itself with
//! the score added.

mod columnar;
mod text;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use self::text::TextTable;
use crate::{
    Error, Result,
    data::{columns::Table, manifest::Manifest},
    event::{Event, Observer},
    files::{followed, replace_file},
};

/// The columns of every output, which come first where it is not the scored table itself.
const OWN: [&str; 3] = ["path", "prompt", "score"];
const SCORE: &str = "score";

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Comma-separated values with a header.
    Csv,
    /// A JSON object a line.
    JsonLines,
}

impl Format {
    /// What the ending of a name says, in lower or upper case.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "csv" => Some(Self::Csv),
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            _ => None,
        }
    }
}

/// Where scores go, checked before anything is scored.
pub struct ScoreTable<'a> {
    output: PathBuf,
    format: Format,
    manifest: &'a Manifest,
    /// The table that was scored, whose columns are carried over.
    source: Option<(&'a Path, Format)>,
    /// The columns of the output, in order.
    columns: Vec<String>,
    /// Whether the output is the source.
    in_place: bool,
}

impl<'a> ScoreTable<'a> {
    /// Looks at what is at `output` and at the columns of `source`, the file that `manifest` is from, where it is from one.
    ///
    /// # Errors
    /// The ending says no format, or what is there cannot be read. What is there is not what `score` wrote for such a table, or
    /// is the source with a column `score` of its own.
    pub fn new(output: &Path, manifest: &'a Manifest, source: Option<&'a Path>) -> Result<Self> {
        let format = Format::of(output).ok_or_else(|| {
            Error::usage(format!("--output {}: want a name that ends in .parquet, .csv or .jsonl", output.display()))
        })?;
        let output = followed(output)?;
        let source = source.filter(|source| source.is_file()).and_then(|source| Some((source, Format::of(source)?)));
        let same = |(source, _): &(&Path, Format)| {
            output.exists() && fs_err::canonicalize(source).ok() == fs_err::canonicalize(&output).ok()
        };
        let in_place = source.as_ref().is_some_and(same);
        let names = source.map_or(Ok(Vec::new()), |(source, format)| names(source, format))?;
        if in_place && names.iter().any(|name| name == SCORE) {
            return Err(Error::data(format!(
                "{} is the table itself, and its column `score` would be lost",
                output.display()
            ))
            .hint("rename or drop that column, or give another --output"));
        }
        let columns: Vec<String> = if in_place {
            names.into_iter().chain([SCORE.to_owned()]).collect()
        } else {
            let others = names.into_iter().filter(|name| !OWN.contains(&name.as_str()));
            OWN.map(str::to_owned).into_iter().chain(others).collect()
        };
        let table = Self { output, format, manifest, source, columns, in_place };
        table.check_replaceable()?;
        Ok(table)
    }

    /// What is there may be replaced: nothing, an empty file, the source itself, or what an earlier run wrote.
    fn check_replaceable(&self) -> Result<()> {
        let found = fs_err::metadata(&self.output).ok();
        if self.in_place || found.is_none_or(|found| !found.is_file() || found.len() == 0) {
            return Ok(());
        }
        let place = self.output.display();
        let hint = "give another --output, or move the file away";
        let names = names(&self.output, self.format).map_err(|error| {
            Error::data(format!("{place} is there already, and stays as it is: {error}")).hint(hint)
        })?;
        let ours = names.len() >= OWN.len() && names.iter().zip(OWN).all(|(name, own)| name == own);
        let lost = names.iter().find(|name| !self.columns.contains(name));
        let why = match lost {
            _ if !ours => format!("score did not write it (it has the columns {})", names.join(", ")),
            Some(lost) => format!("its column `{lost}` would be lost"),
            None => return Ok(()),
        };
        Err(Error::data(format!("{place} is there already, and stays as it is: {why}")).hint(hint))
    }

    /// Writes a score for every row of the manifest.
    ///
    /// # Errors
    /// The source cannot be read any more or has other rows, or the disk is full or not writable.
    pub fn write(&self, scores: &[Option<f32>], observer: &dyn Observer) -> Result<()> {
        if let (Some((source, Format::Parquet)), Format::Parquet) = (self.source, self.format) {
            return replace_file(&self.output, |partial| columnar::copy(source, partial, &self.columns, scores));
        }
        let table = match self.source {
            None => TextTable::of_rows(self.manifest),
            Some((source, Format::Csv)) => TextTable::from_csv(source)?,
            Some((source, Format::JsonLines)) => TextTable::from_json_lines(source)?,
            Some((source, Format::Parquet)) => {
                let (table, left_out) = columnar::as_text(source)?;
                if !left_out.is_empty() {
                    let left_out = left_out.join(", ");
                    observer.event(&Event::Note(&format!("left out, for they have no text form: {left_out}")));
                }
                table
            }
        };
        if table.rows.len() != scores.len() {
            let (source, rows) =
                (self.source.map_or("", |(source, _)| source.to_str().unwrap_or("")), table.rows.len());
            return Err(Error::data(format!("{source} has {rows} rows now, {} when it was read", scores.len())));
        }
        let has = |name: &&String| *name == SCORE || table.names.contains(name);
        let columns: Vec<String> = self.columns.iter().filter(has).cloned().collect();
        replace_file(&self.output, |partial| match self.format {
            Format::Csv => table.write_csv(partial, &columns, scores),
            Format::JsonLines => table.write_json_lines(partial, &columns, scores),
            Format::Parquet => columnar::write(partial, &table, &columns, scores),
        })
    }
}

/// The names of a table's columns; of JSON lines, of all of them.
fn names(path: &Path, format: Format) -> Result<Vec<String>> {
    match format {
        Format::Parquet => Ok(Table::open(path)?.names()),
        Format::Csv => {
            let header = text::csv_reader(path)?.headers().map_err(|error| text::wrong_csv(path, &error))?.clone();
            Ok(header.iter().map(str::to_owned).collect())
        }
        Format::JsonLines => {
            let mut names: Vec<String> = Vec::new();
            for (line, number) in BufReader::new(fs_err::File::open(path)?).lines().zip(1..) {
                let line = line?;
                if let Some(object) = text::object(path, &line, number)? {
                    names.extend(
                        object
                            .into_iter()
                            .map(|(name, _)| name)
                            .filter(|name| !names.contains(name))
                            .collect::<Vec<_>>(),
                    );
                }
            }
            Ok(names)
        }
    }
}

/// A score as text that reads back as the same fp32 number.
fn shortest(score: f32) -> String {
    serde_json::to_string(&score).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        Array, ArrayRef, Int64Array, ListArray, RecordBatch, StringArray, TimestampMillisecondArray,
        types::{Int32Type, Int64Type},
    };
    use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};

    use super::*;
    use crate::event::Silent;

    const SCORES: [Option<f32>; 2] = [Some(0.1), None];

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }
        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }
        fn text(&self, name: &str) -> String {
            fs_err::read_to_string(self.at(name)).unwrap()
        }
        fn write(&self, name: &str, content: &str) {
            fs_err::write(self.at(name), content).unwrap();
        }
        /// Scores `source` into `output`, or says why not.
        fn scored(&self, source: &str, output: &str) -> Result<(), String> {
            let manifest = Manifest::read(&self.at(source)).unwrap();
            let said = |error: Error| error.to_string().replace(&format!("{}/", self.0.path().display()), "");
            let source = self.at(source);
            let table = ScoreTable::new(&self.at(output), &manifest, Some(&source)).map_err(said)?;
            table.write(&SCORES, &Silent).map_err(said)
        }
        fn parquet(&self, name: &str) -> RecordBatch {
            let file = fs_err::File::open(self.at(name)).unwrap().into_parts().0;
            let mut reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
            reader.next().unwrap().unwrap()
        }
    }

    #[test]
    fn columns_of_text_are_carried_into_every_format() {
        let folder = Folder::new();
        folder.write("m.csv", "prompt,path,artist\n\"a, b\",a.png,me\nowl,b.png,\n");
        folder.write("m.jsonl", "{\"path\":\"a.png\",\"seed\":7,\"prompt\":\"a, b\",\"tags\":[\"x\"]}\n\n{\"prompt\":\"owl\",\"path\":\"b.png\",\"ok\":true}\n");
        folder.scored("m.csv", "a.csv").unwrap();
        assert_eq!(folder.text("a.csv"), "path,prompt,score,artist\na.png,\"a, b\",0.1,me\nb.png,owl,,\n");
        folder.scored("m.csv", "a.NDJSON").unwrap();
        let wanted = "{\"path\":\"a.png\",\"prompt\":\"a, b\",\"score\":0.1,\"artist\":\"me\"}\n{\"path\":\"b.png\",\"prompt\":\"owl\",\"score\":null,\"artist\":\"\"}\n";
        assert_eq!(folder.text("a.NDJSON"), wanted);
        folder.scored("m.jsonl", "b.csv").unwrap();
        let wanted = "path,prompt,score,seed,tags,ok\na.png,\"a, b\",0.1,7,\"[\"\"x\"\"]\",\nb.png,owl,,,,true\n";
        assert_eq!(folder.text("b.csv"), wanted);
        folder.scored("m.jsonl", "b.jsonl").unwrap();
        let wanted = "{\"path\":\"a.png\",\"prompt\":\"a, b\",\"score\":0.1,\"seed\":7,\"tags\":[\"x\"]}\n{\"path\":\"b.png\",\"prompt\":\"owl\",\"score\":null,\"ok\":true}\n";
        assert_eq!(folder.text("b.jsonl"), wanted);
        folder.scored("m.jsonl", "b.parquet").unwrap();
        let batch = folder.parquet("b.parquet");
        let names: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["path", "prompt", "score", "seed", "tags", "ok"]);
        assert_eq!(batch["seed"].as_ref(), &Int64Array::from(vec![Some(7), None]) as &dyn Array);
        assert_eq!(batch["tags"].as_ref(), &StringArray::from(vec![Some("[\"x\"]"), None]) as &dyn Array);
        folder.scored("m.csv", "new.parquet").unwrap();
        let once = fs_err::read(folder.at("new.parquet")).unwrap();
        folder.scored("m.csv", "new.parquet").unwrap();
        assert!(fs_err::read(folder.at("new.parquet")).unwrap() == once, "another run gives the same bytes");
    }

    #[test]
    fn a_table_scored_in_place_loses_nothing() {
        let folder = Folder::new();
        folder.write("m.csv", "\u{feff}prompt,path,artist\nfox,a.png,me\nowl,b.png,you\n");
        folder.scored("m.csv", "./m.csv").unwrap();
        let wanted = "\u{feff}prompt,path,artist,score\nfox,a.png,me,0.1\nowl,b.png,you,\n";
        assert_eq!(folder.text("m.csv"), wanted);
        let refused = folder.scored("m.csv", "m.csv").unwrap_err();
        assert!(refused.ends_with("m.csv is the table itself, and its column `score` would be lost"), "{refused}");
        assert_eq!(folder.text("m.csv"), wanted);

        let strings = |cells: [&str; 2]| Arc::new(StringArray::from(cells.to_vec())) as ArrayRef;
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]);
        let kinds: arrow_array::DictionaryArray<Int32Type> = vec!["art", "photo"].into_iter().collect();
        let made = TimestampMillisecondArray::from(vec![5, 6]).with_timezone("Asia/Yerevan");
        let columns: [(&str, ArrayRef); 5] = [
            ("boxes", Arc::new(list)),
            ("prompt", strings(["fox", "owl"])),
            ("kind", Arc::new(kinds)),
            ("path", strings(["a.png", "b.png"])),
            ("made", Arc::new(made)),
        ];
        let batch = RecordBatch::try_from_iter(columns.clone()).unwrap();
        let file = fs_err::File::create(folder.at("m.parquet")).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        folder.scored("m.parquet", "text.csv").unwrap();
        assert_eq!(
            folder.text("text.csv"),
            "path,prompt,score,kind,made\na.png,fox,0.1,art,1970-01-01T00:00:00.005Z\nb.png,owl,,photo,1970-01-01T00:00:00.006Z\n"
        );
        folder.scored("m.parquet", "m.parquet").unwrap();
        let found = folder.parquet("m.parquet");
        for (name, column) in columns {
            assert_eq!(found[name].as_ref(), column.as_ref(), "{name}");
            assert_eq!(found[name].data_type(), column.data_type(), "{name}");
        }
        assert_eq!(found.schema().field(5).name(), "score");
        assert!(found["score"].is_null(1) && !found["score"].is_null(0));
    }

    #[test]
    fn what_score_did_not_write_stays() {
        let folder = Folder::new();
        folder.write("m.csv", "prompt,path,artist\nfox,a.png,me\nowl,b.png,you\n");
        folder.write("empty.csv", "");
        for output in ["empty.csv", "a.csv", "a.csv", "a.jsonl", "a.jsonl", "a.parquet", "a.parquet"] {
            folder.scored("m.csv", output).unwrap();
        }
        let refused = |output: &str| folder.scored("m.csv", output).unwrap_err();
        folder.write("users.csv", "user,score\nx,1\n");
        let wanted =
            "users.csv is there already, and stays as it is: score did not write it (it has the columns user, score)";
        assert_eq!(refused("users.csv"), wanted);
        folder.write("a.csv", "path,prompt,score,artist,note\n");
        assert_eq!(refused("a.csv"), "a.csv is there already, and stays as it is: its column `note` would be lost");
        for (name, content) in [("page.csv", "<html>\n"), ("m.jsonl", "[1]\n"), ("m.parquet", "no table")] {
            folder.write(name, content);
            assert!(refused(name).starts_with(&format!("{name} is there already, and stays as it is: ")), "{name}");
            assert_eq!(folder.text(name), content);
        }
        let ending = refused("s.tsv");
        assert_eq!(ending, "--output s.tsv: want a name that ends in .parquet, .csv or .jsonl");
    }
}
