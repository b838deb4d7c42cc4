//! `PATH[@SCALE]`: a LoRA and how strongly it counts.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// One LoRA of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LoraSpec {
    /// A file, or a folder that holds one.
    pub path: PathBuf,
    /// Factor on its update; finite.
    pub scale: f64,
}

impl LoraSpec {
    /// The LoRA at `path` as it is.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), scale: 1.0 }
    }
}

impl FromStr for LoraSpec {
    type Err = Error;

    /// An end `@NUMBER` is the scale, unless something lies under the whole name.
    fn from_str(text: &str) -> Result<Self> {
        let scaled = text.rsplit_once('@').and_then(|(path, scale)| Some((path, scale.parse().ok()?)));
        let (path, scale) = scaled.filter(|_| !PathBuf::from(text).exists()).unwrap_or((text, 1.0));
        if path.is_empty() {
            return Err(Error::usage(format!("lora `{text}`: no path")).hint("want PATH[@SCALE]"));
        }
        if !f64::is_finite(scale) {
            return Err(Error::usage(format!("lora `{text}`: want a finite scale, found {scale}")));
        }
        Ok(Self { path: path.into(), scale })
    }
}

impl TryFrom<String> for LoraSpec {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for LoraSpec {
    /// The scale is left out where it is 1 and the path cannot be mistaken for one with a scale.
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let path = self.path.display().to_string();
        let ambiguous = path.rsplit_once('@').is_some_and(|(_, end)| end.parse::<f64>().is_ok());
        if self.scale == 1.0 && !ambiguous {
            formatter.write_str(&path)
        } else {
            write!(formatter, "{path}@{}", self.scale)
        }
    }
}

impl From<LoraSpec> for String {
    fn from(spec: LoraSpec) -> Self {
        spec.to_string()
    }
}

/// Reads `lora` of a config: a string, or a list of them.
pub(crate) fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LoraSpec>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "`lora` wants PATH[@SCALE] as a string, or a list of such strings")]
    enum Given {
        One(String),
        Several(Vec<String>),
    }
    let given = match Given::deserialize(deserializer)? {
        Given::One(one) => vec![one],
        Given::Several(several) => several,
    };
    given.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_scale_if_it_is_a_number_and_no_file_has_the_whole_name() {
        let spec = |text: &str| text.parse::<LoraSpec>().unwrap();
        let of = |path: &str, scale: f64| LoraSpec { path: path.into(), scale };
        for (text, path, scale, shown) in [
            ("a.safetensors", "a.safetensors", 1.0, "a.safetensors"),
            ("a.safetensors@0.5", "a.safetensors", 0.5, "a.safetensors@0.5"),
            ("a@-1", "a", -1.0, "a@-1"),
            ("me@home/a", "me@home/a", 1.0, "me@home/a"),
            ("a@v2.safetensors", "a@v2.safetensors", 1.0, "a@v2.safetensors"),
            ("a@2@0.5", "a@2", 0.5, "a@2@0.5"),
        ] {
            assert_eq!(spec(text), of(path, scale));
            assert_eq!(spec(text).to_string(), shown);
            assert_eq!(spec(shown), of(path, scale));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("style@2").display().to_string();
        assert_eq!(spec(&path).scale, 2.0);
        fs_err::write(&path, "").unwrap();
        assert_eq!(spec(&path), of(&path, 1.0));
        assert_eq!(spec(&path).to_string(), format!("{path}@1"));
        assert_eq!(spec(&format!("{path}@1")), of(&path, 1.0));
        for (wrong, part) in [("@0.5", "no path"), ("", "no path"), ("a@nan", "finite"), ("a@inf", "finite")] {
            let error = wrong.parse::<LoraSpec>().unwrap_err();
            assert!(error.to_string().contains(part) && error.kind() == crate::ErrorKind::Usage, "{error}");
        }
    }
}
