//! One error type for the crate: what was read, what was wanted, what was found; apart from it, the way out.

use std::{
    error::Error as StdError,
    sync::atomic::{AtomicBool, Ordering},
};

/// Who has to act, which decides the exit code of the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The command line or the config is wrong; decided before any data is read (exit code 2).
    Usage,
    /// Data, files or the run itself failed (exit code 1).
    Data,
    /// The user asked to stop (exit code 130 or 143).
    Interrupted,
}

/// A failure a user can act on. `message` is one line that names the file, row, key or flag.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A wrong flag or config key.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Usage, message: one_line(message.into()), hint: None, source: None }
    }

    /// A file, row or tensor that is not as it has to be, or a run that failed.
    pub fn data(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Data, message: one_line(message.into()), hint: None, source: None }
    }

    /// The user asked to stop.
    pub fn interrupted() -> Self {
        Self { kind: ErrorKind::Interrupted, message: "interrupted".to_owned(), hint: None, source: None }
    }

    /// Adds the way out, printed on a line of its own.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says `name` wherever its message said `temporary`: a file has a temporary name while it is written.
    #[must_use]
    pub(crate) fn renamed(mut self, temporary: &str, name: &str) -> Self {
        self.message = self.message.replace(temporary, name);
        self
    }

    /// Who has to act.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The way out, if there is a known one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// The error where the user asked to stop.
pub(crate) fn interrupted(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(Error::interrupted()) } else { Ok(()) }
}

/// The message with line ends and other control characters escaped: what a file or its name holds is quoted in messages.
fn one_line(message: String) -> String {
    let shown = |letter: char| match letter.is_control() {
        true => letter.escape_default().collect(),
        false => letter.to_string(),
    };
    if message.contains(char::is_control) { message.chars().map(shown).collect() } else { message }
}

/// `fs_err` errors name their path already.
impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::data(error.to_string())
    }
}

/// The error for a name that is none of the known `names`, with the nearest as its hint. `what`: what the name is of.
pub fn unknown_name(what: &str, name: &str, names: &[&str]) -> Error {
    let error = Error::usage(format!("unknown {what} `{name}`, expected `{}`", names.join("`, `")));
    match did_you_mean(name, names.iter().copied()) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// "did you mean" for a closed set: the nearest known name, if it is near.
pub fn did_you_mean<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().min(typed.len()).div_euclid(4))
        .min()
        .map(|(_, name)| format!("did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_it_quotes() {
        let error = Error::data("m.csv has no column `prompt` (it has: a\nb, \u{1b}[31m, Grüße)");
        assert_eq!(error.to_string(), r"m.csv has no column `prompt` (it has: a\nb, \u{1b}[31m, Grüße)");
    }
}
