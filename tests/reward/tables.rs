//! Tables that cannot be used: each is named with what is wrong, before anything is written.

use crate::support::harness::Workspace;

/// The table under `golden/`, and what the error says of it.
const BAD: [(&str, &[&str]); 10] = [
    ("tables/missing_column.parquet", &["no column `pos_image` or `pos_path`", "prompt, positive, neg_paths"]),
    ("tables/wrong_type.parquet", &["`prompt`", "strings"]),
    ("tables/wrong_image_type.parquet", &["`pos_image`"]),
    ("tables/null_prompt.parquet", &["`prompt`", "rows: 1, 3"]),
    ("tables/null_path.parquet", &["`neg_path`", "3"]),
    ("tables/zero_rows.parquet", &["no rows"]),
    ("tables/truncated.parquet", &["cut short"]),
    ("tables/text.parquet", &["not a parquet file"]),
    ("tables/sub", &["folder"]),
    ("tables/absent.parquet", &[]),
];

#[cfg(feature = "torch")]
#[test]
fn training_stops_before_it_starts() {
    let work = Workspace::new();
    let train = |file: &str| {
        work.run(&format!(
            "reward train --training-file {file} --training-mode visual_last_layer --model random:tiny --device cpu \
             --max-steps 1 --batch-size 4 --save-folder out"
        ))
    };
    for (table, parts) in BAD {
        let table = format!("golden/{table}");
        train(&table).fails(1, &[&[table.as_str()], parts].concat());
        assert!(!work.path("out/config.toml").exists(), "{table}: the folder is still free");
    }
    train("golden/tables/no*thing.parquet").fails(1, &["no file matches `golden/tables/no*thing.parquet`"]);
    train("'toy/val*.parquet'").succeeds();
}

#[test]
fn validation_stops_too() {
    let work = Workspace::new();
    for (table, parts) in BAD {
        let table = format!("golden/{table}");
        let validated = work.run(&format!("reward validate {table} --model random:tiny --device cpu --json"));
        validated.fails(1, &[&[table.as_str()], parts].concat());
    }
}

#[test]
fn manifests_are_checked() {
    let work = Workspace::new();
    work.write("empty.csv", "prompt,path\n");
    work.write("columns.csv", "text,path\nfox,a.png\n");
    work.write("broken.jsonl", "{\"prompt\": \"fox\", \"path\": \"a.png\"}\n{\"prompt\": \"fox\"\n");
    work.write("cell.jsonl", "{\"prompt\": \"fox\", \"path\": 3}\n");
    work.write("rows.txt", "fox a.png\n");
    for (manifest, parts) in [
        ("empty.csv", ["no rows", ""]),
        ("columns.csv", ["`prompt`", "text, path"]),
        ("broken.jsonl", ["2", ""]),
        ("cell.jsonl", ["path", ""]),
        ("rows.txt", ["", ""]),
        ("absent.csv", ["", ""]),
        ("golden/tables/truncated.parquet", ["cut short", ""]),
    ] {
        let scored = work.run(&format!("reward score --model random:tiny --device cpu --manifest {manifest}"));
        let code = scored.status.code().unwrap();
        scored.fails(if code == 2 { 2 } else { 1 }, &[&[manifest][..], &parts].concat());
    }
}
