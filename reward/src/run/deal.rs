//! Which rows of a batch are whose, where several ranks keep what they have computed of a row.

use super::order::Order;
use crate::world::shard::Shard;

/// Deals batches to ranks, as many rows to each as its share. As far as that allows they are those that it had in the first
/// epoch.
pub struct Deal {
    rank: usize,
    size: usize,
    /// The rank that had a row in the first epoch; empty where there is one rank.
    homes: Vec<u16>,
}

impl Deal {
    /// For rank `rank` of `size` and batches of `batch_size` rows in the order `order`.
    pub fn new(rank: usize, size: usize, order: &mut Order, batch_size: usize) -> Self {
        let mut homes = Vec::new();
        for step in 1..=if size > 1 { order.steps_per_epoch(batch_size) } else { 0 } {
            let batch = order.batch(step, batch_size);
            for rank in 0..size {
                for row in &batch[share(rank, size, batch.len())] {
                    homes.resize(homes.len().max(row + 1), 0);
                    homes[*row] = rank as u16;
                }
            }
        }
        Self { rank, size, homes }
    }

    /// The rows of a batch that are this rank's. All ranks together have each row once.
    pub fn own(&self, batch: &[usize]) -> Vec<usize> {
        if self.size == 1 {
            return batch.to_vec();
        }
        let room: Vec<usize> = (0..self.size).map(|rank| share(rank, self.size, batch.len()).len()).collect();
        let mut dealt = vec![Vec::new(); self.size];
        let mut rest = Vec::new();
        for row in batch {
            let home = usize::from(self.homes[*row]);
            if dealt[home].len() < room[home] { dealt[home].push(*row) } else { rest.push(*row) }
        }
        let mut rest = rest.into_iter();
        for (rows, room) in dealt.iter_mut().zip(room) {
            let more = room - rows.len();
            rows.extend(rest.by_ref().take(more));
        }
        dealt.swap_remove(self.rank)
    }
}

fn share(rank: usize, size: usize, count: usize) -> std::ops::Range<usize> {
    Shard { index: rank, count: size }.of(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_dealt_once_evenly_and_mostly_to_the_rank_that_had_it() {
        let (rows, batch_size, size) = (1000, 40, 4);
        let deals: Vec<Deal> =
            (0..size).map(|rank| Deal::new(rank, size, &mut Order::of_rows(rows, 0), batch_size)).collect();
        let mut order = Order::of_rows(rows, 0);
        let steps = order.steps_per_epoch(batch_size);
        let mut seen = vec![vec![false; rows]; size];
        let mut again = 0;
        for step in 1..=2 * steps {
            let batch = order.batch(step, batch_size);
            let dealt: Vec<Vec<usize>> = deals.iter().map(|deal| deal.own(&batch)).collect();
            assert!(dealt.iter().all(|rows| rows.len() == batch_size.div_euclid(size)));
            for (rank, rows) in dealt.iter().enumerate() {
                for row in rows {
                    again += usize::from(std::mem::replace(&mut seen[rank][*row], true));
                }
            }
            let (mut all, mut wanted) = (dealt.concat(), batch);
            all.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(all, wanted);
        }
        // By chance it would be a quarter of the second epoch.
        assert!(again > 800, "{again}");
        assert_eq!(Deal::new(0, 1, &mut order, batch_size).own(&[3, 1]), [3, 1]);
    }
}
