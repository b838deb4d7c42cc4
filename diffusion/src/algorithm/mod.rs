//! The ways to fine-tune, one file each. A method declares itself as a [`Method`], listed in [`ALL`], and makes [`Round`]s: what a
//! roll-out gives to one or more optimizer steps. The loop owns backward passes, clipping, the optimizer, memory and disk.

mod align_prop;
pub mod backprop;
pub mod denoising;
mod draft_k;
mod draft_lv;
mod drtune;
mod refl;
mod scene;

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

/// Every method, in the order in which users see them.
pub const ALL: [&Method; 6] =
    [&refl::METHOD, &draft_k::METHOD, &draft_lv::METHOD, &drtune::METHOD, &align_prop::METHOD, &denoising::METHOD];

/// A method as settings, checks and help know it.
#[derive(Debug)]
pub struct Method {
    /// The name in a config and on the command line.
    pub name: &'static str,
    /// Summary for help, in one line.
    pub title: &'static str,
    /// Use of rewards: none, or their gradient.
    pub reward: RewardUse,
    /// Training data: prompts, or pictures with prompts.
    pub data: Data,
    /// Classifier-free guidance, if the user says nothing.
    pub guidance_scale: f64,
    /// DDIM's noise, 0 to 1, if the user says nothing.
    pub eta: f64,
    /// Gradients through the unconditional pass, if the user says nothing.
    pub negative_branch_gradient: bool,
    /// Settings that this method reads and most others do not.
    pub reads: &'static [&'static str],
    /// Constructor from the run's hyper-parameters.
    pub build: fn(&Settings) -> Box<dyn Algorithm>,
}

/// Use that a method makes of rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewardUse {
    /// No use: rewards only watch held-out images.
    None,
    /// The gradient of rewards with respect to pixels.
    Gradient,
}

/// Training data of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Prompts, whose images the model makes.
    Prompts,
    /// Pictures with prompts.
    Pictures,
}

/// The hyper-parameters of all methods.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Sampling steps of an image.
    pub sample_steps: usize,
    /// K of the methods that truncate the gradient to K steps, if the user says it.
    pub truncation_steps: Option<usize>,
    /// Copies of an image that are noised again.
    pub copies: usize,
    /// γ of min-SNR weighting, if it is asked for.
    pub snr_gamma: Option<f64>,
    /// Share of pictures whose prompt is left out.
    pub prompt_dropout: f64,
}

/// The size of a method's graph for one image, by which memory is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Graph {
    /// Predictions of the UNet that keep activations.
    pub predictions: usize,
    /// Images that are decoded and scored with a graph; 0 where the loss is of latents.
    pub decoded: usize,
}

/// A way to fine-tune.
pub trait Algorithm {
    /// The size of the graph for one image.
    fn graph(&self, settings: &Settings) -> Graph;

    /// Rolls out: makes what round `number` (from 1) trains on, without a graph. A later loss that runs out of memory does not
    /// repeat it.
    ///
    /// # Errors
    /// Data cannot be read, or a model fails.
    fn round<'a>(&'a mut self, scene: &'a Scene<'a>, number: usize) -> Result<Box<dyn Round + 'a>>;

    /// A loss on `scene` that is watched and never trained on; nothing where the method has none.
    ///
    /// # Errors
    /// As [`Self::round`].
    fn watched_loss(&self, _scene: &Scene) -> Result<Option<f64>> {
        Ok(None)
    }

    /// Tensors that the method remembers from round to round, by name, for checkpoints.
    fn state(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }

    /// Restores the tensors of [`Self::state`], which `read` gives by name and shape.
    ///
    /// # Errors
    /// Those of `read`.
    fn set_state(&mut self, _read: &dyn Fn(&str, &[i64]) -> Result<Tensor>) -> Result<()> {
        Ok(())
    }
}

/// Use of one roll-out: optimizer steps over its images.
pub trait Round {
    /// Optimizer steps.
    fn updates(&self) -> usize {
        1
    }

    /// The mean loss over some images in update `update`, with a graph.
    ///
    /// # Errors
    /// Data cannot be read, or a reward fails.
    fn loss(&self, update: usize, images: Range<usize>) -> Result<Loss>;
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
