//! `NAME[=PATH]`: what is measured, and the weights it needs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, closed_set, error::unknown_name, measures::PixelMeasure, rewards::name::RewardName};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricName {
    /// A learned score of an image for its prompt; needs a path.
    Reward(RewardName),
    /// A property of the pixels.
    Pixels(PixelMeasure),
    /// How unlike the images of a prompt, and of the whole set, are.
    Diversity,
    /// How far the set is from the baseline as a whole.
    SetDistance(SetDistance),
}

closed_set! {
    /// A distance between the CLIP embeddings of two sets.
    pub enum SetDistance: "distance" {
        /// Fréchet's, as in FID.
        FidClip = "fid-clip",
        /// The distance of means in a kernel's space, as in KID.
        KidClip = "kid-clip",
    }
}

impl SetDistance {
    /// What its number is.
    pub fn convention(self) -> &'static str {
        match self {
            Self::FidClip => "Frechet distance to the baseline on unit CLIP embeddings (not Inception's FID), 0 and up",
            Self::KidClip => "unbiased MMD^2 to the baseline on unit CLIP embeddings, kernel (x.y/d + 1)^3, all images",
        }
    }
}

impl MetricName {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reward(name) => name.as_str(),
            Self::Pixels(measure) => measure.as_str(),
            Self::Diversity => "diversity",
            Self::SetDistance(distance) => distance.as_str(),
        }
    }

    /// Whether its score is the cosine of a CLIP, which the portable build computes too.
    pub fn is_clip(self) -> bool {
        matches!(self, Self::Reward(RewardName::SocialReward | RewardName::ClipScore))
    }

    /// Whether it measures the embeddings of [`Options::clip`](super::Options::clip).
    pub fn wants_clip(self) -> bool {
        matches!(self, Self::Diversity | Self::SetDistance(_))
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let rewards = RewardName::ALL.into_iter().map(Self::Reward);
        rewards
            .chain(PixelMeasure::ALL.map(Self::Pixels))
            .chain([Self::Diversity])
            .chain(SetDistance::ALL.map(Self::SetDistance))
    }
}

/// One metric of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MetricSpec {
    /// What is measured.
    pub name: MetricName,
    /// The weights; given exactly where [`MetricName::Reward`] is measured.
    pub path: Option<String>,
}

impl FromStr for MetricSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) => (name, Some(path)),
            None => (text, None),
        };
        let name = MetricName::all().find(|known| known.as_str() == name).ok_or_else(|| {
            let known: Vec<&str> = MetricName::all().map(MetricName::as_str).collect();
            unknown_name("metric", name, &known)
        })?;
        match (name, path.filter(|path| !path.is_empty())) {
            (MetricName::Reward(_), None) => Err(Error::usage(format!("metric `{}` needs weights", name.as_str()))
                .hint(format!("--metrics {}=PATH", name.as_str()))),
            (MetricName::Pixels(_) | MetricName::Diversity | MetricName::SetDistance(_), Some(_)) => {
                let hint = if name.wants_clip() { "--clip PATH names the CLIP it measures with" } else { "" };
                Err(Error::usage(format!("metric `{}` takes no path", name.as_str())).hint(hint))
            }
            (name, path) => Ok(Self { name, path: path.map(str::to_owned) }),
        }
    }
}

impl TryFrom<String> for MetricSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for MetricSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match &self.path {
            Some(path) => write!(formatter, "{}={path}", self.name.as_str()),
            None => formatter.write_str(self.name.as_str()),
        }
    }
}

impl From<MetricSpec> for String {
    fn from(spec: MetricSpec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_read_and_what_is_wrong_is_said() {
        for text in ["social-reward=a=b/final", "saturation", "edge-density", "colour-entropy", "diversity", "fid-clip"]
        {
            assert_eq!(text.parse::<MetricSpec>().unwrap().to_string(), text);
        }
        for (text, message, hint) in [
            ("social-reward", "metric `social-reward` needs weights", "--metrics social-reward=PATH"),
            ("social-reward=", "metric `social-reward` needs weights", "--metrics social-reward=PATH"),
            ("contrast=x", "metric `contrast` takes no path", ""),
            ("diversity=x", "metric `diversity` takes no path", "--clip PATH names the CLIP it measures with"),
        ] {
            let error = text.parse::<MetricSpec>().unwrap_err();
            assert_eq!((error.to_string().as_str(), error.hint_text()), (message, Some(hint)), "{text}");
        }
        let error = "edge_density".parse::<MetricSpec>().unwrap_err();
        assert!(error.to_string().starts_with("unknown metric `edge_density`, expected `social-reward`, "), "{error}");
        assert_eq!(error.hint_text(), Some("did you mean `edge-density`?"));
    }
}
