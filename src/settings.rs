//! Flags over a TOML file over defaults.

use std::path::Path;

use anyhow::Result;
use clap::{Args, Command};
use reward::{Error, error::did_you_mean};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

/// The settings `T` from `flags` (absent ones left out) over the file `config` over `T`'s defaults.
///
/// # Errors
/// The file cannot be read, or has a key or value that `T` does not know: a usage error that names it.
pub(crate) fn layered<T: DeserializeOwned, F: Args + Serialize>(flags: &F, config: Option<&Path>) -> Result<T> {
    let mut settings = toml::Table::new();
    if let Some(path) = config {
        let text = fs_err::read_to_string(path).map_err(|error| Error::usage(format!("--config: {error}")))?;
        settings = text.parse().map_err(|error: toml::de::Error| wrong(path, &error))?;
        known_keys::<F>(path, &settings)?;
        // On its own first, so that what is wrong in the file is said of the file.
        toml::Value::Table(settings.clone()).try_into::<T>().map_err(|error| wrong(path, &error))?;
    }
    settings.extend(toml::Table::try_from(flags)?);
    let merged: Result<T, toml::de::Error> = toml::Value::Table(settings).try_into();
    Ok(merged.map_err(|error| Error::usage(error.message().to_owned()))?)
}

/// A key must be a flag; serde cannot tell where structs are flattened into one another.
fn known_keys<F: Args>(path: &Path, settings: &toml::Table) -> Result<()> {
    let command = F::augment_args(Command::new(""));
    let flags = command.get_arguments().map(|flag| flag.get_id().as_str());
    let known: Vec<&str> = flags.filter(|name| !["config", "json", "resume", "dry_run"].contains(name)).collect();
    let Some(key) = settings.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
    let hint = did_you_mean(key, known.iter().copied()).unwrap_or_else(|| format!("known: {}", known.join(", ")));
    Err(Error::usage(format!("{}: unknown key `{key}`", path.display())).hint(hint).into())
}

/// What serde says, with the nearest known name: its messages quote the wrong one first and then those it knows.
fn wrong(path: &Path, error: &toml::de::Error) -> Error {
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let hint = quoted.next().and_then(|typed| did_you_mean(typed, quoted));
    let known = if hint.is_some() { message.split(", expected").next().unwrap_or(message) } else { message };
    let wrong = Error::usage(format!("{}: {}", path.display(), known.trim()));
    match hint {
        Some(hint) => wrong.hint(hint),
        None => wrong,
    }
}

/// Reads a key that may be given several times on the command line: a string, or a list of them.
pub(crate) fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "want a string or a list of strings")]
    enum Given {
        One(String),
        Several(Vec<String>),
    }
    Ok(Some(match Given::deserialize(deserializer)? {
        Given::One(one) => vec![one],
        Given::Several(several) => several,
    }))
}
