//! The ways to fine-tune, one file each. A method declares itself as a [`Method`], listed in [`ALL`], and makes [`Round`]s: what a
//! roll-out gives to one or more optimizer steps. The loop owns backward passes, clipping, the optimizer, memory and disk.

mod align_prop;
pub mod backprop;
mod best_of_n;
mod ddpo;
pub mod denoising;
pub mod dpo;
mod draft_k;
mod draft_lv;
mod drtune;
mod grpo;
pub mod kto;
pub mod nft;
mod own_samples;
pub mod policy_gradient;
mod refl;
pub mod rwr;
mod scene;
mod settings;

use std::{fmt, ops::Range, str::FromStr};

use reward::error::unknown_name;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tch::Tensor;

use crate::{Error, Result, objective::Loss};

pub use align_prop::AlignProp;
pub use backprop::Backprop;
pub use denoising::Denoising;
pub use draft_k::DraftK;
pub use draft_lv::DraftLv;
pub use drtune::DrTune;
pub use refl::Refl;
pub use scene::Scene;
pub use settings::Settings;

/// Every method, in the order in which users see them.
pub const ALL: [&Method; 13] = [
    &refl::METHOD,
    &draft_k::METHOD,
    &draft_lv::METHOD,
    &drtune::METHOD,
    &align_prop::METHOD,
    &denoising::METHOD,
    &ddpo::METHOD,
    &grpo::METHOD,
    &nft::METHOD,
    &rwr::METHOD,
    &best_of_n::METHOD,
    &dpo::METHOD,
    &kto::METHOD,
];

/// A method as settings, checks and help know it.
#[derive(Debug)]
pub struct Method {
    /// The name in a config and on the command line.
    pub name: &'static str,
    /// Summary for help, in one line.
    pub title: &'static str,
    /// Use of rewards.
    pub reward: RewardUse,
    /// Training data that it takes, one of these.
    pub data: &'static [Data],
    /// Whether it compares images of one prompt.
    pub grouped: bool,
    /// Samplers that its roll-outs may use.
    pub samplers: Samplers,
    /// Classifier-free guidance, if the user says nothing.
    pub guidance_scale: f64,
    /// DDIM's noise, 0 to 1, if the user says nothing.
    pub eta: f64,
    /// Gradients through the unconditional pass, if the user says nothing.
    pub negative_branch_gradient: bool,
    /// Factor on the distance from the base model, if the user says nothing.
    pub kl: f64,
    /// Strength of the comparison with a reference, if the user says nothing.
    pub beta: f64,
    /// Settings that this method reads and most others do not.
    pub reads: &'static [&'static str],
    /// Constructor from the run's hyper-parameters.
    pub build: fn(&Settings) -> Box<dyn Algorithm>,
}

impl Method {
    /// What most methods that follow a reward's gradient have in common; a method gives the rest.
    const BACKPROP: Self = Self {
        name: "",
        title: "",
        reward: RewardUse::Gradient,
        data: &[Data::Prompts],
        grouped: false,
        samplers: Samplers::Ddim,
        guidance_scale: 7.5,
        eta: 0.0,
        negative_branch_gradient: true,
        kl: 0.0,
        beta: 1.0,
        reads: &[],
        build: |_| Box::new(DraftK { k: 1 }),
    };
}

/// Use that a method makes of rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewardUse {
    /// No use: rewards only watch held-out images.
    None,
    /// Their values on the run's own images; a reward needs no gradient.
    Score,
    /// The gradient of rewards with respect to pixels.
    Gradient,
}

/// Training data of a method, each in a setting of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Prompts, whose images the model makes.
    Prompts,
    /// Pictures with prompts.
    Pictures,
    /// Triplets of a prompt, a picture that was preferred and one that was not.
    Triplets,
    /// Pictures that people liked or did not.
    Labels,
}

impl Data {
    /// The setting that names the file.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Prompts => "prompts",
            Self::Pictures => "images",
            Self::Triplets => "training_file",
            Self::Labels => "labels",
        }
    }
}

/// Samplers of roll-outs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Samplers {
    /// DDIM: the method looks into its steps.
    Ddim,
    /// DDIM with noise in every step: the method needs the probability of each.
    Stochastic,
    /// Any: only the images count.
    Any,
}

/// The size of a method's graph for one item, by which memory is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Graph {
    /// Items of the largest optimizer step.
    pub items: usize,
    /// Predictions of the UNet that keep activations.
    pub predictions: usize,
    /// Images that are decoded and scored with a graph; 0 where the loss is of latents.
    pub decoded: usize,
    /// Whether predictions are guided, by an unconditional pass beside them.
    pub guided: bool,
}

/// Reads a tensor of a checkpoint by name and shape.
pub type ReadTensor<'a> = dyn Fn(&str, &[i64]) -> Result<Tensor> + 'a;

/// A way to fine-tune.
pub trait Algorithm {
    /// The size of the graph for one item.
    fn graph(&self, settings: &Settings) -> Graph;

    /// Optimizer steps of each round.
    fn updates(&self) -> usize {
        1
    }

    /// Rolls out: makes what the round that begins with optimizer step `number` (from 1) trains on, without a graph. A later loss
    /// that runs out of memory does not repeat it.
    ///
    /// # Errors
    /// Data cannot be read, or a model or a reward fails.
    fn round<'a>(&'a mut self, scene: &'a Scene<'a>, number: usize) -> Result<Box<dyn Round + 'a>>;

    /// Figures of `scene` that are watched and never trained on, by name; none where the method has none.
    ///
    /// # Errors
    /// As [`Self::round`].
    fn watched(&self, _scene: &Scene) -> Result<Vec<(&'static str, f64)>> {
        Ok(Vec::new())
    }

    /// Tensors that the method remembers from round to round, by name, for checkpoints. `trained`: everything that trains.
    fn state(&self, _trained: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
        Vec::new()
    }

    /// Restores the tensors of [`Self::state`].
    ///
    /// # Errors
    /// Those of `read`.
    fn set_state(&mut self, _trained: &[(String, Tensor)], _read: &ReadTensor) -> Result<()> {
        Ok(())
    }
}

/// Use of one roll-out: optimizer steps over its items.
pub trait Round {
    /// Items of update `update`, from 0: images, or what else goes through the UNet as one row.
    fn items(&self, update: usize) -> usize;

    /// The mean loss over some items of update `update`, with a graph.
    ///
    /// # Errors
    /// Data cannot be read, or a reward fails.
    fn loss(&self, update: usize, items: Range<usize>) -> Result<Loss>;

    /// Raw values of each reward over the roll-out; none where losses give them.
    fn rewards(&self) -> &[Vec<f64>] {
        &[]
    }

    /// What else is worth a line of the roll-out, by name.
    fn figures(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// A method by its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MethodName(pub &'static Method);

impl FromStr for MethodName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = ALL.into_iter().find(|method| method.name == text).map(Self);
        known.ok_or_else(|| unknown_name("algorithm", text, &ALL.map(|method| method.name)))
    }
}

impl Serialize for MethodName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.name.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for MethodName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
