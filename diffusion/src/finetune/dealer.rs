//! Which items each round trains on: a function of the run's seed and the optimizer step alone.

use reward::run::order::{Order, image_seed};

use super::config::FinetuneConfig;
use crate::pictures::Pictures;

/// Deals prompts, pictures or pairs.
pub(super) struct Dealer {
    strata: Vec<Stratum>,
    /// How often each item of a round comes in turn.
    repeats: usize,
}

/// Items of which every round has so many.
struct Stratum {
    items: Vec<usize>,
    order: Order,
    count: usize,
}

impl Stratum {
    fn new(items: Vec<usize>, seed: u64, count: usize) -> Self {
        Self { order: Order::of_prompts(items.len(), seed), items, count }
    }
}

impl Dealer {
    /// Deals `prompts` prompts, or the pictures of a run that trains on those.
    pub(super) fn new(config: &FinetuneConfig, prompts: usize, pictures: &Pictures) -> Self {
        let (seed, batch) = (config.seed, config.batch_size);
        if !config.on_pictures() {
            let repeats = config.group();
            return Self {
                strata: vec![Stratum::new((0..prompts).collect(), seed, batch.div_euclid(repeats))],
                repeats,
            };
        }
        let training = pictures.training();
        if !pictures.has_likes() {
            return Self { strata: vec![Stratum::new(training, seed, batch)], repeats: 1 };
        }
        let (liked, others): (Vec<usize>, Vec<usize>) = training.into_iter().partition(|row| pictures.is_liked(*row));
        // One of each at least, where a batch has room for both.
        let share = (config.liked_share * batch as f64).round() as usize;
        let count = share.clamp(1, batch.saturating_sub(1).max(1));
        let other_seed = image_seed(seed, "not liked", 0);
        let strata = vec![Stratum::new(liked, seed, count), Stratum::new(others, other_seed, batch - count)];
        Self { strata, repeats: 1 }
    }

    /// The items of round `round`, from 1, each as often in turn as images share it.
    pub(super) fn items(&mut self, round: usize) -> Vec<usize> {
        let mut dealt = Vec::new();
        for Stratum { items, order, count } in &mut self.strata {
            let places = if items.is_empty() { Vec::new() } else { order.full_batch(round, *count) };
            dealt.extend(places.into_iter().flat_map(|place| std::iter::repeat_n(items[place], self.repeats)));
        }
        dealt
    }
}
