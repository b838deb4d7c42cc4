//! The toy world as files: PNG and JPEG pictures, and a parquet file of triplets for each split.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reward::data::parquet_writer::{self, Column};

use super::world::{Background, Colour, Request, Scene, Shape, popularity, render};

/// Side of the pictures in pixels.
pub(crate) const SIDE: u32 = 32;
/// Temperature of a user's taste: they prefer `a` to `b` with probability σ((popularity(a) - popularity(b)) / TEMPERATURE).
const TEMPERATURE: f64 = 0.5;
/// How often a picture follows one point of its request, as by a text-to-image model of middling quality.
const OBEDIENCE: f64 = 0.6;
/// Quality of the JPEG pictures; the others are PNG.
const JPEG_QUALITY: u8 = 92;
/// Column by column: what a trainer needs, then what was asked for, to slice by.
const COLUMNS: [&str; 6] = ["prompt", "pos_path", "neg_path", "shape", "colour", "background"];

/// How many triplets to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TripletCounts {
    pub(crate) train: usize,
    pub(crate) validation: usize,
    pub(crate) test: usize,
}

/// One split as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Split {
    /// The parquet file; the paths in it are relative to its folder.
    pub(crate) file: PathBuf,
    pub(crate) triplets: usize,
    /// Distinct prompts; none occurs in another split.
    pub(crate) prompts: usize,
    /// Expected accuracy of a scorer that knows the formula: users are noisy, nothing can be right more often.
    pub(crate) ceiling: f64,
}

/// What [`write_triplets`] wrote.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written {
    pub(crate) train: Split,
    pub(crate) validation: Split,
    pub(crate) test: Split,
}

/// Writes `train.parquet`, `validation.parquet`, `test.parquet` and the pictures under `images/`. The same seed gives the
/// same bytes. Seven requests in ten are for training, one for validation, two for
/// the test.
///
/// # Errors
/// A count of zero, or a file that cannot be written.
pub(crate) fn write_triplets(folder: &Path, seed: u64, counts: TripletCounts) -> Result<Written> {
    let TripletCounts { train, validation, test } = counts;
    ensure!(
        train > 0 && validation > 0 && test > 0,
        "every split of the toy data needs at least one triplet: --triplets is at least 1"
    );
    let mut requests = Request::all();
    requests.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let (for_test, rest) = requests.split_at(requests.len().div_ceil(5));
    let (for_validation, for_training) = rest.split_at(requests.len().div_ceil(10));
    let split = |stream, name, requests, triplets| {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        write_split(folder, name, requests, triplets, &mut generator).with_context(|| format!("toy data, {name} split"))
    };
    Ok(Written {
        train: split(1, "train", for_training, train)?,
        validation: split(2, "validation", for_validation, validation)?,
        test: split(3, "test", for_test, test)?,
    })
}

fn write_split(
    folder: &Path,
    name: &str,
    requests: &[Request],
    triplets: usize,
    generator: &mut impl Rng,
) -> Result<Split> {
    fs_err::create_dir_all(folder.join("images").join(name))?;
    let mut rows = Vec::with_capacity(triplets);
    let mut ceiling = 0.0;
    for index in 0..triplets {
        let request = requests.choose(generator).context("a split without requests")?;
        let scenes = [draw_scene(request, generator), draw_scene(request, generator)];
        let [first, second] = scenes.each_ref().map(|scene| popularity(request, scene));
        let first_preferred = 1.0 / (1.0 + ((second - first) / TEMPERATURE).exp());
        ceiling += first_preferred.max(1.0 - first_preferred);
        let [positive, negative] = if generator.random_bool(first_preferred) { [0, 1] } else { [1, 0] };
        let mut write = |role: &str, scene: &Scene| {
            write_picture(folder, &format!("images/{name}/{index:05}-{role}"), scene, generator)
        };
        let paths = [write("pos", &scenes[positive])?, write("neg", &scenes[negative])?];
        rows.push(row(request, worded(&request.to_string(), generator), paths));
    }
    let file = folder.join(format!("{name}.parquet"));
    write_parquet(&file, &rows)?;
    let mut prompts: Vec<_> = rows.iter().map(|[prompt, ..]| prompt).collect();
    prompts.sort_unstable();
    prompts.dedup();
    Ok(Split { file, triplets, prompts: prompts.len(), ceiling: ceiling / triplets as f64 })
}

/// In the order of [`COLUMNS`].
pub(super) fn row(request: &Request, prompt: String, [positive, negative]: [String; 2]) -> [String; COLUMNS.len()] {
    let background = request.background.map_or("any", Background::word);
    [prompt, positive, negative, request.shape.word().into(), request.colour.word().into(), background.into()]
}

/// The same request is worded in three ways.
pub(super) fn worded(request: &str, generator: &mut impl Rng) -> String {
    match generator.random_range(0..3) {
        0 => format!("a picture of {request}"),
        1 => format!("draw {request}"),
        _ => request.to_owned(),
    }
}

fn draw_scene(request: &Request, generator: &mut impl Rng) -> Scene {
    fn follow<T: Copy>(wanted: Option<T>, members: &[T], generator: &mut impl Rng) -> T {
        let any = members[generator.random_range(0..members.len())];
        if generator.random_bool(OBEDIENCE) { wanted.unwrap_or(any) } else { any }
    }
    Scene {
        shape: follow(Some(request.shape), Shape::ALL, generator),
        colour: follow(Some(request.colour), Colour::ALL, generator),
        background: follow(request.background, Background::ALL, generator),
        ..Scene::random(generator)
    }
}

/// Writes a PNG or a JPEG, by the toss of a coin, and gives its path as the parquet file has it.
pub(super) fn write_picture(folder: &Path, stem: &str, scene: &Scene, generator: &mut impl Rng) -> Result<String> {
    let pixels = render(scene, SIDE);
    let mut bytes = Vec::new();
    let extension = if generator.random_bool(0.5) {
        PngEncoder::new(&mut bytes).write_image(&pixels, SIDE, SIDE, ExtendedColorType::Rgb8)?;
        "png"
    } else {
        JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(
            &pixels,
            SIDE,
            SIDE,
            ExtendedColorType::Rgb8,
        )?;
        "jpg"
    };
    let path = format!("{stem}.{extension}");
    fs_err::write(folder.join(&path), bytes)?;
    Ok(path)
}

pub(super) fn write_parquet(file: &Path, rows: &[[String; COLUMNS.len()]]) -> Result<()> {
    let values = |index: usize| Column::Text(rows.iter().map(|row| row[index].clone()).collect());
    let columns: Vec<_> = COLUMNS.iter().enumerate().map(|(index, name)| (*name, values(index))).collect();
    Ok(parquet_writer::write(file, &columns)?)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;

    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    use super::*;

    const COUNTS: TripletCounts = TripletCounts { train: 300, validation: 60, test: 60 };

    pub(in crate::demo) fn rows(file: &Path) -> Vec<[String; COLUMNS.len()]> {
        let reader = SerializedFileReader::try_from(file).unwrap();
        let rows = reader.get_row_iter(None).unwrap().map(Result::unwrap);
        rows.map(|row| std::array::from_fn(|column| row.get_string(column).unwrap().clone())).collect()
    }

    #[test]
    fn writes_three_splits_that_share_no_prompt() {
        let folder = tempfile::tempdir().unwrap();
        let written = write_triplets(folder.path(), 1, COUNTS).unwrap();
        let mut seen = HashSet::new();
        let mut formats = HashSet::new();
        for (split, triplets) in [(&written.train, 300), (&written.validation, 60), (&written.test, 60)] {
            let rows = rows(&split.file);
            assert_eq!((rows.len(), split.triplets), (triplets, triplets));
            let prompts: HashSet<String> = rows.iter().map(|row| row[0].clone()).collect();
            assert_eq!(prompts.len(), split.prompts);
            assert!(prompts.is_disjoint(&seen), "{:?}", prompts.intersection(&seen).next());
            seen.extend(prompts);
            assert!((0.80..=0.95).contains(&split.ceiling), "{split:?}");
            for path in rows.iter().flat_map(|row| &row[1..3]) {
                let picture = image::open(folder.path().join(path)).unwrap();
                assert_eq!((picture.width(), picture.height()), (SIDE, SIDE));
                formats.insert(path.rsplit('.').next().unwrap().to_owned());
            }
        }
        assert_eq!(formats.len(), 2);
    }

    #[test]
    fn the_seed_decides_every_byte() {
        let write = |seed| {
            let folder = tempfile::tempdir().unwrap();
            let counts = TripletCounts { train: 5, validation: 1, test: 1 };
            let split = write_triplets(folder.path(), seed, counts).unwrap().train;
            let paths = rows(&split.file).into_iter().flat_map(|[_, positive, negative, ..]| [positive, negative]);
            let pictures: Vec<_> = paths.map(|path| fs_err::read(folder.path().join(path)).unwrap()).collect();
            (fs_err::read(&split.file).unwrap(), pictures)
        };
        assert_eq!(write(3), write(3));
        assert_ne!(write(3).0, write(4).0);
    }

    #[test]
    fn an_empty_split_is_refused() {
        let counts = TripletCounts { test: 0, ..COUNTS };
        assert!(write_triplets(Path::new("unused"), 0, counts).unwrap_err().to_string().contains("at least one"));
    }
}
