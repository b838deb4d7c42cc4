//! The order of training data, as functions of the run's seed and the step alone. So a resumed run goes on as it would have, and
//! many processes share one order.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// A permutation of `count` items per epoch that depends on the seed, the kind of items and the epoch only.
pub struct Order {
    count: usize,
    seed: u64,
    kind: &'static str,
    shuffled: Option<(usize, Vec<u32>)>,
}

impl Order {
    /// The order of training triplets.
    pub fn of_rows(count: usize, seed: u64) -> Self {
        Self { count, seed, kind: "shuffle", shuffled: None }
    }

    /// The order of training prompts, or of pictures.
    pub fn of_prompts(count: usize, seed: u64) -> Self {
        Self { count, seed, kind: "prompts", shuffled: None }
    }

    /// Steps of `size` items in an epoch, the last of which may be short.
    pub fn steps_per_epoch(&self, size: usize) -> usize {
        self.count.div_ceil(size)
    }

    /// The items of step `step` (from 1) where the last batch of an epoch may be short.
    pub fn batch(&mut self, step: usize, size: usize) -> Vec<usize> {
        let steps = self.steps_per_epoch(size);
        let (epoch, first) = ((step - 1).div_euclid(steps) + 1, (step - 1) % steps * size);
        let last = self.count.min(first + size);
        (first..last).map(|place| self.item(epoch, place)).collect()
    }

    /// The items of step `step` (from 1) where every batch is full and epochs run into one another.
    pub fn full_batch(&mut self, step: usize, size: usize) -> Vec<usize> {
        let first = (step - 1) * size;
        (first..first + size).map(|slot| self.item(slot.div_euclid(self.count), slot % self.count)).collect()
    }

    fn item(&mut self, epoch: usize, place: usize) -> usize {
        if self.shuffled.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let mut order: Vec<u32> = (0..self.count as u32).collect();
            let key = blake3::hash(format!("{}/{}/{epoch}", self.seed, self.kind).as_bytes());
            order.shuffle(&mut ChaCha8Rng::from_seed(*key.as_bytes()));
            self.shuffled = Some((epoch, order));
        }
        self.shuffled.as_ref().map_or(0, |(_, order)| order[place] as usize)
    }
}

/// The effective seed of image `index` of the part of a run called `part` (`step/12`, `held-out`, …).
pub fn image_seed(seed: u64, part: &str, index: usize) -> u64 {
    let hash = blake3::hash(format!("{seed}/{part}/{index}").as_bytes());
    hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_takes_every_row_once_in_another_order() {
        let mut order = Order::of_rows(10, 3);
        let mut epochs = Vec::new();
        for first in [1, 4] {
            let batches: Vec<Vec<usize>> = (first..first + 3).map(|step| order.batch(step, 4)).collect();
            assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
            epochs.push(batches.concat());
        }
        assert_ne!(epochs[0], epochs[1]);
        for mut epoch in epochs {
            epoch.sort_unstable();
            assert_eq!(epoch, (0..10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_prompt_comes_once_an_epoch_wherever_one_starts() {
        let mut order = Order::of_prompts(5, 7);
        let whole: Vec<usize> = (1..=5).flat_map(|step| order.full_batch(step, 2)).collect();
        for epoch in whole.chunks(5) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert_eq!(Order::of_prompts(5, 7).full_batch(4, 2), whole[6..8]);
        assert_ne!(Order::of_prompts(5, 8).full_batch(1, 5), Order::of_prompts(5, 7).full_batch(1, 5));
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
