//! Pictures that people liked or did not, without pairs: a table in parquet, CSV, TSV, a JSON array or JSON lines.

use std::path::Path;

use super::{
    cell::{Cell, Column, Kind},
    content::content_hash,
    distinct::{DistinctImages, DistinctStrings},
    parts::parts,
    rows,
    source::ImageSource,
};
use crate::{Error, Result};

/// The rows of a table of likes; equal prompts and images are held once.
#[derive(Debug, Clone)]
pub struct Liked {
    /// The distinct prompts, in order of their first row.
    pub prompts: Vec<String>,
    /// The distinct images, by resolved path, in order of their first row.
    pub images: Vec<ImageSource>,
    /// The rows, in the order of the file.
    pub rows: Vec<LikedRow>,
}

/// A picture and what people made of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LikedRow {
    /// Index into [`Liked::prompts`].
    pub prompt: u32,
    /// Index into [`Liked::images`].
    pub image: u32,
    /// Whether they liked it.
    pub liked: bool,
    /// How much the row counts, above 0; 1 where the table has no weights.
    pub weight: f64,
}

impl Liked {
    /// Reads the columns `prompt`, `path`, `liked` (true or false, or 1 and 0) and, if there is one, `weight` (a number above
    /// 0). Relative paths start at the file's own folder, or at `root`.
    ///
    /// # Errors
    /// As [`Manifest::read`](super::manifest::Manifest::read); a cell that is no truth value or no weight, or a weight in some
    /// rows only.
    pub fn read(file: &Path, root: Option<&Path>) -> Result<Self> {
        let columns = [
            Column::new(&["prompt"], Kind::Text),
            Column::new(&["path"], Kind::Path),
            Column::new(&["liked"], Kind::Label),
            Column::new(&["weight"], Kind::Optional),
        ];
        let (mut prompts, mut images) = (DistinctStrings::default(), DistinctImages::default());
        let (mut rows, mut weighted, mut wrong) = (Vec::new(), 0, None);
        for part in parts(&[file])? {
            let root = root.unwrap_or_else(|| part.path.parent().unwrap_or(Path::new("")));
            let mut place = 0;
            rows::read(&part, &columns, &mut |cells| {
                let (Some(prompt), Some(path), Some(said)) = (cells[0].text(), cells[1].text(), cells[2].text()) else {
                    return;
                };
                let bad = |what: String| Error::data(format!("{}, row {place} (from 0): {what}", part.path.display()));
                let liked = truth(said).ok_or_else(|| bad(format!("`liked` is {said}, wanted true or false")));
                let weight = match &cells[3] {
                    Cell::Nothing => Ok(1.0),
                    cell => weight(cell.text().unwrap_or_default()).map_err(bad),
                };
                weighted += usize::from(cells[3] != Cell::Nothing);
                place += 1;
                match (liked, weight) {
                    (Ok(liked), Ok(weight)) => {
                        let (prompt, image) = (prompts.index(prompt), images.file(root, path));
                        rows.push(LikedRow { prompt, image, liked, weight });
                    }
                    (Err(error), _) | (_, Err(error)) => wrong = wrong.take().or(Some(error)),
                }
            })?;
        }
        if let Some(error) = wrong {
            return Err(error);
        }
        if rows.is_empty() {
            return Err(Error::data(format!("no rows in {}", file.display())));
        }
        if weighted > 0 && weighted < rows.len() {
            let (without, all) = (rows.len() - weighted, rows.len());
            return Err(Error::data(format!("{}: {without} of {all} rows have no `weight`", file.display()))
                .hint("give every row one, or none"));
        }
        Ok(Self { prompts: prompts.into_names(), images: images.sources, rows })
    }

    /// The hash of the rows: prompts, pictures as they are found, likes and weights.
    pub fn content_hash(&self) -> String {
        content_hash(self.rows.iter().flat_map(|row| {
            let image = self.images[row.image as usize].label();
            [self.prompts[row.prompt as usize].clone(), image, format!("{} {}", row.liked, row.weight)]
        }))
    }
}

/// A truth value as tables spell it.
fn truth(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "1.0" => Some(true),
        "false" | "0" | "0.0" => Some(false),
        _ => None,
    }
}

fn weight(text: &str) -> Result<f64, String> {
    let weight = text.trim().parse().ok().filter(|weight: &f64| *weight > 0.0 && weight.is_finite());
    weight.ok_or_else(|| format!("`weight` is {text}, wanted a number above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Liked> {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(name), text).unwrap();
        Liked::read(&folder.path().join(name), Some(Path::new("pictures")))
    }

    #[test]
    fn likes_are_read_from_text_and_json() {
        let wanted = |weights: [f64; 3]| {
            let row = |prompt, image, liked, weight| LikedRow { prompt, image, liked, weight };
            [row(0, 0, true, weights[0]), row(0, 1, false, weights[1]), row(1, 0, true, weights[2])]
        };
        let csv = "prompt,path,liked,weight\nfox,a.png,true,2\nfox,b.png,0,0.5\nowl,a.png,1,1\n";
        let table = read("likes.csv", csv).unwrap();
        assert_eq!((table.prompts, table.images.len()), (vec!["fox".to_owned(), "owl".to_owned()], 2));
        assert_eq!(table.rows, wanted([2.0, 0.5, 1.0]));
        let lines = r#"{"prompt": "fox", "path": "a.png", "liked": true}
            {"prompt": "fox", "path": "b.png", "liked": false}
            {"prompt": "owl", "path": "a.png", "liked": 1}"#;
        assert_eq!(read("likes.jsonl", lines).unwrap().rows, wanted([1.0; 3]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wanted) in [
            ("prompt,path,liked\nfox,a.png,maybe\n", "row 0 (from 0): `liked` is maybe, wanted true or false"),
            ("prompt,path,liked,weight\nfox,a.png,1,-1\n", "row 0 (from 0): `weight` is -1, wanted a number above 0"),
            ("prompt,path,liked,weight\nfox,a.png,1,1\nowl,a.png,0,\n", "1 of 2 rows have no `weight`"),
            ("prompt,path\nfox,a.png\n", "`liked`"),
        ] {
            let error = read("likes.csv", text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
