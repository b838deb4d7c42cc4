//! From a spec to a reward: the only file that knows them all.

use std::path::{Path, PathBuf};

use tch::{Device, Kind};

use super::{
    aesthetic::Aesthetic,
    clip::ClipReward,
    external::{Limits, command::Command, http::Http},
    hps::hps,
    image_reward::{self, ImageReward},
    name::RewardName,
    pick_score::pick_score,
    reward::Reward,
    spec::{RewardKind, RewardSpec},
};
use crate::{
    Error, Result,
    clip::config::{Activation, ClipConfig},
    event::{Event, Observer, Silent},
    weights::{Checkpoint, OpenOptions, file::TensorFile, wrappers},
};

/// What a reward is loaded with.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions<'a> {
    /// What [`RewardName::needs_clip`] asks for, else unused.
    pub clip: Option<&'a str>,
    /// Overrides the activation of a CLIP that may have either; those of published rewards are known.
    pub activation: Option<Activation>,
    /// Where it computes.
    pub device: Device,
    /// Kind of weights and activations.
    pub kind: Kind,
    /// How long a command or a server is waited for.
    pub limits: Limits,
}

impl RewardSpec {
    /// The files that [`Self::load`] reads weights from; none of random weights, a command or a server.
    ///
    /// # Errors
    /// They cannot be opened, or the CLIP is not given.
    pub fn files(&self, clip: Option<&str>) -> Result<Vec<PathBuf>> {
        let of_clip = |path: &str| Ok(Checkpoint::open(path, OpenOptions::default())?.files());
        let path = &self.path;
        let Some(name) = self.name() else { return Ok(Vec::new()) };
        match name {
            RewardName::Aesthetic => {
                let head = TensorFile::open_all(Path::new(wrappers::split(path).0))?.path().to_owned();
                Ok([vec![head], of_clip(clip.ok_or_else(|| no_clip(path))?)?].concat())
            }
            RewardName::ImageReward => Ok(image_reward::files(path)?.into()),
            _ => of_clip(path),
        }
    }

    /// The CLIP that it reads pictures with, as it reads them; nothing of `image-reward`, a command or a server, which have none.
    ///
    /// # Errors
    /// As [`Self::files`].
    pub fn clip_config(&self, clip: Option<&str>, activation: Option<Activation>) -> Result<Option<ClipConfig>> {
        let Some(name) = self.name() else { return Ok(None) };
        let path = match name {
            RewardName::ImageReward => return Ok(None),
            RewardName::Aesthetic => clip.ok_or_else(|| no_clip(&self.path))?,
            _ => &self.path,
        };
        let activation = activation.filter(|_| name.takes_activation());
        Ok(Some(Checkpoint::open(path, OpenOptions { activation, ..OpenOptions::default() })?.config))
    }

    /// Loads it, frozen. `clip`: what [`RewardName::needs_clip`] asks for, else unused; `kind`: of weights and activations.
    ///
    /// # Errors
    /// The weights cannot be read or are no such reward, the CLIP is not given, or a command cannot be started.
    pub fn load(&self, clip: Option<&str>, device: Device, kind: Kind) -> Result<Box<dyn Reward>> {
        self.load_with(&LoadOptions { clip, activation: None, device, kind, limits: Limits::default() }, &Silent)
    }

    /// As [`Self::load`], and says which CLIP it is and what a user should know of it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with(&self, options: &LoadOptions, observer: &dyn Observer) -> Result<Box<dyn Reward>> {
        let path = &self.path;
        let LoadOptions { clip, activation, device, kind, limits } = *options;
        let name = match &self.kind {
            RewardKind::Known(name) => *name,
            RewardKind::Command(label) => return Ok(Box::new(Command::start(label, path, limits)?)),
            RewardKind::Http(label) => return Ok(Box::new(Http::new(label, path, limits)?)),
        };
        let open = |path: &str| {
            let checkpoint = Checkpoint::open(path, OpenOptions { activation, ..OpenOptions::default() })?;
            checkpoint.announce(observer);
            Ok::<_, Error>(checkpoint)
        };
        let published = |reward: ClipReward| {
            observer.event(&Event::Note(&reward.config().to_string()));
            Box::new(reward)
        };
        Ok(match name {
            RewardName::SocialReward | RewardName::ClipScore => {
                Box::new(ClipReward::of(name, &open(path)?, device, kind)?)
            }
            RewardName::Aesthetic => {
                let clip = clip.ok_or_else(|| no_clip(path))?;
                Box::new(Aesthetic::load(path, &open(clip)?, device, kind)?)
            }
            RewardName::PickScore => published(pick_score(path, device, kind)?),
            RewardName::HpsV2 | RewardName::HpsV21 => published(hps(name, path, device, kind)?),
            RewardName::ImageReward => Box::new(ImageReward::load(path, device, kind)?),
        })
    }
}

/// What loads it without the CLIP it stands on.
fn no_clip(path: &str) -> Error {
    Error::usage(format!("aesthetic={path}: the head reads embeddings of OpenAI's CLIP ViT-L/14, which is not given"))
        .hint("name it with --clip PATH, for example --clip openai/clip-vit-large-patch14")
}
