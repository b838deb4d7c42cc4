//! Watching for reward hacking on held-out prompts and fixed noise. It looks at the target beside everything else that should not
//! fall while it rises. Each image is held against the base model's image from the same noise.

use std::collections::BTreeMap;

use reward::{
    measures::PixelMeasure,
    run::order::image_seed,
    statistics::{deviation, intervals::bootstrap_mean_by_prompt, mean},
    world::World,
};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    layer::Handle,
    lora::delta,
    noise::Stream,
    objective::{Objective, Weighted, numbers},
    policy::{Batch, Policy},
    prompt_encoder::Embeddings,
    weights::Parameters,
};

/// The images that are made at every evaluation.
pub(super) struct HeldOut {
    /// The prompt of each image.
    pub(super) prompts: Vec<String>,
    /// The effective seed of each image.
    pub(super) seeds: Vec<u64>,
    latents: [i64; 3],
    /// Images made at a time.
    micro: usize,
}

/// Images of one state of the model, and what they measure.
pub(super) struct Snapshot {
    /// `[N, 3, H, W]`, 0..=1, on the CPU.
    pub(super) pixels: Tensor,
    /// What is to rise: the weighted, weighted rewards, a value an image.
    target: Vec<f64>,
    /// Raw rewards and measures of the image alone by name, a value an image.
    measures: BTreeMap<String, Vec<f64>>,
    /// Distance of ε from the base model's at a few noise levels.
    drift: f64,
    /// Norm of ε in units of the base model's: reward hacking inflates it.
    norm_ratio: f64,
}

/// Tuned images against base images.
pub(super) struct Comparison {
    /// Mean gain of the target.
    pub(super) gain: f64,
    /// Bootstrap 95 % interval of the gain over prompts.
    pub(super) interval: [f64; 2],
    /// The gain in deviations of the base, less those by which other measures fell beyond their noise.
    pub(super) composite: f64,
    /// Measures other than the target that fell beyond their noise.
    pub(super) fallen: Vec<String>,
    /// A line for `metrics.jsonl`, without its step.
    pub(super) line: Map<String, Value>,
}

impl HeldOut {
    /// `count` images of `prompts` in turn.
    pub(super) fn new(prompts: &[String], count: usize, seed: u64, latents: [i64; 3], micro: usize) -> Self {
        let prompts: Vec<String> = prompts.iter().cycle().take(count).cloned().collect();
        let seeds = (0..count).map(|index| image_seed(seed, "held-out", index)).collect();
        Self { prompts, seeds, latents, micro }
    }

    /// Makes the images with `policy` as it is, and measures them. Each rank makes its share; all have what they make.
    ///
    /// `progress` is told images done and in all after each batch; where it fails on any rank, all are interrupted.
    ///
    /// # Errors
    /// A reward fails, `progress` fails, or another rank is lost.
    pub(super) fn snapshot(
        &self,
        world: &World,
        policy: &Policy,
        objective: &Objective,
        embeddings: &Embeddings,
        progress: &dyn Fn(usize, usize) -> Result<()>,
    ) -> Result<Snapshot> {
        let mut pixels = Vec::new();
        let mut features = Vec::new();
        let names = PixelMeasure::ALL.map(|measure| measure.as_str().replace('-', "_"));
        let names: Vec<&str> = objective
            .rewards
            .iter()
            .map(|weighted| weighted.label.as_str())
            .chain(names.iter().map(String::as_str))
            .collect();
        let mut measures = vec![Vec::new(); names.len()];
        let (mut target, mut drift, mut norm_ratio) = (Vec::new(), Vec::new(), Vec::new());
        let steps = policy.sampler.timesteps().len();
        // By images: ranks may make more or fewer at a time.
        let own = world.share(self.prompts.len());
        let (prompts, seeds) = (&self.prompts[own.clone()], &self.seeds[own]);
        let (mut done, total, mut stopped) = (0, prompts.len(), false);
        for (prompts, seeds) in prompts.chunks(self.micro).zip(seeds.chunks(self.micro)) {
            let batch = Batch::new(prompts.to_vec(), embeddings.of(prompts), seeds.to_vec(), self.latents);
            let latents = policy.merged(|| Ok(policy.roll(&batch.noise(Stream::Latents), 0..steps, &batch)))?;
            let images = tch::no_grad(|| objective.decode(&latents));
            let scores = objective.score(&images, &batch)?;
            target.extend(scores.total);
            let pixel_measures = PixelMeasure::ALL.iter().map(|measure| numbers(&measure.of(&images)));
            for (all, values) in measures.iter_mut().zip(scores.raw.into_iter().map(Ok).chain(pixel_measures)) {
                all.extend(values?);
            }
            let [distance, ratio] = tch::no_grad(|| drift_of(policy, &latents, &batch));
            drift.push(distance * prompts.len() as f64);
            norm_ratio.push(ratio * prompts.len() as f64);
            features.extend(objective.rewards.iter().find_map(|weighted| weighted.reward.embeddings(&images)));
            pixels.push(images.to_device(Device::Cpu));
            done += prompts.len();
            stopped = progress(done, total).is_err();
            if stopped {
                break;
            }
        }
        if world.any(stopped)? {
            return Err(Error::interrupted());
        }
        let all = |own: &[f64]| world.numbers(own);
        let measures = names.iter().zip(&measures).map(|(name, values)| Ok(((*name).to_owned(), all(values)?)));
        let mut measures = measures.collect::<Result<BTreeMap<_, _>>>()?;
        // A rank may have none, and another some.
        let (features, pixels) = (world.all_rows(&features)?, world.all_rows(&pixels)?);
        if let Some(features) = features {
            measures.insert("diversity".to_owned(), numbers(&distance_to_others(&features))?);
        }
        let pixels = pixels.ok_or_else(|| Error::data("no held-out image was made"))?;
        let mean = |sums: &[f64]| Ok::<_, Error>(all(sums)?.iter().sum::<f64>() / self.prompts.len() as f64);
        Ok(Snapshot { pixels, target: all(&target)?, measures, drift: mean(&drift)?, norm_ratio: mean(&norm_ratio)? })
    }

    /// Compares what training made of the images with what they were.
    pub(super) fn compare(&self, tuned: &Snapshot, base: &Snapshot, rewards: &[Weighted]) -> Comparison {
        let prompts: Vec<&str> = self.prompts.iter().map(String::as_str).collect();
        let gains = differences(&tuned.target, &base.target);
        let interval = bootstrap_mean_by_prompt(&prompts, &gains, 0);
        let gain = mean(&gains);
        // In deviations of the base; what never differs there has no unit.
        let in_deviations = |change: f64, base: &[f64]| {
            let deviation = deviation(base);
            if deviation > 0.0 { change / deviation } else { 0.0 }
        };
        let mut composite = in_deviations(gain, &base.target);
        let mut line = Map::new();
        // One reward: its own unit. Several: their weighted sum, raw.
        let held_out: f64 =
            rewards.iter().map(|weighted| weighted.weight * mean(&tuned.measures[&weighted.label])).sum();
        line.insert("held_out_reward".to_owned(), json!(held_out));
        line.insert("epsilon_drift".to_owned(), json!(tuned.drift));
        line.insert("epsilon_norm_ratio".to_owned(), json!(tuned.norm_ratio));
        line.insert("gain".to_owned(), json!(gain));
        line.insert("gain_low".to_owned(), json!(interval.low));
        line.insert("gain_high".to_owned(), json!(interval.high));
        let target = rewards.iter().find(|weighted| weighted.weight != 0.0);
        let is_target = |name: &str| target.is_some_and(|weighted| weighted.label == name);
        let mut fallen = Vec::new();
        for (name, values) in &tuned.measures {
            line.insert(name.clone(), json!(mean(values)));
            let before = &base.measures[name];
            let changes = differences(values, before);
            let noise = 1.96 * deviation(&changes) / (changes.len() as f64).sqrt();
            if !is_target(name) && mean(&changes) < -noise {
                composite += in_deviations(mean(&changes), before);
                fallen.push(name.clone());
            }
        }
        line.insert("composite".to_owned(), json!(composite));
        Comparison { gain, interval: [interval.low, interval.high], composite, fallen, line }
    }
}

impl Snapshot {
    /// The values of one reward or measure.
    pub(super) fn measure(&self, name: &str) -> &[f64] {
        self.measures.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Mean squared distance of ε from the base model's, and its norm in units of theirs. `latents` are noised to a quarter, half and
/// three quarters of the way.
fn drift_of(policy: &Policy, latents: &Tensor, batch: &Batch) -> [f64; 2] {
    let steps = policy.sampler.timesteps().len();
    let each = [1, 2, 3].map(|quarter| {
        let index = (steps * quarter).div_euclid(4).min(steps - 1);
        let level = policy.level(index);
        let x = level.add_noise(latents, &batch.noise(Stream::Drift(quarter)));
        let epsilon = |output: &Tensor| level.epsilon(policy.prediction, output, &x);
        let (tuned, base) =
            (epsilon(&policy.predict(&x, index, batch)), epsilon(&policy.predict_base(&x, index, batch)));
        let norm = |epsilon: &Tensor| epsilon.square().sum(Kind::Double).sqrt().double_value(&[]);
        let distance = (&tuned - &base).square().mean(Kind::Float).double_value(&[]);
        [distance, norm(&tuned) / norm(&base)]
    });
    [0, 1].map(|figure| mean(&each.map(|quarter| quarter[figure])))
}

/// Mean cosine distance of each image's embedding from the others', `[N]`, of unit embeddings `[N, E]`.
fn distance_to_others(features: &Tensor) -> Tensor {
    let count = features.size()[0];
    let others = (count - 1).max(1) as f64;
    let sums = features.matmul(&features.transpose(0, 1)).sum_dim_intlist([1_i64].as_slice(), false, Kind::Float);
    // The image itself is at distance 0.
    (count as f64 - sums) / others
}

/// The Euclidean norm of all adapters' updates together; nothing where weights train.
pub(super) fn lora_norm(parameters: &Parameters) -> Option<f64> {
    if parameters.adapted.is_empty() {
        return None;
    }
    let squares = tch::no_grad(|| {
        let square = |adapter: &_| delta(adapter).square().sum(Kind::Float).double_value(&[]);
        parameters.adapted.values().map(|adapter| square(&adapter.handle())).sum::<f64>()
    });
    Some(squares.sqrt())
}

fn differences(left: &[f64], right: &[f64]) -> Vec<f64> {
    left.iter().zip(right).map(|(left, right)| left - right).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two equal images and one at right angles: distances 0.5, 0.5 and 1.
    #[test]
    fn distance_to_others_by_hand() {
        let features = Tensor::from_slice(&[1.0_f32, 0.0, 1.0, 0.0, 0.0, 1.0]).view([3, 2]);
        assert_eq!(numbers(&distance_to_others(&features)).unwrap(), [0.5, 0.5, 1.0]);
    }

    fn snapshot(target: Vec<f64>, contrast: Vec<f64>) -> Snapshot {
        Snapshot {
            pixels: Tensor::zeros([1], (Kind::Float, Device::Cpu)),
            target,
            measures: [("contrast".to_owned(), contrast)].into(),
            drift: 0.25,
            norm_ratio: 1.5,
        }
    }

    #[test]
    fn a_gain_and_a_fall_beyond_noise_are_seen() {
        let prompts: Vec<String> = (0..4).map(|index| format!("prompt {index}")).collect();
        let held_out = HeldOut::new(&prompts, 4, 0, [4, 8, 8], 2);
        let base = snapshot(vec![0.0, 1.0, 2.0, 3.0], vec![0.5, 0.6, 0.7, 0.8]);
        let tuned = snapshot(vec![1.0, 2.1, 2.9, 4.0], vec![0.3, 0.4, 0.5, 0.61]);
        let comparison = held_out.compare(&tuned, &base, &[]);
        assert!((comparison.gain - 1.0).abs() < 1e-12);
        assert!(comparison.interval[0] > 0.9 && comparison.interval[1] < 1.1, "{:?}", comparison.interval);
        assert_eq!(comparison.fallen, ["contrast"]);
        // 1 / 1.291 deviations of the target, less 0.1975 / 0.1291 of contrast.
        assert!((comparison.composite - (1.0 / 1.29099 - 0.1975 / 0.129_099)).abs() < 1e-3, "{}", comparison.composite);
        assert_eq!(
            (&comparison.line["epsilon_drift"], &comparison.line["epsilon_norm_ratio"]),
            (&json!(0.25), &json!(1.5))
        );
        let same = held_out.compare(&base, &base, &[]);
        assert!(same.fallen.is_empty() && same.gain == 0.0);
    }
}
