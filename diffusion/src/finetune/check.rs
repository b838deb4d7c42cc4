//! What is wrong with settings before any file is read.

use std::fmt;

use reward::{measures::PixelMeasure, rewards::name::RewardName};

use super::config::{FinetuneConfig, Train};
use crate::{
    Error, Result,
    algorithm::{self, Data, Method, RewardUse, Samplers},
};

/// Far more steps or images than a run has, and few enough to plan for in memory.
const MOST: usize = 100_000_000;
/// No model makes images of a longer side, in pixels.
const LONGEST_SIDE: usize = 65_536;

/// No answer is waited for as long, in seconds.
const LONGEST_WAIT: f64 = 1e6;

/// Values that a setting may have.
#[derive(Clone, Copy)]
enum Want {
    Count,
    Several,
    UpTo(&'static str, usize),
    DivisorOf(&'static str, usize),
    MultipleOf(&'static str, usize),
    Part,
    Side,
    Positive,
    NotNegative,
    Finite,
    Share,
    BelowOne,
    Seconds,
}

impl Want {
    fn holds(self, value: f64) -> bool {
        let counts = |most: usize| (1.0..=most as f64).contains(&value);
        match self {
            Self::Count => counts(MOST),
            Self::Several => value >= 2.0 && counts(MOST),
            Self::UpTo(_, most) => counts(most),
            Self::DivisorOf(_, number) => counts(number) && number.is_multiple_of(value as usize),
            Self::MultipleOf(_, number) => number > 0 && (value as usize).is_multiple_of(number),
            Self::Part => value > 0.0 && value <= 1.0,
            Self::Side => value >= 8.0 && counts(LONGEST_SIDE),
            Self::Positive => value > 0.0 && value.is_finite(),
            Self::NotNegative => value >= 0.0 && value.is_finite(),
            Self::Finite => value.is_finite(),
            Self::Share => (0.0..=1.0).contains(&value),
            Self::BelowOne => (0.0..1.0).contains(&value),
            Self::Seconds => value > 0.0 && value <= LONGEST_WAIT,
        }
    }
}

impl fmt::Display for Want {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count => write!(formatter, "1 to {MOST}"),
            Self::Several => formatter.write_str("at least 2, to tell a change from noise"),
            Self::UpTo(name, most) => write!(formatter, "1 to {name}, {most}"),
            Self::DivisorOf(name, number) => write!(formatter, "a divisor of {name}, {number}"),
            Self::MultipleOf(name, number) => write!(formatter, "a multiple of {name}, {number}"),
            Self::Part => formatter.write_str("above 0, up to 1"),
            Self::Side => write!(formatter, "8 to {LONGEST_SIDE}"),
            Self::Positive => formatter.write_str("a positive number"),
            Self::NotNegative => formatter.write_str("a number that is not negative"),
            Self::Finite => formatter.write_str("a finite number"),
            Self::Share => formatter.write_str("0 to 1"),
            Self::BelowOne => formatter.write_str("0 up to 1"),
            Self::Seconds => write!(formatter, "more than 0 and at most {LONGEST_WAIT} seconds"),
        }
    }
}

impl FinetuneConfig {
    /// Checks what no single field can, before any file is read.
    ///
    /// # Errors
    /// A usage error that names the setting.
    pub fn check(&self) -> Result<()> {
        let missing = |name: &str, what: &str| {
            let flag = name.replace('_', "-");
            Error::usage(format!("--{flag} is missing: {what}")).hint(format!("or `{name} = …` in the --config file"))
        };
        let names = algorithm::ALL.map(|method| method.name).join(", ");
        let method = self.method().ok_or_else(|| missing("algorithm", &names))?;
        if self.model.is_none() {
            return Err(missing("model", "a diffusers folder, a single file, a hub id or random:sd-tiny"));
        }
        if self.output.is_none() {
            return Err(missing("output", "a folder for the run"));
        }
        if self.activation.is_some()
            && !self.reward.iter().any(|spec| spec.name().is_some_and(RewardName::takes_activation))
        {
            let text = "activation is set: only the rewards `social-reward`, `clip-score` and `aesthetic` read it";
            return Err(Error::usage(text));
        }
        let standing = self.reward.iter().find(|spec| spec.name().is_some_and(RewardName::needs_clip));
        match (standing, &self.clip) {
            (Some(spec), None) => {
                return Err(missing("clip", &format!("the CLIP that the reward `{}` stands on", spec.label())));
            }
            (None, Some(_)) => return Err(Error::usage("clip is set: only the reward `aesthetic` stands on it")),
            _ => {}
        }
        let Some(data) = self.data() else {
            let [first, others @ ..] = method.data else { return Ok(()) };
            let or = others.iter().map(|other| format!(", or {}: {}", other.setting(), described(*other)));
            return Err(missing(first.setting(), &format!("{}{}", described(*first), or.collect::<String>())));
        };
        if self.rewarded() {
            if self.reward.is_empty() {
                return Err(missing("reward", "the model whose score is to rise: [NAME=]PATH[@WEIGHT]"));
            }
            if self.reward.iter().all(|spec| spec.weight == 0.0) {
                return Err(Error::usage("every reward has the weight 0: nothing is to rise")
                    .hint("weight 0 is for rewards that are only watched, beside one that is maximised"));
            }
        } else if !self.reward.is_empty() && self.held_out_prompts.is_none() {
            let text = format!("with {method} on {}, rewards only watch held-out prompts", data.setting());
            return Err(missing("held_out_prompts", &text));
        }
        self.check_labels()?;
        self.check_used(method, data)?;
        for (name, value, want) in self.values() {
            if let Some(value) = value.filter(|value| !want.holds(*value)) {
                return Err(Error::usage(format!("{name} = {value}: want {want}")));
            }
        }
        if self.vae_steps > 0 && self.train == Train::Lora {
            return Err(Error::usage("vae_steps with train = \"lora\": a new VAE needs a UNet trained from scratch")
                .hint("train = \"full\""));
        }
        if self.train == Train::Full && !self.lora.is_empty() {
            return Err(Error::usage("lora with train = \"full\": adapters train only with train = \"lora\"")
                .hint("`diffusion export --lora` merges adapters into a folder to start from"));
        }
        Ok(())
    }

    /// Settings that are numbers, with what each may be; nothing where there is none.
    #[rustfmt::skip]
    fn values(&self) -> Vec<(&'static str, Option<f64>, Want)> {
        let count = |value: usize| Some(value as f64);
        let watching = self.held_out_prompts.is_some();
        let updates = self.inner_epochs.saturating_mul(self.minibatches);
        vec![
            ("train_steps", count(self.train_steps), Want::Count),
            ("sample_steps", count(self.sample_steps), Want::Count),
            ("batch_size", count(self.batch_size), Want::Count),
            ("lora_rank", count(self.lora_rank), Want::Count),
            ("copies", count(self.copies), Want::Count),
            ("held_out_images", count(self.held_out_images), if watching { Want::Several } else { Want::Count }),
            ("scale_images", count(self.scale_images), Want::Several),
            ("images_per_prompt", self.images_per_prompt.and_then(count), Want::DivisorOf("batch_size", self.batch_size)),
            ("inner_epochs", count(self.inner_epochs), Want::Count),
            ("minibatches", count(self.minibatches), Want::DivisorOf("batch_size", self.batch_size)),
            ("train_steps", count(self.train_steps), Want::MultipleOf("inner_epochs × minibatches", updates)),
            ("buffer_size", count(self.buffer_size), Want::Count),
            ("buffer_min_count", count(self.buffer_min_count), Want::UpTo("buffer_size", self.buffer_size)),
            ("truncation_steps", self.truncation_steps.and_then(count), Want::UpTo("sample_steps", self.sample_steps)),
            ("gradient_accumulation", self.gradient_accumulation.and_then(count), Want::UpTo("batch_size", self.batch_size)),
            ("stop_after_falls", self.stop_after_falls.and_then(count), Want::Count),
            ("height", self.height.and_then(count), Want::Side),
            ("width", self.width.and_then(count), Want::Side),
            ("learning_rate", Some(self.learning_rate), Want::Positive),
            ("vae_learning_rate", Some(self.vae_learning_rate), Want::Positive),
            ("loss_scale", Some(self.loss_scale), Want::Positive),
            ("lora_alpha", self.lora_alpha, Want::Positive),
            ("clip_range", Some(self.clip_range), Want::Positive),
            ("advantage_clip", Some(self.advantage_clip), Want::Positive),
            ("beta", self.beta, Want::Positive),
            ("temperature", Some(self.temperature), Want::Positive),
            ("kl", self.kl, Want::NotNegative),
            ("timestep_fraction", Some(self.timestep_fraction), Want::Part),
            ("liked_share", Some(self.liked_share), Want::Part),
            ("snr_gamma", self.snr_gamma, Want::Positive),
            ("weight_decay", Some(self.weight_decay), Want::NotNegative),
            ("clip_norm", Some(self.clip_norm), Want::NotNegative),
            ("anchor", Some(self.anchor), Want::NotNegative),
            ("pixel_noise", Some(self.pixel_noise), Want::NotNegative),
            ("weight_noise", Some(self.weight_noise), Want::NotNegative),
            ("guidance_scale", self.guidance_scale, Want::Finite),
            ("margin", Some(self.margin), Want::Finite),
            ("eta", self.eta, Want::Share),
            ("prompt_dropout", Some(self.prompt_dropout), Want::BelowOne),
            ("ema_decay", self.ema_decay, Want::BelowOne),
            ("reward_timeout", Some(self.reward_timeout), Want::Seconds),
            ("reward_restarts", count(self.reward_restarts), Want::NotNegative),
        ]
    }

    /// Refuses a batch that `size` ranks cannot share.
    ///
    /// # Errors
    /// A usage error that names the setting.
    pub fn check_world(&self, size: usize) -> Result<()> {
        // The ratio is exact only where as many rows go through at a time in training as in the roll-out.
        let even = self.method().is_some_and(|method| method.samplers == Samplers::Stochastic);
        let what = match self.batch_size {
            batch if batch < size => "each needs an image of every batch",
            batch if even && !batch.is_multiple_of(size) => "they share every batch evenly",
            _ => return Ok(()),
        };
        Err(Error::usage(format!("--batch-size {} on {size} processes: {what}", self.batch_size))
            .hint("another --batch-size, or another number of processes"))
    }

    /// Refuses labels of rewards that `metrics.jsonl` has for something else.
    fn check_labels(&self) -> Result<()> {
        const FIGURES: [&str; 13] = [
            "step",
            "loss",
            "held_out_loss",
            "reward",
            "held_out_reward",
            "epsilon_drift",
            "epsilon_norm_ratio",
            "gain",
            "gain_low",
            "gain_high",
            "composite",
            "diversity",
            "lora_norm",
        ];
        let measures = PixelMeasure::ALL.map(|measure| measure.as_str().replace('-', "_"));
        let taken = |label: &str| FIGURES.contains(&label) || measures.iter().any(|measure| measure == label);
        match self.reward.iter().find(|spec| taken(spec.label())) {
            Some(spec) => Err(Error::usage(format!(
                "reward `{spec}`: metrics.jsonl has another figure by the name `{}`",
                spec.label()
            ))
            .hint("give it another label")),
            None => Ok(()),
        }
    }

    /// Refuses settings that `method` would not look at.
    fn check_used(&self, method: &Method, data: Data) -> Result<()> {
        let default = Self::default();
        let unused = |name: &str, why: &str| {
            Err(Error::usage(format!("{name} is set, but {why}, this is `{method}`")).hint("leave it out"))
        };
        let these = |is: &dyn Fn(&Method) -> bool| {
            let methods = algorithm::ALL.into_iter().filter(|method| is(method));
            methods.map(|method| format!("`{method}`")).collect::<Vec<_>>().join(" or ")
        };
        for (kind, set) in [
            (Data::Prompts, self.prompts.is_some()),
            (Data::Pictures, self.images.is_some()),
            (Data::Triplets, !self.training_file.is_empty()),
            (Data::Labels, self.labels.is_some()),
        ] {
            if set && !method.data.contains(&kind) {
                return unused(
                    kind.setting(),
                    &format!("only {} has it", these(&|method| method.data.contains(&kind))),
                );
            }
            if set && kind != data {
                return unused(kind.setting(), &format!("{} says what to train on", data.setting()));
            }
        }
        #[rustfmt::skip]
        let by_method = [
            ("image_root", self.image_root.is_some()),
            ("vae_steps", self.vae_steps > 0),
            ("snr_gamma", self.snr_gamma.is_some()),
            ("prompt_dropout", self.prompt_dropout != default.prompt_dropout),
            ("truncation_steps", self.truncation_steps.is_some()),
            ("copies", self.copies != default.copies),
            ("scheduler", self.scheduler != default.scheduler),
            ("inner_epochs", self.inner_epochs != default.inner_epochs),
            ("minibatches", self.minibatches != default.minibatches),
            ("clip_range", self.clip_range != default.clip_range),
            ("advantage_clip", self.advantage_clip != default.advantage_clip),
            ("kl", self.kl.is_some()),
            ("buffer_size", self.buffer_size != default.buffer_size),
            ("buffer_min_count", self.buffer_min_count != default.buffer_min_count),
            ("same_noise", self.same_noise),
            ("timestep_fraction", self.timestep_fraction != default.timestep_fraction),
            ("deviation", self.deviation != default.deviation),
            ("reward_combination", self.reward_combination != default.reward_combination),
            ("beta", self.beta.is_some()),
            ("temperature", self.temperature != default.temperature),
            ("preference_loss", self.preference_loss != default.preference_loss),
            ("utility", self.utility != default.utility),
            ("liked_share", self.liked_share != default.liked_share),
            ("reference_every", self.reference_every > 0),
        ];
        for (name, set) in by_method {
            if set && !method.reads.contains(&name) {
                return unused(name, &format!("only {} has it", these(&|method| method.reads.contains(&name))));
            }
        }
        let new_adapters = self.train == Train::Lora && self.lora.is_empty();
        let gradient = method.reward == RewardUse::Gradient;
        let (of_gradient, of_own) =
            ("only a method that follows a reward's gradient has it", "only own images are made");
        let guided = gradient || method.samplers == Samplers::Stochastic;
        let watching = self.held_out_prompts.is_some() && !self.reward.is_empty();
        let outside = self.reward.iter().any(|spec| spec.name().is_none());
        let awaited = "only rewards `command:…` and `http:…` are waited for";
        #[rustfmt::skip]
        let others = [
            ("anchor", self.anchor > 0.0, gradient, of_gradient),
            ("shaping", self.shaping != default.shaping, gradient, of_gradient),
            ("pixel_noise", self.pixel_noise > 0.0, gradient, of_gradient),
            ("weight_noise", self.weight_noise > 0.0, gradient, of_gradient),
            ("negative_branch_gradient", self.negative_branch_gradient.is_some(), guided, "its loss is not guided"),
            ("images_per_prompt", self.images_per_prompt.is_some(), self.rewarded(), of_own),
            ("reward_timeout", self.reward_timeout != default.reward_timeout, outside, awaited),
            ("reward_restarts", self.reward_restarts != default.reward_restarts, outside, awaited),
            ("lora_rank", self.lora_rank != default.lora_rank, new_adapters, "only new adapters have it"),
            ("lora_alpha", self.lora_alpha.is_some(), new_adapters, "only new adapters have it"),
            ("lora_targets", self.lora_targets != default.lora_targets, new_adapters, "only new adapters have it"),
            ("stop_after_falls", self.stop_after_falls.is_some(), watching, "there are no held_out_prompts to watch"),
        ];
        for (name, set, used, why) in others {
            if set && !used {
                return unused(name, why);
            }
        }
        if self.rewarded() && method.grouped && self.group() < 2 {
            let text = format!("`{method}` compares images of one prompt: want at least two of each");
            return Err(Error::usage(text).hint("a larger batch_size, or images_per_prompt"));
        }
        let (_, eta, _) = self.sampling();
        if method.samplers == Samplers::Stochastic && eta == 0.0 {
            let text =
                format!("eta = 0: `{method}` needs the probability of each step, and a step without noise has none");
            return Err(Error::usage(text).hint("leave it out for eta 1"));
        }
        Ok(())
    }
}

/// What a file of training data is.
fn described(data: Data) -> &'static str {
    match data {
        Data::Prompts => "a file of prompts to train on",
        Data::Pictures => "a table of images and prompts",
        Data::Triplets => "triplets of a prompt, a preferred picture and another",
        Data::Labels => "a table of pictures that people liked or did not",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reward::{clip::config::Activation, rewards::spec::RewardSpec};

    use crate::finetune::config::tests::{complete, named};

    fn rewards(specs: &[&str]) -> Vec<RewardSpec> {
        specs.iter().map(|spec| spec.parse().unwrap()).collect()
    }

    #[test]
    fn each_bad_value_is_named() {
        complete().check().unwrap();
        let outside = rewards(&["random:tiny", "command:ocr=python3 ocr.py@0", "http:clip=http://localhost/score"]);
        let awaited = FinetuneConfig { reward: outside, reward_timeout: 1.0, reward_restarts: 2, ..complete() };
        awaited.check().unwrap();
        for (name, config) in [
            ("--algorithm", FinetuneConfig { algorithm: None, ..complete() }),
            ("--model", FinetuneConfig { model: None, ..complete() }),
            ("--reward", FinetuneConfig { reward: Vec::new(), ..complete() }),
            ("--clip", FinetuneConfig { reward: vec!["aesthetic=head.pth".parse().unwrap()], ..complete() }),
            (
                "activation is set",
                FinetuneConfig {
                    activation: Some(Activation::Gelu),
                    reward: vec!["hps-v2=h.pt".parse().unwrap()],
                    ..complete()
                },
            ),
            ("clip is set", FinetuneConfig { clip: Some("random:tiny".into()), ..complete() }),
            ("--prompts", FinetuneConfig { prompts: None, ..complete() }),
            ("--output", FinetuneConfig { output: None, ..complete() }),
            ("--images", FinetuneConfig { algorithm: Some(named("denoising")), ..complete() }),
            ("stop_after_falls is set", FinetuneConfig { stop_after_falls: Some(1), ..complete() }),
            ("copies is set", FinetuneConfig { copies: 3, ..complete() }),
            ("snr_gamma is set", FinetuneConfig { snr_gamma: Some(5.0), ..complete() }),
            ("images is set", FinetuneConfig { images: Some("x.csv".into()), ..complete() }),
            ("batch_size", FinetuneConfig { batch_size: 0, ..complete() }),
            ("images_per_prompt", FinetuneConfig { images_per_prompt: Some(3), ..complete() }),
            ("gradient_accumulation", FinetuneConfig { gradient_accumulation: Some(5), ..complete() }),
            ("truncation_steps", FinetuneConfig { truncation_steps: Some(51), ..complete() }),
            ("learning_rate", FinetuneConfig { learning_rate: -1.0, ..complete() }),
            ("eta", FinetuneConfig { eta: Some(1.5), ..complete() }),
            ("ema_decay", FinetuneConfig { ema_decay: Some(1.0), ..complete() }),
            ("every reward has the weight 0", FinetuneConfig { reward: rewards(&["random:tiny@0"]), ..complete() }),
            ("by the name `gain`", FinetuneConfig { reward: rewards(&["command:gain=a"]), ..complete() }),
            (
                "by the name `edge_density`",
                FinetuneConfig { reward: rewards(&["http:edge_density=http://h"]), ..complete() },
            ),
            ("reward_timeout is set", FinetuneConfig { reward_timeout: 1.0, ..complete() }),
            ("reward_restarts is set", FinetuneConfig { reward_restarts: 1, ..complete() }),
            (
                "reward_timeout = 0: want more than 0 and at most 1000000 seconds",
                FinetuneConfig { reward_timeout: 0.0, reward: rewards(&["command:x=a"]), ..complete() },
            ),
            (
                "train = \"full\"",
                FinetuneConfig { train: Train::Full, lora: vec![crate::lora::LoraSpec::new("x")], ..complete() },
            ),
        ] {
            let error = config.check().unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(error.kind(), crate::ErrorKind::Usage);
        }
    }
}
