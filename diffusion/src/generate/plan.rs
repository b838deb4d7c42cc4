//! Which images a run makes: for each, its prompt, its place and its seed. What is on disk decides what is left.

use std::path::Path;

use reward::data::image::png_is_whole;
use serde_json::Value;

use super::picture;
use crate::{Error, Result};

/// One image to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedImage {
    /// Its place among all images, prompt-major.
    pub number: usize,
    /// Index of its prompt.
    pub prompt_index: usize,
    /// Counts the images of one prompt, from 0.
    pub index: usize,
    /// The effective seed: the run's plus `index`, from 0 on after 2⁶⁴ − 1. The noise depends on it and on the shape only.
    pub seed: u64,
}

impl PlannedImage {
    /// The file, relative to the run's folder.
    pub fn path(&self) -> String {
        format!("images/{:05}-{}.png", self.prompt_index, self.index)
    }
}

/// All images of a run, prompt-major.
pub fn all(prompts: usize, images_per_prompt: usize, seed: u64) -> Vec<PlannedImage> {
    let image = |number: usize| {
        let (prompt_index, index) = (number.div_euclid(images_per_prompt), number % images_per_prompt);
        PlannedImage { number, prompt_index, index, seed: seed.wrapping_add(index as u64) }
    };
    (0..prompts * images_per_prompt).map(image).collect()
}

/// What there is of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No file.
    Missing,
    /// A PNG that is cut off or damaged.
    Damaged,
    /// The whole image.
    Finished,
}

/// What there is of the image in `folder`, whose [settings](picture::settings) are `wanted`.
///
/// # Errors
/// There is a file by its name that is no such image: of another program or of other settings.
pub fn state(folder: &Path, image: &PlannedImage, wanted: &Value) -> Result<State> {
    let path = folder.join(image.path());
    if !path.exists() {
        return Ok(State::Missing);
    }
    let bytes = fs_err::read(&path)?;
    let state = if png_is_whole(&bytes) { State::Finished } else { State::Damaged };
    let place = path.display();
    let Some(found) = picture::settings_of(&bytes) else {
        // The beginning of a PNG that does not reach to its settings, or nothing at all.
        const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
        if state == State::Damaged && SIGNATURE.starts_with(&bytes[..bytes.len().min(SIGNATURE.len())]) {
            return Ok(state);
        }
        return Err(Error::usage(format!("{place} is not an image of this program"))
            .hint("remove it, or give another --output"));
    };
    // Another version may know other settings.
    let differs = |name: &&String| *name != "version" && found.get(*name).is_some_and(|found| *found != wanted[*name]);
    match wanted.as_object().and_then(|wanted| wanted.keys().find(differs)) {
        None => Ok(state),
        Some(name) => {
            let (found, wanted) = (&found[name], &wanted[name]);
            let message =
                format!("{place} was made with {name} {found}, wanted {wanted}: the folder holds another run");
            Err(Error::usage(message).hint("give another --output"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::GenerateConfig, *};

    #[test]
    fn images_are_prompt_major_and_share_seeds_across_prompts() {
        let images = all(2, 3, 40);
        let seen: Vec<_> = images.iter().map(|image| (image.path(), image.seed)).collect();
        let names = ["00000-0", "00000-1", "00000-2", "00001-0", "00001-1", "00001-2"];
        let wanted: Vec<_> = names
            .iter()
            .zip([40, 41, 42, 40, 41, 42])
            .map(|(name, seed)| (format!("images/{name}.png"), seed))
            .collect();
        assert_eq!(seen, wanted);
        assert!(images.iter().enumerate().all(|(number, image)| image.number == number));
        let seeds: Vec<u64> = all(1, 3, u64::MAX - 1).iter().map(|image| image.seed).collect();
        assert_eq!(seeds, [u64::MAX - 1, u64::MAX, 0]);
    }

    #[test]
    fn only_a_whole_image_of_the_same_settings_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("images")).unwrap();
        let config = GenerateConfig { model: Some("sd".to_owned()), steps: 20, ..GenerateConfig::default() };
        let image = PlannedImage { number: 0, prompt_index: 0, index: 0, seed: 7 };
        let path = folder.path().join(image.path());
        let wanted = |prompt: &str, config: &GenerateConfig| picture::settings(config, &image, prompt, (8, 8));
        let state = |wanted: &Value| state(folder.path(), &image, wanted);
        let fox = wanted("a red fox", &config);
        assert_eq!(state(&fox).unwrap(), State::Missing);

        let pixels = picture::Picture { width: 8, height: 8, rgb: (0..192).collect() };
        picture::write(&path, &pixels, &config, &image, "a red fox").unwrap();
        assert_eq!(state(&fox).unwrap(), State::Finished);
        let other = GenerateConfig { steps: 50, ..config.clone() };
        for (wanted, name) in
            [(wanted("an owl", &config), "prompt"), (wanted("a red fox", &other), "steps 20, wanted 50")]
        {
            let error = state(&wanted).unwrap_err();
            assert!(error.to_string().contains(name) && error.hint_text().unwrap().contains("--output"), "{error}");
        }

        let whole = fs_err::read(&path).unwrap();
        for length in 0..whole.len() {
            fs_err::write(&path, &whole[..length]).unwrap();
            assert_eq!(state(&fox).unwrap(), State::Damaged, "{length} of {} bytes", whole.len());
        }
        let pixel_data = whole.windows(4).position(|name| name == b"IDAT").unwrap() + 10;
        for place in pixel_data..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs_err::write(&path, &damaged).unwrap();
            assert_eq!(state(&fox).unwrap(), State::Damaged, "byte {place}");
        }
        fs_err::write(&path, "my notes").unwrap();
        assert!(state(&fox).unwrap_err().to_string().contains("is not an image of this program"));
    }
}
