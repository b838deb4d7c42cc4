//! Which images a run makes: for each, its prompt, its place and its seed.

/// One image to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedImage {
    /// The place among all images, prompt-major.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
