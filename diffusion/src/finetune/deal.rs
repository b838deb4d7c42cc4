//! Which prompt and which seed each image of a step has: functions of the run's seed and the step alone, so that a resumed run
//! goes on as it would have, and many machines can share one order.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// A permutation of the items per epoch that depends on the seed and the epoch only.
pub(super) struct Deal {
    count: usize,
    seed: u64,
    order: Option<(usize, Vec<u32>)>,
}

impl Deal {
    /// Over `count` items.
    pub(super) fn new(count: usize, seed: u64) -> Self {
        Self { count, seed, order: None }
    }

    /// The items of step `step` (from 1) where each step takes `wanted`; epochs run into one another.
    pub(super) fn step(&mut self, step: usize, wanted: usize) -> Vec<usize> {
        let first = (step - 1) * wanted;
        (first..first + wanted).map(|slot| self.item(slot)).collect()
    }

    fn item(&mut self, slot: usize) -> usize {
        let (epoch, place) = (slot.div_euclid(self.count), slot % self.count);
        if self.order.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let mut order: Vec<u32> = (0..self.count as u32).collect();
            let key = blake3::hash(format!("{}/prompts/{epoch}", self.seed).as_bytes());
            order.shuffle(&mut ChaCha8Rng::from_seed(*key.as_bytes()));
            self.order = Some((epoch, order));
        }
        self.order.as_ref().map_or(0, |(_, order)| order[place] as usize)
    }
}

/// The effective seed of image `index` of the part of the run called `part` (`step/12`, `held-out`, …).
pub(super) fn image_seed(seed: u64, part: &str, index: usize) -> u64 {
    let hash = blake3::hash(format!("{seed}/{part}/{index}").as_bytes());
    hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_comes_once_an_epoch_wherever_one_starts() {
        let mut deal = Deal::new(5, 7);
        let whole: Vec<usize> = (1..=5).flat_map(|step| deal.step(step, 2)).collect();
        for epoch in whole.chunks(5) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert_eq!(Deal::new(5, 7).step(4, 2), whole[6..8]);
        assert_ne!(Deal::new(5, 8).step(1, 5), Deal::new(5, 7).step(1, 5));
    }

    #[test]
    fn seeds_differ_by_part_and_index() {
        let seeds = [image_seed(0, "a", 0), image_seed(0, "a", 1), image_seed(0, "b", 0), image_seed(1, "a", 0)];
        for (place, seed) in seeds.iter().enumerate() {
            assert!(!seeds[..place].contains(seed));
        }
        assert_eq!(seeds[0], image_seed(0, "a", 0));
    }
}
