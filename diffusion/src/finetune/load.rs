//! What is loaded before a run starts.

use std::path::PathBuf;

use reward::{
    event::{Event, Observer},
    native::memory,
    rewards::{Reward, load::LoadOptions, self_test},
};
use tch::{Device, Kind, Tensor};

use super::{
    checkpoint::{Progress, State},
    config::{Checkpointing, FinetuneConfig},
    memory::{Choice, Estimate},
    models::Models,
    unsuited,
};
use crate::{
    Error, Result,
    algorithm::{Algorithm, Data, Method, RewardUse},
    objective::Weighted,
    pictures::Rows,
    pipeline::default_precision,
    prompt_encoder::Embeddings,
    prompts,
    source::Source,
};

/// What is loaded before a run starts, rewards first: they are the smallest, and the likeliest to be wrong.
pub(super) struct Parts {
    pub(super) rewards: Vec<Weighted>,
    pub(super) prompts: Vec<String>,
    /// The rows of tables of pictures; none where the run trains on prompts.
    pub(super) rows: Rows,
    pub(super) held_out: Vec<String>,
    pub(super) models: Models,
    pub(super) embeddings: Embeddings,
    pub(super) device: Device,
    pub(super) kind: Kind,
}

impl Parts {
    /// `local_rank`: the number of this process on its machine.
    pub(super) fn load(
        config: &FinetuneConfig,
        source: &Source,
        local_rank: usize,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let read = |file: &Option<PathBuf>| {
            file.as_deref().map_or(Ok(Vec::new()), |file| crate::prompts::read(file, observer))
        };
        let (mut prompts, held_out) = (read(&config.prompts)?, read(&config.held_out_prompts)?);
        let shared = held_out.iter().filter(|prompt| prompts.contains(prompt)).count();
        if shared > 0 {
            let text =
                format!("{shared} held-out prompt(s) are among the training prompts: they show no more than those");
            observer.event(&Event::Warning(&text));
        }
        let rows = rows(config)?;
        if config.on_pictures() {
            prompts.clone_from(&rows.prompts);
        }
        drop(source.sampler(config.scheduler, config.sample_steps, config.sampling().1)?);
        let device = config.device.resolve(local_rank)?;
        let kind = config.precision.unwrap_or_else(|| default_precision(device)).kind();
        let rewards = rewards(config, device, kind, observer)?;
        source.tell(observer)?;
        prompts::warn(&prompts, &config.negative_prompt, &source.tokenizer()?, observer)?;
        let models = Models::load(config, source, device, kind)?;
        models.tell(config, observer);
        unsuited::warn(config, source, &models, observer)?;
        let all = prompts.iter().chain(&held_out).map(String::as_str);
        let embeddings = Embeddings::new(
            source,
            all.chain([config.negative_prompt.as_str(), ""]),
            &models.text_adapters,
            models.unet.config.cross_attention_dim,
            (device, kind),
        )?;
        Ok(Self { rewards, prompts, rows, held_out, models, embeddings, device, kind })
    }

    /// What a step will take, and what follows; a resumed run goes on as it was. The models are set accordingly.
    pub(super) fn plan(
        &mut self,
        config: &FinetuneConfig,
        method: &dyn Algorithm,
        progress: Option<&Progress>,
    ) -> (Estimate, Choice) {
        let (unet, vae) = (&self.models.unet, &self.models.vae);
        let count = |tensors: &mut dyn Iterator<Item = &Tensor>| -> usize { tensors.map(Tensor::numel).sum() };
        let trained = unet.parameters.trained();
        let training = count(&mut trained.iter().map(|(_, tensor)| tensor));
        let seen = self.rewards.iter().flat_map(|weighted| weighted.reward.weights()).collect::<Vec<_>>();
        let models = unet.parameters.tensors.values().chain(vae.parameters.tensors.values());
        let all = count(&mut models.chain(&seen));
        let graph = method.graph(&config.settings(self.prompts.len()));
        let counts = [all.max(training), training];
        let estimate =
            Estimate::new(config, (&unet.config, &vae.config), counts, self.models.latents, graph, self.kind);
        let choice = match progress {
            Some(Progress { own: State { micro, checkpointing, .. }, .. }) => Choice {
                checkpointing: match config.gradient_checkpointing {
                    Checkpointing::On => true,
                    Checkpointing::Off => false,
                    Checkpointing::Auto => *checkpointing,
                },
                micro: config.gradient_accumulation.map_or(*micro, |parts| graph.items.div_ceil(parts).min(*micro)),
            },
            None => {
                // On a CPU more rows than images roll out at a time are no faster, and round otherwise.
                let most = if self.device.is_cuda() { graph.items } else { graph.items.min(config.batch_size) };
                estimate.choose(config, [graph.items, most], memory(self.device).map(|memory| memory.free))
            }
        };
        self.models.unet.checkpointing = choice.checkpointing;
        self.models.vae.checkpointing = choice.checkpointing;
        for weighted in &mut self.rewards {
            weighted.reward.set_checkpointing(choice.checkpointing);
        }
        (estimate, choice)
    }
}

/// What the run's table of pictures says; nothing where there is none.
///
/// # Errors
/// It cannot be read.
pub(super) fn rows(config: &FinetuneConfig) -> Result<Rows> {
    let root = config.image_root.as_deref();
    let liked = config.method().is_some_and(|method| method.data.contains(&Data::Labels));
    match (config.data(), &config.images, &config.labels) {
        (Some(Data::Pictures), Some(table), _) => Rows::of_pictures(table),
        (Some(Data::Labels), _, Some(table)) => Rows::of_likes(table, root),
        (Some(Data::Triplets), ..) if liked => Rows::of_preferred(&config.training_file, root),
        (Some(Data::Triplets), ..) => Rows::of_pairs(&config.training_file, root),
        _ => Ok(Rows::default()),
    }
}

/// The rewards, each tried on test pictures; those that are only watched come last, so that the first is the target.
fn rewards(config: &FinetuneConfig, device: Device, kind: Kind, observer: &dyn Observer) -> Result<Vec<Weighted>> {
    let (clip, activation, limits) = (config.clip.as_deref(), config.activation, config.limits());
    let mut rewards: Vec<Weighted> = Vec::new();
    for spec in &config.reward {
        let reward = spec.load_with(&LoadOptions { clip, activation, device, kind, limits }, observer)?;
        if spec.weight != 0.0 {
            needs_gradient(config.method(), reward.as_ref())?;
        }
        // What another program computes in is not known.
        let kind = if spec.name().is_some() { kind } else { Kind::Float };
        self_test(reward.as_ref(), device, kind, observer)?;
        let name = reward.name();
        let names = std::iter::once(name.to_owned()).chain((2..).map(|number| format!("{name}-{number}")));
        let label = names.into_iter().find(|name| rewards.iter().all(|other| other.label != *name));
        rewards.push(Weighted { label: label.unwrap_or_default(), reward, weight: spec.weight });
    }
    rewards.sort_by_key(|weighted| weighted.weight == 0.0);
    Ok(rewards)
}

/// Methods that follow a reward's gradient refuse one that has none.
fn needs_gradient(method: Option<&Method>, reward: &dyn Reward) -> Result<()> {
    match method {
        Some(method) if method.reward == RewardUse::Gradient && !reward.differentiable() => {
            Err(Error::usage(format!("reward `{}` has no gradient, which `{method}` needs", reward.name()))
                .hint("at weight 0 it is only watched"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{self, MethodName};

    struct Counted;

    impl Reward for Counted {
        fn name(&self) -> &str {
            "counted"
        }

        fn score(&self, pixels: &Tensor, _: &[&str]) -> Result<Tensor> {
            Ok(pixels.flatten(1, -1).round().sum_dim_intlist([1_i64].as_slice(), false, Kind::Float))
        }

        fn differentiable(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_reward_without_a_gradient_is_refused_where_one_is_needed() {
        let error = needs_gradient(Some(algorithm::ALL[1]), &Counted).unwrap_err();
        assert_eq!(error.to_string(), "reward `counted` has no gradient, which `draft-k` needs");
        assert_eq!(error.kind(), crate::ErrorKind::Usage);
        for name in ["denoising", "ddpo"] {
            let MethodName(method) = name.parse().unwrap();
            needs_gradient(Some(method), &Counted).unwrap();
        }
    }
}
