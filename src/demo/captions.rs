//! The toy world as pictures with captions, without some combinations of shape and colour. These become prompts for pictures that
//! neither the text-to-image model nor the CLIP, whose word embeddings it reads, has ever seen.

use std::path::Path;

use anyhow::Result;
use rand::{Rng, RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{
    world::{Colour, Request, Scene, Shape},
    write::{row, worded, write_parquet, write_picture},
};

/// From this vividness on, a caption that speaks of it calls a subject vivid.
const VIVID: f32 = 0.7;

/// A picture as it was asked for, as it came out, and its path.
type Captioned = (Request, Scene, String);

/// Writes the prompts `prompts.txt` and `held-out.txt`, of each shape one colour in the latter only, and under `images/captions/`
/// `count` pictures of the former. The same seed gives the same bytes.
///
/// `captions.csv` (`prompt`, `path`) has them as a text-to-image model learns from them. `captions.parquet` has them as a CLIP
/// does, each beside another picture. There every other caption, by the toss of a coin, says whether the colour is pale or vivid.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write_captions(folder: &Path, seed: u64, count: usize) -> Result<()> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(4);
    let (mut shapes, mut colours) = (Shape::ALL.to_vec(), Colour::ALL.to_vec());
    shapes.shuffle(&mut generator);
    colours.shuffle(&mut generator);
    let held_out: Vec<_> = shapes.into_iter().zip(colours).collect();
    let (held_out, shown): (Vec<Request>, Vec<Request>) =
        Request::all().into_iter().partition(|request| held_out.contains(&(request.shape, request.colour)));
    let mut requests = shown.clone();
    requests.shuffle(&mut generator);
    let pictures = write_pictures(folder, requests, count, &mut generator)?;
    let pairs: String = pictures.iter().map(|(request, _, path)| format!("{request},{path}\n")).collect();
    fs_err::write(folder.join("captions.csv"), format!("prompt,path\n{pairs}"))?;
    for (name, requests) in [("prompts.txt", shown), ("held-out.txt", held_out)] {
        fs_err::write(folder.join(name), requests.iter().map(|request| format!("{request}\n")).collect::<String>())?;
    }
    let others = pictures.iter().skip(1).chain(&pictures[..1]);
    let mut triplet = |((request, scene, path), (.., other)): (&Captioned, &Captioned)| {
        let subject = if generator.random_bool(0.5) {
            request.to_string()
        } else if scene.vividness < VIVID {
            request.described("pale")
        } else {
            request.described("vivid")
        };
        row(request, worded(&subject, &mut generator), [path.clone(), other.clone()])
    };
    let triplets: Vec<_> = pictures.iter().zip(others).map(&mut triplet).collect();
    write_parquet(&folder.join("captions.parquet"), &triplets)
}

/// Writes `count` pictures of what is asked for, the requests in turn, and gives each with its scene and path.
fn write_pictures(
    folder: &Path,
    requests: Vec<Request>,
    count: usize,
    generator: &mut impl Rng,
) -> Result<Vec<Captioned>> {
    fs_err::create_dir_all(folder.join("images/captions"))?;
    let write = |(index, request): (usize, Request)| {
        let scene = Scene::random(generator);
        let background = request.background.unwrap_or(scene.background);
        let scene = Scene { shape: request.shape, colour: request.colour, background, ..scene };
        let path = write_picture(folder, &format!("images/captions/{index:05}"), &scene, generator)?;
        Ok((request, scene, path))
    };
    requests.into_iter().cycle().take(count).enumerate().map(write).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::write::tests::rows;

    #[test]
    fn held_out_combinations_are_in_no_caption() {
        let folder = tempfile::tempdir().unwrap();
        write_captions(folder.path(), 3, 80).unwrap();
        let read = |name: &str| fs_err::read_to_string(folder.path().join(name)).unwrap();
        let (table, prompts, held_out) = (read("captions.csv"), read("prompts.txt"), read("held-out.txt"));
        assert_eq!((table.lines().count(), prompts.lines().count(), held_out.lines().count()), (81, 80, 16));
        for combination in held_out.lines() {
            assert!(!table.contains(combination), "{combination}");
        }
        for [_, _, _, shape, colour, _] in rows(&folder.path().join("captions.parquet")) {
            let combination = format!("a {colour} {shape}");
            assert!(held_out.lines().all(|prompt| prompt != combination), "{combination}");
        }
        for (_, path) in table.lines().skip(1).map(|row| row.split_once(',').unwrap()) {
            assert!(folder.path().join(path).is_file());
        }
    }
}
