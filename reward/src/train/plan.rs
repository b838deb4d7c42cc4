//! Which rows a step takes.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{config::TrainConfig, encoder::Examples};
use crate::data::triplets::Triplet;

/// A permutation of the rows per epoch that depends on the seed and the epoch only.
pub(super) struct Plan<'a> {
    rows: &'a [Triplet],
    seed: u64,
    batch_size: usize,
    order: Option<(usize, Vec<u32>)>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(config: &TrainConfig, examples: &'a Examples) -> Self {
        Self { rows: &examples.triplets.rows, seed: config.seed, batch_size: config.batch_size, order: None }
    }

    pub(super) fn steps_per_epoch(&self) -> usize {
        self.rows.len().div_ceil(self.batch_size)
    }

    /// The epoch of step `step`, both counted from 1.
    pub(super) fn epoch(&self, step: usize) -> usize {
        (step - 1).div_euclid(self.steps_per_epoch()) + 1
    }

    /// The rows of step `step` (from 1); the last batch of an epoch may be short.
    pub(super) fn batch(&mut self, step: usize) -> Vec<Triplet> {
        let epoch = self.epoch(step);
        if self.order.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let mut order: Vec<u32> = (0..self.rows.len() as u32).collect();
            let key = blake3::hash(format!("{}/shuffle/{epoch}", self.seed).as_bytes());
            order.shuffle(&mut ChaCha8Rng::from_seed(*key.as_bytes()));
            self.order = Some((epoch, order));
        }
        let start = (step - 1) % self.steps_per_epoch() * self.batch_size;
        let order = self.order.iter().flat_map(|(_, order)| order);
        order.skip(start).take(self.batch_size).map(|row| self.rows[*row as usize]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_takes_every_row_once_in_another_order() {
        let rows: Vec<Triplet> = (0..10).map(|row| Triplet { prompt: row, positive: row, negative: row }).collect();
        let mut plan = Plan { rows: &rows, seed: 3, batch_size: 4, order: None };
        let mut epochs = Vec::new();
        for first in [1, 4] {
            let batches: Vec<Vec<Triplet>> = (first..first + 3).map(|step| plan.batch(step)).collect();
            assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
            epochs.push(batches.concat().iter().map(|row| row.prompt).collect::<Vec<_>>());
        }
        assert_ne!(epochs[0], epochs[1]);
        for mut epoch in epochs {
            epoch.sort_unstable();
            assert_eq!(epoch, (0..10).collect::<Vec<_>>());
        }
        assert_eq!((plan.epoch(3), plan.epoch(4)), (1, 2));
    }
}
