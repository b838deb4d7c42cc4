//! `[NAME=]PATH[@WEIGHT]`: which reward, its weights on disk, and what it counts among others.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::name::RewardName;
use crate::{Error, Result};

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

impl FromStr for RewardSpec {
    type Err = Error;

    /// What stands before the first `=` is a name if it looks like one, what follows the last `@` a weight if it is a
    /// number; else they belong to the path.
    fn from_str(text: &str) -> Result<Self> {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
        };
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) if is_name(name) => {
                let known = name.parse::<RewardName>().map_err(|error| match error.hint_text() {
                    Some(_) => error,
                    None => error.hint("a path with `=` in its first part is written `./…`"),
                });
                (known?, rest)
            }
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
