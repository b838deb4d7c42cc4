//! Flags over a TOML file over defaults.

use std::path::Path;

use anyhow::Result;
use clap::{ArgAction, Args, Command};
use reward::{Error, error::did_you_mean, foreign, text};
use serde::{Serialize, de::DeserializeOwned};

/// The settings `T` from `flags` (absent ones left out) over the file `config` over `T`'s defaults.
///
/// # Errors
/// The file cannot be read, has a key or value that `T` does not know, or a path is a URL. Each is a usage error that names it.
pub(crate) fn layered<T: DeserializeOwned, F: Args + Serialize>(flags: &F, config: Option<&Path>) -> Result<T> {
    let mut settings = toml::Table::new();
    if let Some(path) = config {
        settings = read::<F>(path)?;
        // On its own first, so that what is wrong in the file is said of the file.
        checked::<T>(&settings).map_err(|error| wrong(path, &error))?;
    }
    settings.extend(toml::Table::try_from(flags)?);
    no_urls(&settings)?;
    let merged: Result<T, toml::de::Error> = toml::Value::Table(settings).try_into();
    Ok(merged.map_err(|error| Error::usage(error.message().to_owned()))?)
}

/// The keys and values of a file, all of them flags of `F`.
fn read<F: Args>(path: &Path) -> Result<toml::Table> {
    let link = path.to_str().and_then(|text| foreign::url(text, "settings in TOML"));
    let text = link.map_or_else(|| text::read(path, "settings in TOML"), Err).map_err(|error| {
        let hint = error.hint_text().unwrap_or_default().to_owned();
        Error::usage(format!("--config: {error}")).hint(hint)
    })?;
    let mut settings: toml::Table = text.parse().map_err(|error: toml::de::Error| malformed(path, &text, &error))?;
    known_keys::<F>(path, &settings)?;
    // A flag that may be given several times takes one value, or a list of them.
    let command = F::augment_args(Command::new(""));
    for flag in command.get_arguments().filter(|flag| matches!(flag.get_action(), ArgAction::Append)) {
        let Some(value) = settings.get_mut(flag.get_id().as_str()) else { continue };
        let Some(text) = value.as_str() else { continue };
        let values: Vec<&str> = match flag.get_value_delimiter() {
            Some(delimiter) => text.split(delimiter).collect(),
            None => vec![text],
        };
        *value = values.into();
    }
    Ok(settings)
}

/// The settings `T`, or what is wrong with them, under the key that it is about.
fn checked<T: DeserializeOwned>(settings: &toml::Table) -> Result<T, Wrong> {
    let read = |settings: &toml::Table| toml::Value::Table(settings.clone()).try_into::<T>();
    read(settings).map_err(|error| {
        // serde does not tell the key: it is the one without which all is well, or what is wrong is another thing.
        let is_it = |key: &&String| {
            let mut others = settings.clone();
            others.remove(*key);
            read(&others).map_or_else(|other| other.message() != error.message(), |_| true)
        };
        Wrong { key: settings.keys().find(is_it).cloned(), message: error.message().to_owned() }
    })
}

/// What serde refuses.
struct Wrong {
    key: Option<String>,
    message: String,
}

/// No setting but a prompt may be a URL: paths are of local files, models of the hub have names.
fn no_urls(settings: &toml::Table) -> Result<()> {
    let texts = |value: &toml::Value| -> Vec<String> {
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        values.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect()
    };
    for (key, value) in settings.iter().filter(|(key, _)| !["prompt", "negative_prompt"].contains(&key.as_str())) {
        for text in texts(value) {
            // Of NAME=PATH, the path.
            let path =
                text.split_once('=').filter(|(name, _)| !name.contains(':')).map_or(text.as_str(), |(_, path)| path);
            let Some(error) = foreign::url(path, "a local path") else { continue };
            let hub = path.strip_prefix("https://huggingface.co/").map(|id| id.split('/').take(2).collect::<Vec<_>>());
            let model = hub.filter(|id| id.len() == 2 && !["datasets", "spaces"].contains(&id[0]));
            let hint = model.map(|id| format!("a model of the hub is named by its id: {}", id.join("/")));
            let hint = hint.unwrap_or_else(|| error.hint_text().unwrap_or_default().to_owned());
            return Err(Error::usage(format!("{key}: {error}")).hint(hint).into());
        }
    }
    Ok(())
}

/// A key must be a flag; serde cannot tell where structs are flattened into one another.
fn known_keys<F: Args>(path: &Path, settings: &toml::Table) -> Result<()> {
    let command = F::augment_args(Command::new(""));
    let flags = command.get_arguments().map(|flag| flag.get_id().as_str());
    let known: Vec<&str> = flags
        .filter(|name| !["config", "json", "resume", "dry_run", "rank_timeout", "join_timeout"].contains(name))
        .collect();
    let Some(key) = settings.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
    let hint = did_you_mean(key, known.iter().copied()).unwrap_or_else(|| format!("known: {}", known.join(", ")));
    Err(Error::usage(format!("{}: unknown key `{key}`", path.display())).hint(hint).into())
}

/// What serde says, with the nearest known name: its messages quote the wrong one first and then those it knows.
fn wrong(path: &Path, Wrong { key, message }: &Wrong) -> Error {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let hint = quoted.next().and_then(|typed| did_you_mean(typed, quoted));
    let known = if hint.is_some() { message.split(", expected").next().unwrap_or(message) } else { message };
    let key = key.as_ref().map_or(String::new(), |key| format!("`{key}`: "));
    let wrong = Error::usage(format!("{}: {key}{}", path.display(), in_words(known.trim())));
    match hint {
        Some(hint) => wrong.hint(hint),
        None => wrong,
    }
}

/// The ranges of Rust's types.
fn in_words(message: &str) -> String {
    let whole = |most: &dyn std::fmt::Display| format!("a whole number from 0 to {most}");
    let words = [
        ("u32", whole(&u32::MAX)),
        ("usize", whole(&usize::MAX)),
        ("u64", whole(&u64::MAX)),
        ("f64", "a number".to_owned()),
    ];
    let typed = words.iter().find_map(|(kind, words)| {
        Some(message.strip_suffix(&format!("expected {kind}"))?.to_owned() + "want " + words)
    });
    typed.unwrap_or_else(|| message.to_owned())
}

/// What is no TOML, by line.
fn malformed(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = match error.message().trim() {
        "u64 value was too large" => "a number above 9223372036854775807, more than TOML has".to_owned(),
        other => other.replace('\n', ", "),
    };
    let wrong = Error::usage(format!("{} line {line}: {message}", path.display()));
    let written = text.lines().nth(line - 1).unwrap_or_default();
    let digits = written.split(|letter: char| !letter.is_ascii_digit()).any(|digits| digits.len() > 18);
    if digits {
        wrong.hint("a seed above 9223372036854775807 is written as a string: seed = \"18446744073709551615\"")
    } else {
        wrong
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Args, Serialize)]
    struct Flags {
        #[arg(long)]
        reward: Option<Vec<String>>,
        #[arg(long, value_delimiter = ',')]
        metrics: Option<Vec<String>>,
        #[arg(long)]
        prompt: Option<String>,
        #[arg(long)]
        output: Option<String>,
        #[arg(long)]
        steps: Option<u32>,
        #[arg(long)]
        #[serde(default, with = "reward::seed::optional", skip_serializing_if = "Option::is_none")]
        seed: Option<u64>,
    }

    const NONE: Flags = Flags { reward: None, metrics: None, prompt: None, output: None, steps: None, seed: None };

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        reward: Vec<String>,
        metrics: Vec<String>,
        prompt: String,
        output: String,
        steps: usize,
        #[serde(with = "reward::seed")]
        seed: u64,
    }

    impl Default for Settings {
        fn default() -> Self {
            let none = String::new;
            Self { reward: Vec::new(), metrics: Vec::new(), prompt: none(), output: none(), steps: 50, seed: 0 }
        }
    }

    /// The settings of a file of this content, or the message and the hint.
    fn of_file(content: impl AsRef<[u8]>) -> Result<Settings, (String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        fs_err::write(&path, content).unwrap();
        layered(&NONE, Some(&path)).map_err(|error| refused(&error, &folder.path().display().to_string()))
    }

    fn refused(error: &anyhow::Error, folder: &str) -> (String, String) {
        let error = error.downcast_ref::<Error>().unwrap();
        assert_eq!(error.kind(), reward::ErrorKind::Usage, "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        (error.to_string().replace(&format!("{folder}/"), ""), error.hint_text().unwrap_or_default().to_owned())
    }

    #[test]
    fn what_may_be_given_several_times_is_a_string_or_a_list() {
        for text in ["reward = \"a@0.5\"\nmetrics = \"x,y=p\"", "reward = [\"a@0.5\"]\nmetrics = [\"x\", \"y=p\"]"] {
            let settings = of_file(text).unwrap();
            assert_eq!((settings.reward, settings.metrics), (vec!["a@0.5".to_owned()], vec!["x".into(), "y=p".into()]));
        }
        let (message, _) = of_file("prompt = [\"a\"]").unwrap_err();
        assert_eq!(message, "c.toml: `prompt`: invalid type: sequence, expected a string");
    }

    #[test]
    fn seeds_of_all_sizes() {
        for (text, seed) in [("7", 7), ("9223372036854775807", i64::MAX as u64), ("\"18446744073709551615\"", u64::MAX)]
        {
            assert_eq!(of_file(format!("seed = {text}")).unwrap().seed, seed);
        }
        let flags = Flags { seed: Some(u64::MAX), ..NONE };
        assert_eq!(layered::<Settings, _>(&flags, None).unwrap().seed, u64::MAX);
        let (message, hint) = of_file("steps = 3\nseed = 18446744073709551615").unwrap_err();
        assert!(message.starts_with("c.toml line 2: "), "{message}");
        assert!(hint.contains("written as a string"), "{hint}");
        let (message, _) = of_file("seed = -1").unwrap_err();
        let wanted = "c.toml: `seed`: invalid value: integer `-1`, expected a whole number from 0 to 18446744073709551615 \
                      (as a string above 9223372036854775807)";
        assert_eq!(message, wanted);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key_and_range() {
        let (message, _) = of_file("seed = 3\nsteps = -1").unwrap_err();
        let most = usize::MAX;
        assert_eq!(
            message,
            format!("c.toml: `steps`: invalid value: integer `-1`, want a whole number from 0 to {most}")
        );
        let (message, _) = of_file("steps = 2.5").unwrap_err();
        assert!(
            message.starts_with("c.toml: `steps`: invalid type: floating point `2.5`, want a whole number"),
            "{message}"
        );
        let (message, hint) = of_file("sede = 3").unwrap_err();
        assert_eq!((message.as_str(), hint.as_str()), ("c.toml: unknown key `sede`", "did you mean `seed`?"));
        assert!(of_file("seed = 3\nsteps = ").unwrap_err().0.starts_with("c.toml line 2: "));
        let (message, hint) = of_file(b"\xff\xfes\0").unwrap_err();
        assert_eq!(
            (message.as_str(), hint.as_str()),
            ("--config: c.toml is UTF-16 text, wanted settings in TOML", "save it as UTF-8")
        );
    }

    #[test]
    fn a_url_is_no_path() {
        for (text, wanted) in [
            ("output = \"s3://bucket/run\"", "output: `s3://bucket/run` is a URL, wanted a local path"),
            ("reward = \"pick-score=https://example.org/m?a=b\"", "reward: `https://example.org/m?a=b` is a URL"),
        ] {
            let (message, _) = of_file(text).unwrap_err();
            assert!(message.starts_with(wanted), "{message}");
        }
        let (_, hint) = of_file("reward = \"https://huggingface.co/org/name/tree/main\"").unwrap_err();
        assert_eq!(hint, "a model of the hub is named by its id: org/name");
        assert!(of_file("prompt = \"https://example.org, a fox\"").is_ok());
    }

    proptest! {
        #[test]
        fn a_byte_order_mark_and_the_kind_of_line_ends_change_nothing(
            steps in 0..1000_u32,
            prompt in "[a-zäß狐 ,;#'=]{0,20}",
            rewards in prop::collection::vec("[a-z/]{1,8}", 0..3),
        ) {
            let text = format!("# settings\nprompt = \"{prompt}\"\n\nsteps = {steps}\nreward = {rewards:?}\n");
            let wanted = of_file(&text).unwrap();
            prop_assert_eq!((&wanted.prompt, wanted.steps, &wanted.reward), (&prompt, steps as usize, &rewards));
            for changed in [text.replace('\n', "\r\n"), format!("\u{feff}{text}"), format!("\u{feff}{}", text.replace('\n', "\r\n"))] {
                prop_assert_eq!(&of_file(&changed).unwrap(), &wanted);
            }
        }
    }
}
