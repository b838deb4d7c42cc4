//! Advantages: how much better an image is than others like it. Pure functions of rewards, one value an image.

use std::collections::VecDeque;

use reward::{closed_set, statistics::mean};

closed_set! {
    /// Whose deviation an advantage is divided by.
    pub enum Deviation: "deviation" {
        /// That of the image's own group (DeepSeekMath's GRPO).
        Group = "group",
        /// That of all images of the round (Flow-GRPO's `global_std`), so that groups of little spread count little.
        Batch = "batch",
    }
}

/// What keeps a group's deviation from 0, as in Flow-GRPO.
const GROUP_FLOOR: f64 = 1e-4;
/// The same for a prompt's or a batch's, as in ddpo-pytorch.
const FLOOR: f64 = 1e-6;

/// The deviation of a whole population, as numpy takes it: divided by n.
pub fn spread(values: &[f64]) -> f64 {
    let centre = mean(values);
    mean(&values.iter().map(|value| (value - centre).powi(2)).collect::<Vec<_>>()).sqrt()
}

/// (r − mean of the group) / (deviation + 1e-4), for groups of `size` images in turn ("Flow-GRPO", Liu et al., 2025,
/// <https://arxiv.org/abs/2505.05470>, equation 4). Groups whose rewards are all equal get 0.
pub fn of_groups(rewards: &[f64], size: usize, deviation: Deviation) -> Vec<f64> {
    let whole = spread(rewards);
    let group = |group: &[f64]| {
        let (centre, own) = (mean(group), spread(group));
        let unit = if deviation == Deviation::Group { own } else { whole } + GROUP_FLOOR;
        let even = is_even(group);
        group.iter().map(|reward| if even { 0.0 } else { (reward - centre) / unit }).collect::<Vec<_>>()
    };
    rewards.chunks(size).flat_map(group).collect()
}

/// Whether all images of a group have the same reward, so that it says nothing.
pub fn is_even(group: &[f64]) -> bool {
    group.windows(2).all(|pair| pair[0] == pair[1])
}

/// Several rewards, each normalised within its group, then added with `weights`, and the sum over the batch. No reward
/// dominates because its numbers are wide ("GDPO", 2026, <https://arxiv.org/abs/2601.05242>). `rewards`: a list for each weight.
pub fn combined(rewards: &[Vec<f64>], weights: &[f64], size: usize) -> Vec<f64> {
    let mut sums = vec![0.0; rewards.first().map_or(0, Vec::len)];
    for (rewards, weight) in rewards.iter().zip(weights) {
        for (sum, advantage) in sums.iter_mut().zip(of_groups(rewards, size, Deviation::Group)) {
            *sum += weight * advantage;
        }
    }
    let (centre, unit) = (mean(&sums), spread(&sums) + GROUP_FLOOR);
    sums.iter().map(|sum| (sum - centre) / unit).collect()
}

/// Rewards of each prompt's last images, against which new ones are judged, as ddpo-pytorch has it. See "Training Diffusion
/// Models with Reinforcement Learning", Black et al., 2023, <https://arxiv.org/abs/2305.13301>, section 5.1.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptStatistics {
    size: usize,
    least: usize,
    /// The latest rewards of each prompt, the newest last; fp32, as checkpoints hold them.
    buffers: Vec<VecDeque<f32>>,
}

impl PromptStatistics {
    /// Buffers of `size` rewards for each of `prompts`; one with fewer than `least` has no statistics of its own.
    pub fn new(prompts: usize, size: usize, least: usize) -> Self {
        Self { size, least, buffers: vec![VecDeque::new(); prompts] }
    }

    /// Adds the rewards of a batch and gives their advantages. An advantage is (r − mean) / (deviation + 1e-6) of the prompt's
    /// buffer, or of the batch where the buffer holds too few. `prompts`: the number of each image's prompt.
    pub fn advantages(&mut self, prompts: &[usize], rewards: &[f64]) -> Vec<f64> {
        for (prompt, reward) in prompts.iter().zip(rewards) {
            let buffer = &mut self.buffers[*prompt];
            buffer.push_back(*reward as f32);
            if buffer.len() > self.size {
                buffer.pop_front();
            }
        }
        let batch = (mean(rewards), spread(rewards));
        let of = |prompt: &usize| {
            let buffer: Vec<f64> = self.buffers[*prompt].iter().map(|reward| f64::from(*reward)).collect();
            if buffer.len() < self.least { batch } else { (mean(&buffer), spread(&buffer)) }
        };
        let advantage = |(prompt, reward): (&usize, &f64)| {
            let (centre, unit) = of(prompt);
            (reward - centre) / (unit + FLOOR)
        };
        prompts.iter().zip(rewards).map(advantage).collect()
    }

    /// The buffers as rows of equal length, and how many of each row count.
    pub fn rows(&self) -> (Vec<f32>, Vec<f32>) {
        let row = |buffer: &VecDeque<f32>| {
            let mut row: Vec<f32> = buffer.iter().copied().collect();
            row.resize(self.size, 0.0);
            row
        };
        (self.buffers.iter().flat_map(row).collect(), self.buffers.iter().map(|buffer| buffer.len() as f32).collect())
    }

    /// Sets the buffers to what [`Self::rows`] gave.
    pub fn set_rows(&mut self, rows: &[f32], counts: &[f32]) {
        for ((buffer, row), count) in self.buffers.iter_mut().zip(rows.chunks(self.size)).zip(counts) {
            *buffer = row[..(*count as usize).min(row.len())].iter().copied().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn groups_by_hand() {
        // Means 2 and 5, deviations 1 and 0; the deviation of all four is sqrt(2.75).
        let rewards = [1.0, 3.0, 5.0, 5.0];
        let unit = 1.0 + 1e-4;
        assert_eq!(of_groups(&rewards, 2, Deviation::Group), [-1.0 / unit, 1.0 / unit, 0.0, 0.0]);
        let unit = 2.75_f64.sqrt() + 1e-4;
        assert_eq!(of_groups(&rewards, 2, Deviation::Batch), [-1.0 / unit, 1.0 / unit, 0.0, 0.0]);
    }

    /// Rewards 100 times as wide count by their weight alone.
    #[test]
    fn a_wide_reward_does_not_rule() {
        let rewards = [vec![0.0, 1.0], vec![100.0, 0.0]];
        let narrow = combined(&rewards, &[1.0, 0.5], 2);
        assert!(narrow[1] > 0.9 && narrow[0] < -0.9, "{narrow:?}");
        let wide = combined(&rewards, &[0.5, 1.0], 2);
        assert!(wide[0] > 0.9 && wide[1] < -0.9, "{wide:?}");
    }

    #[test]
    fn a_prompt_is_judged_by_its_own_once_it_has_enough() {
        let mut statistics = PromptStatistics::new(2, 3, 3);
        let close = |found: &[f64], wanted: &[f64]| {
            assert!(found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-4), "{found:?}");
        };
        // Too few: the batch, mean 2 and deviation 1.
        close(&statistics.advantages(&[0, 1], &[1.0, 3.0]), &[-1.0, 1.0]);
        // Prompt 0 has 1, 2, 3: mean 2 and deviation sqrt(2 / 3).
        close(&statistics.advantages(&[0, 0], &[2.0, 3.0]), &[0.0, 1.5_f64.sqrt()]);
        // The oldest is gone: 2, 3, 7.
        close(&statistics.advantages(&[0], &[7.0]), &[3.0 / (14.0_f64 / 3.0).sqrt()]);
        let (rows, counts) = statistics.rows();
        assert_eq!((rows, counts), (vec![2.0, 3.0, 7.0, 3.0, 0.0, 0.0], vec![3.0, 1.0]));
    }

    proptest! {
        #[test]
        fn advantages_of_a_group_sum_to_nothing_and_follow_its_order(
            rewards in prop::collection::vec(-10.0_f64..10.0, 8), swap in 0_usize..4
        ) {
            for deviation in Deviation::ALL {
                let advantages = of_groups(&rewards, 4, deviation);
                for group in advantages.chunks(4) {
                    prop_assert!(group.iter().sum::<f64>().abs() < 1e-9);
                }
                let mut swapped = rewards.clone();
                swapped.swap(0, swap);
                let mut again = of_groups(&swapped, 4, deviation);
                again.swap(0, swap);
                for (found, wanted) in again.iter().zip(&advantages) {
                    prop_assert!((found - wanted).abs() < 1e-9);
                }
            }
        }

        #[test]
        fn statistics_survive_a_checkpoint(batches in prop::collection::vec((0_usize..3, -9.0_f64..9.0), 1..20)) {
            let mut statistics = PromptStatistics::new(3, 4, 2);
            for (prompt, reward) in batches {
                statistics.advantages(&[prompt], &[reward]);
            }
            let (rows, counts) = statistics.rows();
            let mut restored = PromptStatistics::new(3, 4, 2);
            restored.set_rows(&rows, &counts);
            prop_assert_eq!(restored, statistics);
        }
    }
}
