//! The prompts of a run: from the command line or a file, and what is worth a warning about them.

use std::{collections::BTreeSet, path::Path};

use reward::event::{Event, Observer};

use crate::{Error, Result, tokenizer::Tokenizer};

/// The prompts that were typed, or else those of `file`.
///
/// # Errors
/// Neither or both are given, or the file cannot be read.
pub fn gather(typed: &[String], file: Option<&Path>, observer: &dyn Observer) -> Result<Vec<String>> {
    match (typed, file) {
        ([], Some(file)) => read(file, observer),
        ([], None) => Err(Error::usage("no prompt").hint("--prompt TEXT, or --prompts FILE")),
        (typed, None) => Ok(typed.to_vec()),
        (_, Some(_)) => Err(Error::usage("prompt and prompts are both set: want one of them")),
    }
}

/// The prompts of `file` ([`reward::data::prompts::read`]), saying where they are from if that is not plain.
///
/// # Errors
/// The file cannot be read.
pub fn read(file: &Path, observer: &dyn Observer) -> Result<Vec<String>> {
    reward::data::prompts::read_noted(file, &mut |note| observer.event(&Event::Note(note)))
}

/// Warns, once each, of repeated prompts (equal seeds make equal images) and of prompts that are cut.
///
/// # Errors
/// The tokenizer fails.
pub fn warn(prompts: &[String], negative: &str, tokenizer: &Tokenizer, observer: &dyn Observer) -> Result<()> {
    let distinct: BTreeSet<&str> = prompts.iter().map(String::as_str).collect();
    let repeated = prompts.len() - distinct.len();
    if repeated > 0 {
        let text = format!("{repeated} prompt(s) repeat earlier ones: same prompt and seed make the same image");
        observer.event(&Event::Warning(&text));
    }
    let mut cut = Vec::new();
    for prompt in distinct.into_iter().chain([negative]) {
        let encoded = tokenizer.encode(prompt)?;
        if encoded.truncated {
            cut.push(encoded.tokens);
        }
    }
    if let Some(longest) = cut.iter().max() {
        let text = format!(
            "{} prompt(s) are longer than the {} tokens that the model reads and were cut (the longest has {longest})",
            cut.len(),
            tokenizer.length(),
        );
        observer.event(&Event::Warning(&text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use reward::event::Silent;

    use super::*;

    #[test]
    fn prompts_come_from_one_place() {
        let typed = ["fox".to_owned(), "owl".to_owned()];
        assert_eq!(gather(&typed, None, &Silent).unwrap(), typed);
        let both = gather(&typed, Some(Path::new("x")), &Silent).unwrap_err();
        assert_eq!(both.kind(), crate::ErrorKind::Usage);
        assert_eq!(gather(&[], None, &Silent).unwrap_err().hint_text(), Some("--prompt TEXT, or --prompts FILE"));
    }
}
