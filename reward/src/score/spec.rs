//! `[NAME=]PATH[@WEIGHT]`: which reward, its weights on disk, and what it counts among others.

#[cfg(feature = "torch")]
use std::path::{Path, PathBuf};
use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, error::did_you_mean};
#[cfg(feature = "torch")]
use crate::{
    clip::config::{Activation, ClipConfig},
    event::{Event, Observer, Silent},
    metrics::{
        aesthetic,
        clip_reward::ClipReward,
        hps::hps,
        image_reward::{self, ImageReward},
        pick_score::pick_score,
    },
    weights::{Checkpoint, OpenOptions, file::TensorFile, wrappers},
};

/// The rewards that can be loaded, which are the metrics with weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewardName {
    /// The cosine of a CLIP trained on what people remix.
    SocialReward,
    /// The cosine of a CLIP.
    ClipScore,
    /// LAION's aesthetic predictor v2.
    Aesthetic,
    /// PickScore v1.
    PickScore,
    /// Human Preference Score v2.
    HpsV2,
    /// Human Preference Score v2.1.
    HpsV21,
    /// ImageReward v1.0.
    ImageReward,
}

/// What a score's number is, printed beside it: numbers of one model under two conventions cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    /// Of unit embeddings, −1 to 1; not ×100, not ×2.5.
    Cosine,
    /// The cosine times the model's own temperature.
    ScaledCosine,
    /// A mean opinion.
    Rating,
    /// Of mean 0 and deviation 1 over the pictures that ImageReward was trained on.
    Standardised,
}

impl Convention {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::ScaledCosine => "exp(logit_scale) × cosine",
            Self::Rating => "rating, about 1 to 10",
            Self::Standardised => "(head − 0.1672) / 1.0333",
        }
    }
}

impl RewardName {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::SocialReward,
        Self::ClipScore,
        Self::Aesthetic,
        Self::PickScore,
        Self::HpsV2,
        Self::HpsV21,
        Self::ImageReward,
    ];

    /// As it is written in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SocialReward => "social-reward",
            Self::ClipScore => "clip-score",
            Self::Aesthetic => "aesthetic",
            Self::PickScore => "pick-score",
            Self::HpsV2 => "hps-v2",
            Self::HpsV21 => "hps-v2.1",
            Self::ImageReward => "image-reward",
        }
    }

    /// What its number is.
    pub fn convention(self) -> Convention {
        match self {
            Self::SocialReward | Self::ClipScore | Self::HpsV2 | Self::HpsV21 => Convention::Cosine,
            Self::PickScore => Convention::ScaledCosine,
            Self::Aesthetic => Convention::Rating,
            Self::ImageReward => Convention::Standardised,
        }
    }

    /// Whether it stands on a CLIP that is not in its file.
    pub fn needs_clip(self) -> bool {
        self == Self::Aesthetic
    }

    /// Whether its CLIP may have either activation: that of a published reward is known.
    pub fn takes_activation(self) -> bool {
        matches!(self, Self::SocialReward | Self::ClipScore | Self::Aesthetic)
    }

    /// Whether it is a Human Preference Score, of either version.
    pub fn is_hps(self) -> bool {
        matches!(self, Self::HpsV2 | Self::HpsV21)
    }
}

impl FromStr for RewardName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str);
            Error::usage(format!("unknown reward `{name}`, expected `{}`", known.join("`, `"))).hint(
                did_you_mean(name, known)
                    .unwrap_or_else(|| "a path with `=` in its first part is written `./…`".to_owned()),
            )
        })
    }
}

/// One reward of a fine-tuning run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RewardSpec {
    /// Which one.
    pub name: RewardName,
    /// What [`Checkpoint::open`](crate::weights::Checkpoint::open) opens; of `aesthetic` the head's file, of `image-reward` its
    /// folder.
    pub path: String,
    /// What its score is multiplied with; finite and not 0.
    pub weight: f64,
}

impl RewardSpec {
    /// The files that [`Self::load`] reads weights from; none of random weights.
    ///
    /// # Errors
    /// They cannot be opened, or the CLIP is not given.
    #[cfg(feature = "torch")]
    pub fn files(&self, clip: Option<&str>) -> Result<Vec<PathBuf>> {
        let of_clip = |path: &str| Ok(Checkpoint::open(path, OpenOptions::default())?.files());
        let path = &self.path;
        match self.name {
            RewardName::Aesthetic => {
                let head = TensorFile::open_all(Path::new(wrappers::split(path).0))?.path().to_owned();
                Ok([vec![head], of_clip(clip.ok_or_else(|| aesthetic::no_clip(path))?)?].concat())
            }
            RewardName::ImageReward => Ok(image_reward::files(path)?.into()),
            _ => of_clip(path),
        }
    }

    /// The CLIP that it reads pictures with, as it reads them; nothing of `image-reward`, which has none.
    ///
    /// # Errors
    /// As [`Self::files`].
    #[cfg(feature = "torch")]
    pub fn clip_config(&self, clip: Option<&str>, activation: Option<Activation>) -> Result<Option<ClipConfig>> {
        let path = match self.name {
            RewardName::ImageReward => return Ok(None),
            RewardName::Aesthetic => clip.ok_or_else(|| aesthetic::no_clip(&self.path))?,
            _ => &self.path,
        };
        let activation = activation.filter(|_| self.name.takes_activation());
        Ok(Some(Checkpoint::open(path, OpenOptions { activation, ..OpenOptions::default() })?.config))
    }

    /// Loads it, frozen. `clip`: what [`RewardName::needs_clip`] asks for, else unused; `kind`: of weights and activations.
    ///
    /// # Errors
    /// The weights cannot be read or are no such reward, or the CLIP is not given.
    #[cfg(feature = "torch")]
    pub fn load(
        &self,
        clip: Option<&str>,
        device: tch::Device,
        kind: tch::Kind,
    ) -> Result<Box<dyn super::reward::Reward>> {
        self.load_with(&LoadOptions { clip, activation: None, device, kind }, &Silent)
    }

    /// As [`Self::load`], and says which CLIP it is and what a user should know of it.
    ///
    /// # Errors
    /// As [`Self::load`].
    #[cfg(feature = "torch")]
    pub fn load_with(&self, options: &LoadOptions, observer: &dyn Observer) -> Result<Box<dyn super::reward::Reward>> {
        let path = &self.path;
        let LoadOptions { clip, activation, device, kind } = *options;
        let open = |path: &str| {
            let checkpoint = Checkpoint::open(path, OpenOptions { activation, ..OpenOptions::default() })?;
            checkpoint.announce(observer);
            Ok::<_, Error>(checkpoint)
        };
        let published = |reward: ClipReward| {
            observer.event(&Event::Note(&reward.config().to_string()));
            Box::new(reward)
        };
        Ok(match self.name {
            RewardName::SocialReward | RewardName::ClipScore => {
                Box::new(ClipReward::new(self.name, &open(path)?, device, kind)?)
            }
            RewardName::Aesthetic => {
                let clip = clip.ok_or_else(|| aesthetic::no_clip(path))?;
                Box::new(aesthetic::Aesthetic::load(path, &open(clip)?, device, kind)?)
            }
            RewardName::PickScore => published(pick_score(path, device, kind)?),
            RewardName::HpsV2 | RewardName::HpsV21 => published(hps(self.name, path, device, kind)?),
            RewardName::ImageReward => Box::new(ImageReward::load(path, device, kind)?),
        })
    }
}

/// What a reward is loaded with.
#[cfg(feature = "torch")]
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions<'a> {
    /// What [`RewardName::needs_clip`] asks for, else unused.
    pub clip: Option<&'a str>,
    /// Overrides the activation of a CLIP that may have either; those of published rewards are known.
    pub activation: Option<Activation>,
    /// Where it computes.
    pub device: tch::Device,
    /// Kind of weights and activations.
    pub kind: tch::Kind,
}

impl FromStr for RewardSpec {
    type Err = Error;

    /// What stands before the first `=` is a name if it looks like one, what follows the last `@` a weight if it is a
    /// number; else they belong to the path.
    fn from_str(text: &str) -> Result<Self> {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
        };
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) if is_name(name) => (name.parse()?, rest),
            _ => (RewardName::SocialReward, text),
        };
        let weighted = rest.rsplit_once('@').and_then(|(path, weight)| Some((path, weight.parse().ok()?)));
        let (path, weight) = weighted.unwrap_or((rest, 1.0));
        if !f64::is_normal(weight) {
            return Err(Error::usage(format!("reward `{text}`: want a finite weight other than 0, found {weight}")));
        }
        if path.is_empty() {
            return Err(Error::usage(format!("reward `{text}`: no path")).hint("want [NAME=]PATH[@WEIGHT]"));
        }
        Ok(Self { name, path: path.to_owned(), weight })
    }
}

impl TryFrom<String> for RewardSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for RewardSpec {
    /// In full, so that it reads back as the same whatever the path holds.
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}={}@{}", self.name.as_str(), self.path, self.weight)
    }
}

impl From<RewardSpec> for String {
    fn from(spec: RewardSpec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const KNOWN: &str = "expected `social-reward`, `clip-score`, `aesthetic`, `pick-score`, `hps-v2`, `hps-v2.1`, \
                         `image-reward`";

    #[test]
    fn every_name_reads_back() {
        for name in RewardName::ALL {
            assert_eq!(name.as_str().parse::<RewardName>().unwrap(), name);
            let spec: RewardSpec = format!("{}=a.pt@2", name.as_str()).parse().unwrap();
            assert_eq!(spec, RewardSpec { name, path: "a.pt".to_owned(), weight: 2.0 });
        }
    }

    #[test]
    fn name_and_weight_are_optional_and_paths_may_hold_their_signs() {
        for (text, path, weight) in [
            ("clip_model/final", "clip_model/final", 1.0),
            ("social-reward=clip_model/final@0.5", "clip_model/final", 0.5),
            ("random:tiny@-2e-1", "random:tiny", -0.2),
            ("./lr=3e-5/final", "./lr=3e-5/final", 1.0),
            ("runs/lr=3e-5@2", "runs/lr=3e-5", 2.0),
            ("social-reward=a=b@v2", "a=b@v2", 1.0),
            ("me@home/model", "me@home/model", 1.0),
            ("step@2@1", "step@2", 1.0),
        ] {
            let spec: RewardSpec = text.parse().unwrap();
            assert_eq!(spec, RewardSpec { name: RewardName::SocialReward, path: path.to_owned(), weight }, "{text}");
            assert_eq!(spec.to_string().parse::<RewardSpec>().unwrap(), spec, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, message, hint) in [
            ("socialreward=a", "unknown reward `socialreward`, KNOWN", Some("did you mean `social-reward`?")),
            ("lr=3/final", "unknown reward `lr`, KNOWN", Some("a path with `=` in its first part is written `./…`")),
            ("a@0", "reward `a@0`: want a finite weight other than 0, found 0", None),
            ("a@nan", "reward `a@nan`: want a finite weight other than 0, found NaN", None),
            ("a@-inf", "reward `a@-inf`: want a finite weight other than 0, found -inf", None),
            ("social-reward=@2", "reward `social-reward=@2`: no path", Some("want [NAME=]PATH[@WEIGHT]")),
            ("", "reward ``: no path", Some("want [NAME=]PATH[@WEIGHT]")),
        ] {
            let error = text.parse::<RewardSpec>().unwrap_err();
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Usage, message.replace("KNOWN", KNOWN)));
            assert_eq!(error.hint_text(), hint, "{text}");
        }
    }

    #[test]
    fn settings_hold_it_as_text() {
        #[derive(Debug, Serialize, Deserialize)]
        struct Settings {
            reward: Vec<RewardSpec>,
        }
        let settings: Settings = toml::from_str(r#"reward = ["random:tiny", "b@3"]"#).unwrap();
        assert_eq!(
            toml::to_string(&settings).unwrap(),
            "reward = [\"social-reward=random:tiny@1\", \"social-reward=b@3\"]\n"
        );
        let error = toml::from_str::<Settings>(r#"reward = ["pickscore=b"]"#).unwrap_err();
        assert!(error.message().contains(&format!("unknown reward `pickscore`, {KNOWN}")), "{error}");
    }
}
