//! The image sets of an evaluation: those to judge, in order, and perhaps a baseline.

use std::path::{Path, PathBuf};

use super::folder::{is_caption, table_in};
use super::image_set::ImageSet;
use super::parts::expand;
use crate::{Error, Result};

/// Sets with names of their own.
#[derive(Debug)]
pub struct ImageSets {
    /// Those to judge; never none.
    pub judged: Vec<ImageSet>,
    /// What they are compared with.
    pub baseline: Option<ImageSet>,
    /// The column that the judged sets' labels are from.
    pub label: Option<String>,
    /// Where what is found out about them belongs: the folder of the last of them, or the one that they all lie in.
    pub folder: PathBuf,
}

impl ImageSets {
    /// Reads what `images` names: sets, as [`ImageSet::read`] takes them, folders of sets, and globs of either. A folder whose
    /// subfolders hold `images.parquet` or `captions.csv` means all of these, numbers in their names in numeric order. The
    /// baseline is left out where it is one of several. `label` is a column of the sets to judge.
    ///
    /// # Errors
    /// What [`ImageSet::read`] refuses, no path, or a set that is named twice.
    pub fn read(images: &[PathBuf], baseline: Option<&Path>, label: Option<&str>) -> Result<Self> {
        let (mut paths, mut folder) = (Vec::new(), None);
        let images = images.iter().map(|path| expand(path)).collect::<Result<Vec<_>>>()?.concat();
        for path in images {
            let inside = sets_in(&path)?;
            folder = Some(path.clone()).filter(|_| !inside.is_empty());
            if inside.is_empty() { paths.push(path) } else { paths.extend(inside) }
        }
        let mut judged = paths.iter().map(|path| ImageSet::read(path, label)).collect::<Result<Vec<_>>>()?;
        let Some(last) = judged.last() else { return Err(Error::usage("no image set to evaluate")) };
        let folder = folder.unwrap_or_else(|| last.folder.clone());
        let places = paths.iter().map(|path| place(path)).collect::<Result<Vec<_>>>()?;
        if let Some(twice) = (1..places.len()).find(|later| places[..*later].contains(&places[*later])) {
            return Err(Error::usage(format!("image set {} is named twice", paths[twice].display())));
        }
        let other = baseline.map(place).transpose()?;
        if let Some(own) = places.iter().position(|place| places.len() > 1 && Some(place) == other.as_ref()) {
            judged.remove(own);
            paths.remove(own);
        }
        let mut baseline_set = baseline.map(|path| ImageSet::read(path, None)).transpose()?;
        let mut all: Vec<(&mut ImageSet, &Path)> = judged.iter_mut().zip(paths.iter().map(PathBuf::as_path)).collect();
        all.extend(baseline_set.as_mut().zip(baseline));
        let names: Vec<String> = all.iter().map(|(set, _)| set.name.clone()).collect();
        for ((set, path), name) in all.into_iter().zip(&names) {
            if names.iter().filter(|other| *other == name).count() > 1 {
                // As typed, to tell them apart.
                set.name = path.display().to_string();
            }
        }
        Ok(Self { judged, baseline: baseline_set, label: label.map(str::to_owned), folder })
    }
}

/// The sets in the subfolders of `path`; none where it is a set itself, or no folder.
fn sets_in(path: &Path) -> Result<Vec<PathBuf>> {
    let mut sets = Vec::new();
    if path.is_dir() && table_in(path).is_none() {
        for entry in fs_err::read_dir(path)? {
            let inside = entry?.path();
            let name = inside.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            if is_caption(&inside) {
                return Ok(Vec::new());
            }
            if table_in(&inside).is_some() {
                sets.push((name, inside));
            }
        }
    }
    sets.sort_by(|(left, _), (right, _)| natural(left).cmp(&natural(right)).then_with(|| left.cmp(right)));
    Ok(sets.into_iter().map(|(_, path)| path).collect())
}

/// What names are sorted by so that numbers in them count as numbers: text, then the length and digits of the number behind it.
fn natural(name: &str) -> Vec<(&str, usize, &str)> {
    let (mut parts, mut rest) = (Vec::new(), name);
    while !rest.is_empty() {
        let (text, behind) = rest.split_at(rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()));
        let (digits, behind) = behind.split_at(behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len()));
        let digits = digits.trim_start_matches('0');
        parts.push((text, digits.len(), digits));
        rest = behind;
    }
    parts
}

/// The same for the same set, however it is spelled.
fn place(path: &Path) -> Result<PathBuf> {
    let table = table_in(path).unwrap_or_else(|| path.to_owned());
    if !table.exists() {
        return Err(Error::data(format!("{} does not exist", table.display())));
    }
    Ok(fs_err::canonicalize(table)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_as_numbers() {
        let mut names = ["step-10", "step-2", "final", "step-000003", "step-2b", "step-"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["final", "step-", "step-2", "step-2b", "step-000003", "step-10"]);
    }

    /// A folder with a set of one image.
    fn write_set(folder: &Path) {
        fs_err::create_dir_all(folder).unwrap();
        fs_err::write(folder.join("captions.csv"), "prompt,path,style\na,1.png,art\n").unwrap();
        fs_err::write(folder.join("1.png"), "").unwrap();
    }

    #[test]
    fn a_folder_of_sets_means_all_but_the_baseline() {
        let run = tempfile::tempdir().unwrap();
        let samples = run.path().join("samples");
        for name in ["step-10", "step-0", "step-2", ".step-4.partial", "other/step-2"] {
            write_set(&samples.join(name));
        }
        fs_err::write(samples.join("step-2.png"), "a sheet").unwrap();
        let names = |sets: &ImageSets| sets.judged.iter().map(|set| set.name.clone()).collect::<Vec<_>>();
        let all = ImageSets::read(std::slice::from_ref(&samples), None, Some("style")).unwrap();
        assert_eq!((names(&all), &all.folder), (vec!["step-0".into(), "step-2".into(), "step-10".into()], &samples));
        assert_eq!(all.judged[1].labels, ["art"]);
        let base = samples.join("step-0/captions.csv");
        let compared = ImageSets::read(std::slice::from_ref(&samples), Some(&base), None).unwrap();
        assert_eq!(names(&compared), ["step-2", "step-10"]);
        assert_eq!(compared.baseline.unwrap().name, "step-0");
        // Named one by one: the last set's folder; a set alone may be its own baseline; equal names become paths.
        let [last, alike] = ["step-2", "other/step-2"].map(|name| samples.join(name));
        let own = ImageSets::read(std::slice::from_ref(&last), Some(&last), None).unwrap();
        assert_eq!((own.judged.len(), own.folder), (1, last.clone()));
        let two = ImageSets::read(&[alike.clone(), last.clone()], None, None).unwrap();
        assert_eq!(names(&two), [&alike, &last].map(|path| path.display().to_string()));
        let error = ImageSets::read(&[samples, last.join("captions.csv")], None, None).unwrap_err().to_string();
        assert!(error.ends_with("step-2/captions.csv is named twice"), "{error}");
    }
}
