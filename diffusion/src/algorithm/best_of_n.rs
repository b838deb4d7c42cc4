//! Best-of-n, or RAFT: "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment", Dong et al., 2023,
//! <https://arxiv.org/abs/2304.06767>, algorithm 1. The best of several images of each prompt is learned from.

use super::{Method, RewardUse, Samplers, rwr::Supervised};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "best-of-n",
    title: "the supervised loss on the best own image of each group",
    reward: RewardUse::Score,
    grouped: true,
    samplers: Samplers::Any,
    guidance_scale: 5.0,
    reads: &["inner_epochs", "minibatches", "scheduler"],
    build: |settings| {
        let group = settings.group;
        Box::new(Supervised { settings: *settings, weigh: Box::new(move |scores| best(scores, group)) })
    },
    ..Method::BACKPROP
};

/// 1 for the best image of each group of `size`, the first of those that are equally good, and 0 for the others.
fn best(scores: &[f64], size: usize) -> Vec<f64> {
    let group = |group: &[f64]| {
        let largest = group.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let place = group.iter().position(|score| *score == largest);
        (0..group.len()).map(|image| f64::from(u8::from(Some(image) == place))).collect::<Vec<_>>()
    };
    scores.chunks(size).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_each_group_counts() {
        assert_eq!(best(&[1.0, 3.0, 2.0, 5.0, 5.0, 4.0], 3), [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
    }
}
