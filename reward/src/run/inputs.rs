//! What a run reads, by content: a resumed run is the same run wherever its data lie, and another one where they have changed.

use std::{
    collections::BTreeMap,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bytes of a file that one thread hashes at a time.
const PIECE: u64 = 16 << 20;

/// Descriptions of a model that lie beside its weights.
const DESCRIPTIONS: [&str; 3] = ["config.json", "preprocessor_config.json", "open_clip_config.json"];

/// The contents of all inputs of a run, by the names of their settings; part of every checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs(BTreeMap<String, Input>);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Rows of a table, lines of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rows: Option<usize>,
    /// BLAKE3.
    content: String,
    /// As the user spelled it.
    #[serde(skip)]
    spelled: String,
}

/// However it is spelled.
impl PartialEq for Input {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows && self.content == other.content
    }
}

impl Inputs {
    /// Adds a table or text: its rows, and their hash ([`content_hash`](crate::data::content_hash)).
    pub fn add_rows(&mut self, setting: &str, spelled: &str, rows: usize, content: String) {
        let input = Input { rows: Some(rows), content, spelled: spelled.to_owned() };
        self.0.insert(setting.to_owned(), input);
    }

    /// Adds files, in their order; where there are none (random weights), the spelling is all there is. `beside`: what the
    /// files do not say of themselves.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn add_files(&mut self, setting: &str, spelled: &str, files: &[PathBuf], beside: &str) -> Result<()> {
        let mut hash = blake3::Hasher::new();
        if files.is_empty() {
            hash.update(spelled.as_bytes());
        }
        for file in files {
            hash.update(of_file(file)?.as_bytes());
        }
        hash.update(beside.as_bytes());
        let input = Input { rows: None, content: hash.finalize().to_hex().to_string(), spelled: spelled.to_owned() };
        self.0.insert(setting.to_owned(), input);
        Ok(())
    }

    /// Whether nothing is known: an earlier version wrote the checkpoint.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares with what a run in a folder given by `flag` began with.
    ///
    /// # Errors
    /// The first input whose content is another, by the name of its setting.
    pub fn check_same(&self, earlier: &Self, flag: &str) -> Result<()> {
        self.difference(earlier, "at step 1").map_or(Ok(()), |difference| {
            Err(Error::data(format!("--resume: {difference}"))
                .hint(format!("bring back what the run began with, or start another run in another --{flag}")))
        })
    }

    /// Compares with what rank 0 read.
    ///
    /// # Errors
    /// As [`Self::check_same`].
    pub fn check_same_as_first(&self, first: &Self) -> Result<()> {
        self.difference(first, "on rank 0").map_or(Ok(()), |difference| {
            Err(Error::data(difference)
                .hint("all ranks read the same data, from a disk that they share or from copies"))
        })
    }

    /// The first input whose content is another, in words. `than`: where `other` was read.
    fn difference(&self, other: &Self, than: &str) -> Option<String> {
        self.0.iter().find_map(|(setting, now)| {
            let then = other.0.get(setting).filter(|then| then.content != now.content)?;
            let what = match (now.rows, then.rows) {
                (Some(now), Some(then)) if now == then => {
                    format!("has other rows than {than}, or the same {now} in another order")
                }
                (Some(now), Some(then)) => format!("has other rows than {than}: {now} instead of {then}"),
                _ => format!("has another content than {than}"),
            };
            Some(format!("{setting} {} {what}", now.spelled))
        })
    }
}

/// The descriptions beside weights that were given as a folder or a hub id: a lone file's neighbours are not its own.
pub fn with_descriptions(spelled: &str, files: Vec<PathBuf>) -> Vec<PathBuf> {
    if Path::new(spelled).is_file() {
        return files;
    }
    let folder = files.first().and_then(|file| file.parent()).map(Path::to_owned);
    let beside = folder.into_iter().flat_map(|folder| DESCRIPTIONS.map(|name| folder.join(name)));
    let beside: Vec<PathBuf> = beside.filter(|path| path.is_file() && !files.contains(path)).collect();
    [files, beside].concat()
}

/// A hash over the hashes of a file's pieces, which all threads share.
fn of_file(path: &Path) -> Result<blake3::Hash> {
    let file = fs_err::File::open(path)?;
    let bytes = file.metadata()?.len();
    let piece = |index: u64| -> Result<[u8; 32]> {
        let start = index * PIECE;
        let mut buffer = vec![0; (bytes.min(start + PIECE) - start) as usize];
        let failed = |error| Error::data(format!("{}: {error}", path.display()));
        file.file().read_exact_at(&mut buffer, start).map_err(failed)?;
        Ok(*blake3::hash(&buffer).as_bytes())
    };
    let pieces = (0..bytes.div_ceil(PIECE)).into_par_iter().map(piece).collect::<Result<Vec<_>>>()?;
    Ok(blake3::Hasher::new().update(&bytes.to_le_bytes()).update(&pieces.concat()).finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_counts_and_spelling_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a.pt", "b.pt"].map(|name| folder.path().join(name));
        fs_err::write(&a, "weights").unwrap();
        fs_err::write(&b, "weights").unwrap();
        let inputs = |rows: usize, content: &str, file: &Path| {
            let mut inputs = Inputs::default();
            inputs.add_rows("training_file", "t.parquet", rows, content.to_owned());
            inputs.add_files("model", "m", &[file.to_owned()], "").unwrap();
            inputs
        };
        let began: Inputs = serde_json::from_str(&serde_json::to_string(&inputs(64, "x", &a)).unwrap()).unwrap();
        inputs(64, "x", &b).check_same(&began, "output").unwrap();
        inputs(64, "x", &a).check_same(&Inputs::default(), "output").unwrap();
        let refused = |inputs: Inputs| inputs.check_same(&began, "save-folder").unwrap_err();
        let fewer = refused(inputs(40, "y", &a));
        assert_eq!(
            fewer.to_string(),
            "--resume: training_file t.parquet has other rows than at step 1: 40 instead of 64"
        );
        assert!(fewer.hint_text().unwrap().ends_with("another --save-folder"));
        assert_eq!(
            refused(inputs(64, "y", &a)).to_string(),
            "--resume: training_file t.parquet has other rows than at step 1, or the same 64 in another order"
        );
        fs_err::write(&b, "weightz").unwrap();
        assert_eq!(refused(inputs(64, "x", &b)).to_string(), "--resume: model m has another content than at step 1");
    }

    #[test]
    fn random_weights_are_known_by_name_and_a_folder_by_its_descriptions_too() {
        let content = |spelled: &str, files: &[PathBuf]| {
            let mut inputs = Inputs::default();
            inputs.add_files("model", spelled, files, "").unwrap();
            inputs
        };
        assert_ne!(content("random:tiny", &[]).0["model"].content, content("random:toy", &[]).0["model"].content);
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs_err::write(at("model.safetensors"), "weights").unwrap();
        fs_err::write(at("config.json"), "{}").unwrap();
        let (spelled, file) = (folder.path().display().to_string(), at("model.safetensors"));
        let both = with_descriptions(&spelled, vec![file.clone()]);
        assert_eq!(both, [file.clone(), at("config.json")]);
        assert_eq!(with_descriptions(&file.display().to_string(), vec![file.clone()]), [file]);
    }
}
