//! `[NAME=]PATH[@WEIGHT]`, `command:LABEL=CMD[@WEIGHT]`, `http:LABEL=URL[@WEIGHT]`: which reward, where it comes from, and what
//! it counts among others.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::name::RewardName;
use crate::{Error, Result};

/// What gives the scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RewardKind {
    /// A model of ours.
    Known(RewardName),
    /// A program of the user, by its label.
    Command(String),
    /// A server, by its label.
    Http(String),
}

/// One reward of a fine-tuning run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RewardSpec {
    /// Which one.
    pub kind: RewardKind,
    /// What [`Checkpoint::open`](crate::weights::Checkpoint::open) opens; of `aesthetic` the head's file, of `image-reward` its
    /// folder, of a command its words, of a server its URL.
    pub path: String,
    /// What its score is multiplied with; finite. 0: it is watched, not maximised.
    pub weight: f64,
}

impl RewardSpec {
    /// The reward `name` with the weights at `path`, at weight 1.
    pub fn known(name: RewardName, path: impl Into<String>) -> Self {
        Self { kind: RewardKind::Known(name), path: path.into(), weight: 1.0 }
    }

    /// The model of ours that it is; nothing of a command or a server.
    pub fn name(&self) -> Option<RewardName> {
        match self.kind {
            RewardKind::Known(name) => Some(name),
            RewardKind::Command(_) | RewardKind::Http(_) => None,
        }
    }

    /// The name in messages and files: the model's, or the label that the user gave.
    pub fn label(&self) -> &str {
        match &self.kind {
            RewardKind::Known(name) => name.as_str(),
            RewardKind::Command(label) | RewardKind::Http(label) => label,
        }
    }
}

/// What stands before the first `=` is a name if it looks like one; else it belongs to the path.
fn known(text: &str) -> Result<(RewardKind, &str)> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
    };
    match text.split_once('=') {
        Some((name, rest)) if is_name(name) => {
            let known = name.parse::<RewardName>().map_err(|error| match error.hint_text() {
                Some(_) => error,
                None => error.hint("a path with `=` in its first part is written `./…`"),
            });
            Ok((RewardKind::Known(known?), rest))
        }
        _ => Ok((RewardKind::Known(RewardName::SocialReward), text)),
    }
}

/// The label before the first `=` of `text`, which the whole `spec` has behind its scheme.
fn labelled<'a>(spec: &str, text: &'a str, form: &str) -> Result<(String, &'a str)> {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
    };
    match text.split_once('=') {
        Some((label, rest)) if is_label(label) => Ok((label.to_owned(), rest)),
        _ => Err(Error::usage(format!("reward `{spec}`: no label of a-z, 0-9, `.`, `-` and `_` before a `=`"))
            .hint(format!("want {form}"))),
    }
}

impl FromStr for RewardSpec {
    type Err = Error;

    /// What follows the last `@` is a weight if it is a number; else it belongs to the path, the command or the URL.
    fn from_str(text: &str) -> Result<Self> {
        const COMMAND: &str = "command:LABEL=CMD[@WEIGHT]";
        const HTTP: &str = "http:LABEL=URL[@WEIGHT]";
        let (kind, rest) = if let Some(behind) = text.strip_prefix("command:") {
            let (label, rest) = labelled(text, behind, COMMAND)?;
            (RewardKind::Command(label), rest)
        } else if let Some(behind) = text.strip_prefix("http:") {
            let (label, rest) = labelled(text, behind, HTTP)?;
            (RewardKind::Http(label), rest)
        } else {
            known(text)?
        };
        let weighted = rest.rsplit_once('@').and_then(|(path, weight)| Some((path, weight.parse().ok()?)));
        let (path, weight): (&str, f64) = weighted.unwrap_or((rest, 1.0));
        if !weight.is_finite() {
            return Err(Error::usage(format!("reward `{text}`: want a finite weight, found {weight}")));
        }
        let wrong =
            |what: &str, form: &str| Err(Error::usage(format!("reward `{text}`: {what}")).hint(format!("want {form}")));
        match &kind {
            RewardKind::Known(_) if path.is_empty() => return wrong("no path", "[NAME=]PATH[@WEIGHT]"),
            RewardKind::Command(_) => match shlex::split(path) {
                Some(words) if words.is_empty() => return wrong("no command", COMMAND),
                Some(_) => {}
                None => return wrong("its command ends within quotes or after a backslash", COMMAND),
            },
            RewardKind::Http(_) if !["http://", "https://"].iter().any(|scheme| path.starts_with(scheme)) => {
                return wrong("no URL that begins with http:// or https://", HTTP);
            }
            _ => {}
        }
        Ok(Self { kind, path: path.to_owned(), weight })
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
        let scheme = match self.kind {
            RewardKind::Known(_) => "",
            RewardKind::Command(_) => "command:",
            RewardKind::Http(_) => "http:",
        };
        write!(formatter, "{scheme}{}={}@{}", self.label(), self.path, self.weight)
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
            assert_eq!(spec, RewardSpec { weight: 2.0, ..RewardSpec::known(name, "a.pt") });
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
            ("watched@0", "watched", 0.0),
        ] {
            let spec: RewardSpec = text.parse().unwrap();
            assert_eq!(spec, RewardSpec { weight, ..RewardSpec::known(RewardName::SocialReward, path) }, "{text}");
            assert_eq!(spec.to_string().parse::<RewardSpec>().unwrap(), spec, "{text}");
        }
    }

    #[test]
    fn commands_and_servers_have_labels_and_keep_their_signs() {
        let command = |label: &str| RewardKind::Command(label.to_owned());
        let http = |label: &str| RewardKind::Http(label.to_owned());
        for (text, kind, path, weight) in [
            ("command:ocr=python3 score.py", command("ocr"), "python3 score.py", 1.0),
            ("command:my_ocr-2.0=a 'b c' d=e@0.5", command("my_ocr-2.0"), "a 'b c' d=e", 0.5),
            ("command:x=mail me@home", command("x"), "mail me@home", 1.0),
            ("command:x=score 'a@2'", command("x"), "score 'a@2'", 1.0),
            ("command:x=score @0", command("x"), "score ", 0.0),
            ("http:x=http://localhost:8000/score", http("x"), "http://localhost:8000/score", 1.0),
            ("http:x=https://user@host/?a=b", http("x"), "https://user@host/?a=b", 1.0),
            ("http:x=http://user:word@host@-2", http("x"), "http://user:word@host", -2.0),
        ] {
            let spec: RewardSpec = text.parse().unwrap();
            assert_eq!(spec, RewardSpec { kind, path: path.to_owned(), weight }, "{text}");
            assert_eq!(spec.to_string().parse::<RewardSpec>().unwrap(), spec, "{text}");
            assert_eq!(spec.name(), None);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, message, hint) in [
            ("socialreward=a", "unknown reward `socialreward`, KNOWN", Some("did you mean `social-reward`?")),
            ("lr=3/final", "unknown reward `lr`, KNOWN", Some("a path with `=` in its first part is written `./…`")),
            ("a@nan", "reward `a@nan`: want a finite weight, found NaN", None),
            ("a@-inf", "reward `a@-inf`: want a finite weight, found -inf", None),
            ("social-reward=@2", "reward `social-reward=@2`: no path", Some("want [NAME=]PATH[@WEIGHT]")),
            ("", "reward ``: no path", Some("want [NAME=]PATH[@WEIGHT]")),
            (
                "command:python3 score.py",
                "reward `command:python3 score.py`: no label of a-z, 0-9, `.`, `-` and `_` before a `=`",
                Some("want command:LABEL=CMD[@WEIGHT]"),
            ),
            (
                "http:OCR=http://h/score",
                "reward `http:OCR=http://h/score`: no label of a-z, 0-9, `.`, `-` and `_` before a `=`",
                Some("want http:LABEL=URL[@WEIGHT]"),
            ),
            ("command:x= @2", "reward `command:x= @2`: no command", Some("want command:LABEL=CMD[@WEIGHT]")),
            (
                "command:x=a 'b",
                "reward `command:x=a 'b`: its command ends within quotes or after a backslash",
                Some("want command:LABEL=CMD[@WEIGHT]"),
            ),
            (
                "http:x=localhost:8000",
                "reward `http:x=localhost:8000`: no URL that begins with http:// or https://",
                Some("want http:LABEL=URL[@WEIGHT]"),
            ),
            ("http:x=http://h/@inf", "reward `http:x=http://h/@inf`: want a finite weight, found inf", None),
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
