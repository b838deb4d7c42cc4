use std::sync::{Arc, Mutex};

use arrow_array::{ArrayRef, RecordBatch, StringArray};

use super::super::triplets::ReadOptions;
use super::*;

const TABLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tables");

/// Triplets from (prompt, positive, negative); the images are those of the fixtures.
fn triplets(rows: &[(&str, &str, &str)]) -> Triplets {
    let folder = tempfile::tempdir().unwrap();
    let column = |cells: Vec<&str>| Arc::new(StringArray::from(cells)) as ArrayRef;
    let batch = RecordBatch::try_from_iter([
        ("prompt", column(rows.iter().map(|row| row.0).collect())),
        ("pos_path", column(rows.iter().map(|row| row.1).collect())),
        ("neg_path", column(rows.iter().map(|row| row.2).collect())),
    ])
    .unwrap();
    let file = folder.path().join("T.parquet");
    let output = fs_err::File::create(&file).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(output, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let options = ReadOptions { image_root: Some(TABLES.into()), ..ReadOptions::default() };
    Triplets::read(&[file.display().to_string()], &options).unwrap()
}

fn png(bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(b"\x89PNG") { Ok(()) } else { Err(Error::data("not an image in a known format")) }
}

fn run(train: &Triplets, validation: Option<&Triplets>, options: Options) -> Report {
    let check = |image: &ImageSource| check_header(image, png).map(|()| Look::Whole);
    preflight(train, validation, &options, &check, &|prompt| prompt.contains("long"), &|_, _| ())
}

/// The report without folders.
fn shown(report: &Report, train: &Triplets) -> String {
    let folder = train.origin(0).0.parent().unwrap().display().to_string();
    report.to_string().replace(&format!("{folder}/"), "").replace(TABLES, "DIR")
}

#[test]
fn clean_data_has_no_findings_and_every_image_is_counted() {
    let train = triplets(&[("a", "a.png", "sub/b.png"), ("b", "a.png", "c.png")]);
    let seen = Mutex::new(Vec::new());
    let progress = |done, total| seen.lock().unwrap().push((done, total));
    let check = |image: &ImageSource| check_header(image, png).map(|()| Look::Whole);
    let report = preflight(&train, None, &Options::default(), &check, &|_| false, &progress);
    assert_eq!(shown(&report, &train), "training data: 2 rows, 2 distinct prompts, 3 distinct images");
    report.verdict().unwrap();
    let mut seen = seen.into_inner().unwrap();
    seen.sort_unstable();
    assert_eq!(seen, [(1, 3), (2, 3), (3, 3)]);
}

#[test]
fn every_kind_of_bad_image_is_named_with_its_row() {
    let train = triplets(&[
        ("a", "a.png", "none.png"),
        ("b", "zero.jpg", "c.png"),
        ("c", "sub", "text.jpg"),
        ("d", "c.png", "none.png"),
        ("e", "a.png", "c.png"),
    ]);
    let report = run(&train, None, Options::default());
    let lines = "cannot be read, in 4 rows (rows count from 0)
  T.parquet row 0: DIR/none.png does not exist
  T.parquet row 1: DIR/zero.jpg is empty (0 bytes), wanted an image
  T.parquet row 2: DIR/sub is a folder, wanted an image file
  T.parquet row 2: DIR/text.jpg: not an image in a known format";
    let counts = "training data: 5 rows, 5 distinct prompts, 6 distinct images";
    assert_eq!(shown(&report, &train), format!("{counts}\nproblem: training data: 4 images {lines}"));
    let error = report.verdict().unwrap_err();
    assert!(error.to_string().starts_with("preflight, training data: 4 images cannot be read, in 4 rows, first "));
    assert!(error.to_string().ends_with("none.png does not exist"), "{error}");
    assert!(error.hint_text().unwrap().contains("--image-root"));

    let skip = Options { on_bad_image: OnBadImage::Skip, strict: true, ..Options::default() };
    let report = run(&train, None, skip);
    assert!(report.errors.is_empty());
    assert!(report.warnings[0].what.ends_with("in 4 rows, which are left out"), "{report}");
    let rest = train.clone().without(&report.bad_images);
    assert_eq!((rest.rows.len(), rest.prompts, rest.images.len()), (1, vec!["e".to_owned()], 2));

    let off = run(&train, None, Options { level: Level::Off, ..Options::default() });
    assert!(off.errors.is_empty() && off.warnings.is_empty());
}

#[test]
fn skipping_every_row_is_an_error() {
    let train = triplets(&[("a", "a.png", "none.png")]);
    let report = run(&train, None, Options { on_bad_image: OnBadImage::Skip, ..Options::default() });
    assert!(report.verdict().is_err());
}

#[test]
fn warnings_become_errors_when_strict() {
    let train =
        triplets(&[("a long one", "a.png", "c.png"), ("b", "a.png", "./a.png"), ("a long one", "c.png", "a.png")]);
    let validation = triplets(&[("b", "sub/b.png", "c.png"), ("c", "sub/b.png", "sub/b.png"), ("b", "a.png", "c.png")]);
    let report = run(&train, Some(&validation), Options::default());
    report.verdict().unwrap();
    let whats: Vec<&str> = report.warnings.iter().map(|finding| finding.what.as_str()).collect();
    assert_eq!(
        whats,
        [
            "training data: 1 row whose positive image is also the negative one",
            "training data: 1 prompt longer than the model reads, cut at the end, in 2 rows",
            "validation data: 1 row whose positive image is also the negative one",
            "validation data: 1 prompt also in the training data, in 2 of 3 rows",
            "validation data: 2 images also in the training data, in 2 of 3 rows",
        ]
    );
    assert!(report.warnings[3].examples[0].ends_with("T.parquet row 0: \"b\""), "{report}");
    let strict = run(&train, Some(&validation), Options { strict: true, ..Options::default() });
    assert_eq!(strict.errors, report.warnings);
    assert!(strict.verdict().unwrap_err().to_string().ends_with("(and 4 other errors)"));
}

#[test]
fn embedded_images_are_compared_by_content() {
    let read = |name: &str| Triplets::read(&[format!("{TABLES}/{name}.parquet")], &ReadOptions::default()).unwrap();
    let report = run(&read("binary"), Some(&read("struct_bytes")), Options::default());
    assert!(report.warnings[1].what.starts_with("validation data: 3 images also in the training data"), "{report}");
}
