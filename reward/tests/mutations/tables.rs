//! Tables of prompts, of images and of triplets, in every format. A changed letter is another prompt: what is compared is the number
//! of rows and columns, and of text, which loses a line unseen with its line end, that there are any.

use std::path::Path;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use reward::data::{
    manifest::Manifest,
    prompts,
    triplets::{ReadOptions, Triplets},
};

use crate::mutate::check;

const TABLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tables");

/// Reads a damaged manifest; a text table may lose rows unseen, `rows` says whether their number counts.
fn manifest(name: &str, valid: &[u8], rows: bool) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    check(&path, valid, || {
        let manifest = Manifest::read_labelled(&path, None)?;
        assert_eq!(manifest.content_hash().len(), 64);
        Ok(if rows { manifest.rows.len() } else { manifest.rows.len().min(1) })
    });
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn texts(cells: [&str; 3]) -> ArrayRef {
    std::sync::Arc::new(StringArray::from(cells.to_vec()))
}

#[test]
fn parquet_manifests() {
    let seeds: ArrayRef = std::sync::Arc::new(UInt64Array::from(vec![7, u64::MAX, 9]));
    let columns = vec![
        ("prompt", texts(["a fox", "an owl", "a fox"])),
        ("path", texts(["a.png", "b.png", "c.png"])),
        ("seed", seeds),
    ];
    manifest("m.parquet", &parquet(columns), true);
}

#[test]
fn text_manifests() {
    manifest("m.csv", b"prompt,path,seed\na fox,a.png,7\n\"an owl,\n\"\"grey\"\"\",b.png,3.0\n", false);
    manifest("m.tsv", b"prompt\tpath\tseed\na fox\ta.png\t7\nan owl\tb.png\t\n", false);
    manifest(
        "m.json",
        br#"[{"prompt": "a fox", "path": "a.png", "seed": 7}, {"prompt": "an owl", "path": "b.png"}]"#,
        false,
    );
    let lines = br#"{"prompt": "a fox", "path": "a.png", "seed": 7}
{"prompt": "an owl", "path": "b.png", "seed": "18446744073709551615"}
"#;
    manifest("m.jsonl", lines, false);
}

#[test]
fn tables_of_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let columns = vec![("prompt", texts(["a fox", "an owl", "a bear"])), ("id", texts(["1", "2", "3"]))];
    let files: [(&str, Vec<u8>); 4] = [
        ("p.parquet", parquet(columns)),
        ("p.tsv", b"Prompt\tCategory\na fox\tAnimals\nan owl\tAnimals\n".to_vec()),
        ("p.json", b"[\"a fox\", \"an owl\"]".to_vec()),
        ("p.csv", b"id;prompt\n1;a fox\n2;an owl\n".to_vec()),
    ];
    for (name, valid) in files {
        let path = folder.path().join(name);
        check(&path, &valid, || Ok(!prompts::read(&path)?.is_empty()));
    }
}

#[test]
fn triplets() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["pandas", "struct_bytes", "codec_zstd"] {
        let valid = fs_err::read(Path::new(TABLES).join(format!("{name}.parquet"))).unwrap();
        let path = folder.path().join("t.parquet");
        check(&path, &valid, || {
            let triplets = Triplets::read(&[path.display().to_string()], &ReadOptions::default())?;
            Ok((triplets.rows.len(), triplets.content_hash().len()))
        });
    }
}
