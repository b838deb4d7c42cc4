//! The files of a table: one file, or what a glob or a folder names (Spark, Dask, `partition_cols` of pandas).

use std::path::{Path, PathBuf};

use super::format::Format;
use crate::{Error, Result, foreign};

/// How deep folders may nest.
const DEPTH: usize = 16;
/// The name that Hive gives to a missing value.
const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// A file of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) path: PathBuf,
    /// Columns that folders below the named one spell (`style=oil/`); `None` for a missing value.
    pub(crate) partitions: Vec<(String, Option<String>)>,
}

impl Part {
    fn new(path: PathBuf, base: &Path) -> Self {
        let inside = path.strip_prefix(base).unwrap_or(&path);
        let folders = inside.parent().into_iter().flat_map(Path::components);
        let partition = |folder: std::path::Component| {
            let name = folder.as_os_str().to_string_lossy().into_owned();
            let (column, value) = name.split_once('=')?;
            Some((column.to_owned(), (value != HIVE_NULL).then(|| unescaped(value))))
        };
        let partitions = folders.filter_map(partition).collect();
        Self { path, partitions }
    }

    /// The value of a column that its folders spell; nothing for a missing one.
    pub(super) fn value(&self, column: &str) -> &str {
        let found = self.partitions.iter().find(|(name, _)| name == column);
        found.and_then(|(_, value)| value.as_deref()).unwrap_or_default()
    }
}

/// The files that paths, globs and folders name: in the order given, those of a glob or folder by name. Folders below a folder
/// count too; names that begin with `_` or `.` do not (`_SUCCESS`, checksums).
///
/// # Errors
/// A URL, a glob that is none or matches nothing, a folder without a table or with tables of several formats.
pub(crate) fn parts<S: AsRef<Path>>(patterns: &[S]) -> Result<Vec<Part>> {
    let mut found = Vec::new();
    for pattern in patterns {
        let pattern = pattern.as_ref();
        let base = if pattern.is_dir() { pattern } else { literal(pattern) };
        for path in expand(pattern)? {
            if path.is_dir() {
                let inside = tables_in(&path)?;
                if inside.is_empty() {
                    return Err(Error::data(format!("{} is a folder that holds no table", path.display()))
                        .hint("the files of a table end in .parquet, .csv, .tsv, .json or .jsonl"));
                }
                found.extend(inside.into_iter().map(|path| Part::new(path, base)));
            } else {
                found.push(Part::new(path, base));
            }
        }
    }
    Ok(found)
}

/// The paths that a path or a glob names, by name.
///
/// # Errors
/// A URL, or a glob that is none or matches nothing.
pub(crate) fn expand(pattern: &Path) -> Result<Vec<PathBuf>> {
    let Some(text) = pattern.to_str() else { return Ok(vec![pattern.to_owned()]) };
    if let Some(error) = foreign::url(text, "a table") {
        return Err(error);
    }
    if pattern.exists() || !is_glob(text) {
        return Ok(vec![pattern.to_owned()]);
    }
    let wrong = |error| Error::usage(format!("`{text}` is not a valid glob: {error}"));
    let matched = glob::glob(text).map_err(wrong)?;
    let matched = matched.collect::<Result<Vec<_>, _>>().map_err(|error| Error::data(error.to_string()))?;
    unreadable_names(pattern)?;
    if matched.is_empty() { Err(Error::data(format!("no file matches `{text}`"))) } else { Ok(matched) }
}

/// The glob crate passes over names that are not UTF-8 in silence.
fn unreadable_names(pattern: &Path) -> Result<()> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let Ok(name) = glob::Pattern::new(name) else { return Ok(()) };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_none() && name.matches(&entry.file_name().to_string_lossy()) {
            return Err(not_utf8(&entry.path()));
        }
    }
    Ok(())
}

/// The error for a file whose name cannot be part of a table or of a match.
pub(super) fn not_utf8(path: &Path) -> Error {
    let name = path.as_os_str().as_encoded_bytes().escape_ascii();
    Error::data(format!("`{name}`: this name is not UTF-8, wanted one that is"))
        .hint("rename it (`convmv -f latin1 -t utf8 --notest FILE` where it is Latin-1)")
}

fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The folder that a glob starts from.
fn literal(pattern: &Path) -> &Path {
    let is_wild = |path: &&Path| path.to_str().is_some_and(is_glob);
    pattern.ancestors().find(|path| !is_wild(path)).unwrap_or(Path::new(""))
}

/// The tables of a folder and of those below it, all of one format.
///
/// # Errors
/// The folder cannot be read, nests too deep, or has tables of several formats.
pub(super) fn tables_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    walk(folder, 0, &mut found)?;
    found.sort_unstable();
    let other = |path: &&PathBuf| Format::of(path) != found.first().and_then(|first| Format::of(first));
    if let (Some(first), Some(other)) = (found.first(), found.iter().find(other)) {
        let (first, other) = (first.display(), other.display());
        return Err(Error::data(format!("{}: tables of several formats: {first}, {other}", folder.display()))
            .hint(format!("a glob names those of one format, such as '{}'", folder.join("*.parquet").display())));
    }
    Ok(found)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if depth > DEPTH {
        return Err(Error::data(format!("{}: folders nest deeper than {DEPTH}", folder.display())));
    }
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(b"_") || name.starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            walk(&path, depth + 1, found)?;
        } else if Format::of(&path).is_some() {
            found.push(path);
        }
    }
    Ok(())
}

/// Hive spells what a folder's name cannot hold as `%` and two hexadecimal digits.
fn unescaped(value: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), value.as_bytes());
    while let [first, behind @ ..] = rest {
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these empty files.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, "").unwrap();
        }
        folder
    }

    /// The parts below `folder`, as `name column=value`.
    fn shown(folder: &Path, pattern: &str) -> Result<Vec<String>> {
        let shown = |Part { path, partitions }: Part| {
            let path = path.strip_prefix(folder).unwrap().display().to_string();
            partitions.iter().fold(path, |text, (column, value)| format!("{text} {column}={value:?}"))
        };
        Ok(parts(&[folder.join(pattern)])?.into_iter().map(shown).collect())
    }

    #[test]
    fn a_folder_is_what_spark_wrote_into_it() {
        let names = ["t.parquet/part-00001.parquet", "t.parquet/part-00000.snappy.parquet", "t.parquet/_SUCCESS"];
        let hidden =
            ["t.parquet/.part-00000.snappy.parquet.crc", "t.parquet/_metadata/a.parquet", "t.parquet/README.md"];
        let folder = folder(&[&names[..], &hidden].concat());
        let wanted = ["t.parquet/part-00000.snappy.parquet", "t.parquet/part-00001.parquet"];
        for pattern in ["t.parquet", "t.parquet/*.parquet", "*.parquet"] {
            assert_eq!(shown(folder.path(), pattern).unwrap(), wanted, "{pattern}");
        }
    }

    #[test]
    fn folders_of_hive_are_columns() {
        let folder = folder(&[
            "h/style=oil%2Fink/year=2024/0.parquet",
            "h/style=__HIVE_DEFAULT_PARTITION__/1.parquet",
            "h/plain.parquet",
        ]);
        let wanted = [
            "h/plain.parquet",
            "h/style=__HIVE_DEFAULT_PARTITION__/1.parquet style=None",
            "h/style=oil%2Fink/year=2024/0.parquet style=Some(\"oil/ink\") year=Some(\"2024\")",
        ];
        assert_eq!(shown(folder.path(), "h").unwrap(), wanted);
        assert_eq!(shown(folder.path(), "h/style=*").unwrap(), wanted[1..]);
        assert_eq!(shown(folder.path(), "h/*/year=2024/*.parquet").unwrap(), wanted[2..]);
        // A file named by itself belongs to no folder.
        assert_eq!(parts(&[folder.path().join("h/style=x.parquet")]).unwrap()[0].partitions, []);
    }

    #[test]
    fn what_names_no_table_is_refused() {
        let folder = folder(&["none/notes.md", "two/a.csv", "two/b.parquet"]);
        let refused = |pattern: &str| {
            let error = parts(&[folder.path().join(pattern)]).unwrap_err();
            error.to_string().replace(&format!("{}/", folder.path().display()), "")
        };
        assert_eq!(refused("none"), "none is a folder that holds no table");
        assert_eq!(refused("two"), "two: tables of several formats: two/a.csv, two/b.parquet");
        assert_eq!(refused("x*"), "no file matches `x*`");
        let url = parts(&["https://example.org/t.parquet"]).unwrap_err().to_string();
        assert!(url.starts_with("`https://example.org/t.parquet` is a URL, wanted a table"), "{url}");
    }

    #[cfg(unix)]
    #[test]
    fn names_in_latin_1_are_read_or_named() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let folder = folder(&["t/a.csv"]);
        fs_err::write(folder.path().join("t").join(OsStr::from_bytes(b"F\xfcchse.csv")), "").unwrap();
        assert_eq!(parts(&[folder.path().join("t")]).unwrap().len(), 2);
        let error = parts(&[folder.path().join("t/*.csv")]).unwrap_err().to_string();
        assert!(error.contains("F\\xfcchse.csv`: this name is not UTF-8"), "{error}");
        assert_eq!(parts(&[folder.path().join("t/a*")]).unwrap().len(), 1);
    }
}
