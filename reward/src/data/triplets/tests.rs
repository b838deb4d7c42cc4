use super::*;

const TABLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tables");
const PATHS: [&str; 12] = [
    "pandas",
    "pandas_category",
    "large_string",
    "string_view",
    "dictionary",
    "row_groups",
    "no_arrow_schema",
    "codec_snappy",
    "codec_zstd",
    "codec_gzip",
    "codec_brotli",
    "codec_lz4",
];

fn read(name: &str, options: &ReadOptions) -> Result<Triplets> {
    Triplets::read(&[format!("{TABLES}/{name}.parquet")], options)
}

fn plain(name: &str) -> Triplets {
    read(name, &ReadOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The message without the folder of the fixtures, and the hint.
fn refused(files: &[&str], options: &ReadOptions) -> (String, String) {
    let files: Vec<String> = files.iter().map(|file| format!("{TABLES}/{file}")).collect();
    let error = Triplets::read(&files, options).unwrap_err();
    (error.to_string().replace(&format!("{TABLES}/"), ""), error.hint_text().unwrap_or_default().to_owned())
}

fn assert_the_four_rows(triplets: &Triplets) {
    assert_eq!(triplets.prompts, ["a red fox", "Füchse, 狐"]);
    // Images: 0 = a.png, 1 = sub/b.png, 2 = c.png.
    let rows = [(0, 0, 1), (0, 1, 2), (1, 0, 2), (0, 0, 1)];
    assert_eq!(triplets.rows, rows.map(|(prompt, positive, negative)| Triplet { prompt, positive, negative }));
}

#[test]
fn every_string_type_codec_and_page_version() {
    for name in PATHS.into_iter().chain(["codec_none", "struct_path"]) {
        let triplets = plain(name);
        assert_the_four_rows(&triplets);
        let labels: Vec<String> = triplets.images.iter().map(ImageSource::label).collect();
        assert_eq!(labels, ["a.png", "sub/b.png", "c.png"].map(|path| format!("{TABLES}/{path}")), "{name}");
        assert_eq!(triplets.origin(3), (Path::new(&format!("{TABLES}/{name}.parquet")), 3));
    }
}

#[test]
fn embedded_images_of_every_type_are_the_files() {
    for name in ["binary", "large_binary", "binary_view", "struct_bytes"] {
        let triplets = plain(name);
        assert_the_four_rows(&triplets);
        for (image, file) in triplets.images.iter().zip(["a.png", "sub/b.png", "c.png"]) {
            assert_eq!(image.read().unwrap(), fs_err::read(format!("{TABLES}/{file}")).unwrap(), "{name} {file}");
        }
        assert_eq!(triplets.images[2].label(), format!("{TABLES}/{name}.parquet row 1 column neg_image"));
    }
}

#[test]
fn files_and_globs_are_read_in_order_as_one() {
    let files = ["pandas.parquet", "codec_[sz]*.parquet", "struct_bytes.parquet"];
    let triplets = Triplets::read(&files.map(|file| format!("{TABLES}/{file}")), &ReadOptions::default()).unwrap();
    assert_eq!((triplets.rows.len(), triplets.prompts.len(), triplets.images.len()), (16, 2, 6));
    let origins: Vec<String> = [0, 4, 11, 15]
        .map(|row| triplets.origin(row))
        .map(|(file, row)| format!("{} {row}", file.file_stem().unwrap().display()))
        .into();
    assert_eq!(origins, ["pandas 0", "codec_snappy 0", "codec_zstd 3", "struct_bytes 3"]);
}

#[test]
fn image_root_replaces_the_folder_of_the_table() {
    let options = ReadOptions { image_root: Some("/photos".into()), ..ReadOptions::default() };
    assert_eq!(read("pandas", &options).unwrap().images[1].label(), "/photos/sub/b.png");
}

#[test]
fn a_slice_column_of_any_type_is_kept_as_text() {
    for (column, values) in
        [("age", ["7", "8", "7", "9"]), ("style", ["oil", "null", "ink", "oil"]), ("pos_path", ["a.png"; 4])]
    {
        let options = ReadOptions { slice_by: Some(column.into()), ..ReadOptions::default() };
        let slices = read("pandas", &options).unwrap().slices.unwrap();
        assert_eq!(slices.column, column);
        assert_eq!(slices.values[0], values[0]);
        assert!(column == "pos_path" || slices.values == values, "{:?}", slices.values);
    }
    let options = ReadOptions { slice_by: Some("stile".into()), ..ReadOptions::default() };
    let (message, hint) = refused(&["pandas.parquet"], &options);
    assert!(message.starts_with("pandas.parquet has no column `stile` (it has: prompt, pos_path, "), "{message}");
    assert_eq!(hint, "did you mean `style`?");
}

#[test]
fn without_images_drops_rows_and_what_only_they_used() {
    let options = ReadOptions { slice_by: Some("age".into()), ..ReadOptions::default() };
    let triplets = read("pandas", &options).unwrap().without(&HashSet::from([1]));
    assert_eq!(triplets.rows, [Triplet { prompt: 0, positive: 0, negative: 1 }]);
    assert_eq!(triplets.prompts, ["Füchse, 狐"]);
    assert_eq!(triplets.images[1].label(), format!("{TABLES}/c.png"));
    assert_eq!(triplets.slices.as_ref().unwrap().values, ["7"]);
    assert_eq!(triplets.origin(0).1, 2);
}

#[test]
fn bad_tables_are_refused_by_name() {
    for (file, wanted, hinted) in [
        (
            "missing_column.parquet",
            "missing_column.parquet has no column `pos_image` or `pos_path` (it has: prompt, positive, neg_paths)",
            "",
        ),
        ("wrong_type.parquet", "wrong_type.parquet: column `prompt` has type Int64, wanted strings", ""),
        (
            "wrong_image_type.parquet",
            "wrong_image_type.parquet: column `pos_image` has type Utf8, wanted image bytes or a struct of bytes and path",
            "paths of image files belong in `pos_path` and `neg_path`",
        ),
        ("null_prompt.parquet", "null_prompt.parquet: column `prompt` is null in 2 rows: 1, 3 (rows count from 0)", ""),
        (
            "null_path.parquet",
            "null_path.parquet: column `neg_path` is null or empty in 2 rows: 2, 3 (rows count from 0)",
            "",
        ),
        (
            "null_image.parquet",
            "null_image.parquet: column `neg_image` is null or empty in 4 rows: 0, 1, 2, 3 (rows count from 0)",
            "",
        ),
        ("all_null.parquet", "all_null.parquet: column `prompt` has type Null, wanted strings", ""),
        ("zero_rows.parquet", "no rows in zero_rows.parquet", ""),
        ("zero_rows_pandas.parquet", "no rows in zero_rows_pandas.parquet", ""),
        ("none.parquet", "none.parquet does not exist", ""),
        ("none-*.parquet", "no file matches `none-*.parquet`", ""),
        ("sub", "sub is a folder, wanted a parquet file", "/sub/*.parquet` names the parquet files in it"),
    ] {
        let (message, hint) = refused(&[file], &ReadOptions::default());
        assert_eq!(message, wanted);
        assert!(hint.ends_with(hinted), "{hint}");
    }
    for file in ["truncated.parquet", "text.parquet", "zero.jpg"] {
        let (message, hint) = refused(&[file], &ReadOptions::default());
        assert!(message.contains(&format!("{file} is not a parquet file, or is cut short or damaged: ")), "{message}");
        assert!(!hint.is_empty());
    }
}

#[test]
fn a_parquet_cut_or_damaged_anywhere_is_an_error_or_reads() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("damaged.parquet");
    let files = [file.display().to_string()];
    for name in ["pandas", "struct_bytes"] {
        let whole = fs_err::read(format!("{TABLES}/{name}.parquet")).unwrap();
        for cut in (0..whole.len()).step_by(13) {
            fs_err::write(&file, &whole[..cut]).unwrap();
            assert!(Triplets::read(&files, &ReadOptions::default()).is_err(), "{name} cut at {cut}");
        }
        for place in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0xff;
            fs_err::write(&file, &damaged).unwrap();
            let _ = Triplets::read(&files, &ReadOptions::default());
        }
    }
}

#[test]
fn the_content_hash_is_of_rows_not_of_places() {
    let folder = tempfile::tempdir().unwrap();
    let hash = |files: &[&str]| {
        let files: Vec<String> = files.iter().map(|file| format!("{TABLES}/{file}.parquet")).collect();
        Triplets::read(&files, &ReadOptions::default()).unwrap().content_hash()
    };
    let wanted = hash(&["pandas"]);
    // Other types, codecs and spellings of the path, another folder: the same rows.
    let copy = folder.path().join("t.parquet").display().to_string();
    fs_err::copy(format!("{TABLES}/pandas.parquet"), &copy).unwrap();
    let moved = Triplets::read(&[copy], &ReadOptions::default()).unwrap();
    assert_eq!(moved.content_hash(), wanted);
    for same in ["./pandas", "codec_zstd", "dictionary", "large_string"] {
        assert_eq!(hash(&[same]), wanted, "{same}");
    }
    // Embedded images count by content, not as paths.
    assert_eq!(hash(&["binary"]), hash(&["struct_bytes"]));
    assert_ne!(hash(&["binary"]), wanted);
    assert_ne!(hash(&["pandas", "pandas"]), wanted);
    assert_ne!(moved.clone().without(&HashSet::from([1])).content_hash(), wanted);
    assert_eq!(moved.without(&HashSet::new()).content_hash(), wanted);
}
