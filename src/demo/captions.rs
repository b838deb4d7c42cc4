//! The toy world as pictures with captions, for a text-to-image model: some combinations of shape and colour are left out and
//! become prompts that the model has never seen.

use std::path::Path;

use anyhow::Result;
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{
    world::{Background, Colour, Request, SIZES, Scene, Shape, Style},
    write::write_picture,
};

/// Combinations of the thirty that no caption shows.
const HELD_OUT: usize = 6;

/// Writes `captions.csv` (`prompt`, `path`) with `count` pictures under `images/captions/`, and the prompts `prompts.txt` and
/// `held-out.txt`, which share no combination of shape and colour. The same seed gives the same bytes.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write_captions(folder: &Path, seed: u64, count: usize) -> Result<()> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(4);
    let mut combinations: Vec<(Shape, Colour)> =
        Shape::ALL.iter().flat_map(|shape| Colour::ALL.iter().map(|colour| (*shape, *colour))).collect();
    combinations.shuffle(&mut generator);
    let (held_out, shown) = combinations.split_at(HELD_OUT);
    fs_err::create_dir_all(folder.join("images/captions"))?;
    let mut table = "prompt,path\n".to_owned();
    for index in 0..count {
        let (shape, colour) = shown[index % shown.len()];
        let size = generator.random_range(SIZES.0..SIZES.1);
        let scene = Scene {
            shape,
            colour,
            size,
            position: [(); 2].map(|()| generator.random_range(size..1.0 - size)),
            background: Background::ALL[generator.random_range(0..Background::ALL.len())],
            style: Style::ALL[generator.random_range(0..Style::ALL.len())],
        };
        // A caption says the shape and its colour, and the rest every other time.
        let request = Request {
            shape,
            colour,
            background: generator.random_bool(0.5).then_some(scene.background),
            style: generator.random_bool(0.5).then_some(scene.style),
        };
        let path = write_picture(folder, &format!("images/captions/{index:05}"), &scene, &mut generator)?;
        table += &format!("{request},{path}\n");
    }
    fs_err::write(folder.join("captions.csv"), table)?;
    for (name, combinations) in [("prompts.txt", shown), ("held-out.txt", held_out)] {
        let prompts = combinations.iter().map(|(shape, colour)| {
            let request = Request { shape: *shape, colour: *colour, background: None, style: None };
            format!("{request}\n")
        });
        fs_err::write(folder.join(name), prompts.collect::<String>())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_combinations_are_in_no_caption() {
        let folder = tempfile::tempdir().unwrap();
        write_captions(folder.path(), 3, 48).unwrap();
        let read = |name: &str| fs_err::read_to_string(folder.path().join(name)).unwrap();
        let (table, prompts, held_out) = (read("captions.csv"), read("prompts.txt"), read("held-out.txt"));
        assert_eq!((table.lines().count(), prompts.lines().count(), held_out.lines().count()), (49, 24, 6));
        for combination in held_out.lines().map(|prompt| prompt.split_once(' ').unwrap().1) {
            assert!(!table.contains(combination), "{combination}");
        }
        for (_, path) in table.lines().skip(1).map(|row| row.split_once(',').unwrap()) {
            assert!(folder.path().join(path).is_file());
        }
    }
}
