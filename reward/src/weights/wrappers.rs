//! A model's tensors under whatever wraps them: dictionaries, prefixes and the names that trainers put into keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    file::{Places, TensorFile},
    listed,
};
use crate::{Error, Result};

/// What compilation, data parallelism, FSDP and activation checkpointing put between the parts of a key.
const INNER: [&str; 5] =
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];

/// Splits `PATH#NAME`, which names one set of tensors of a file; a file whose name has the sign is taken as it is.
pub fn split(path: &str) -> (&str, Option<&str>) {
    match path.rsplit_once('#') {
        Some((file, name)) if !Path::new(path).exists() && Path::new(file).exists() => (file, Some(name)),
        _ => (path, None),
    }
}

/// Opens the file of one model, as [`find`] finds it, under its own keys. `PATH#NAME` chooses one of several.
///
/// # Errors
/// As [`TensorFile::open`] and [`find`].
pub fn open(path: &str, anchors: &[&str]) -> Result<TensorFile> {
    let (path, choice) = split(path);
    let file = TensorFile::open_all(Path::new(path))?;
    let places = find(std::slice::from_ref(&file), anchors, choice)?;
    Ok(file.renamed(places))
}

/// Finds the model in files that are opened with all their dictionaries. A model is the keys beside one of `anchors`, keys
/// that each such model has, below any dictionaries and any prefix. What lies elsewhere (an optimizer, a loss) is left
/// out; keys without an anchor in any file are taken as they are. `choice`: which, where there are several.
///
/// # Errors
/// Several models and no choice, a choice that is not there, or two tensors for one key.
pub fn find(files: &[TensorFile], anchors: &[&str], choice: Option<&str>) -> Result<Places> {
    let label = files.first().map(|file| file.path().display().to_string()).unwrap_or_default();
    let mut models = BTreeSet::new();
    for file in files {
        for name in file.shapes().keys() {
            let dictionary = file.dictionary(name);
            let key = file.key(name);
            models.extend(anchors.iter().filter_map(|anchor| {
                Some(Model { dictionary: dictionary.to_owned(), prefix: before(key, anchor)?.to_owned() })
            }));
        }
    }
    let chosen = match (choice, models.len()) {
        (None, 0) => return places(&label, files, &largest(files), &models),
        (None, 1) => models.first(),
        (None, _) => {
            let names: Vec<String> = models.iter().map(Model::name).collect();
            let example = names.first().cloned().unwrap_or_default();
            return Err(Error::data(format!("{label}: holds {} models: {}", names.len(), listed(&names))).hint(
                format!("--weights NAME chooses one; where a path stands in a list, PATH#NAME does: {label}#{example}"),
            ));
        }
        (Some(choice), _) => {
            let exact = models.iter().find(|model| model.name() == choice);
            let mut below = models.iter().filter(|model| model.name().starts_with(&format!("{choice}.")));
            exact.or_else(|| below.next().filter(|_| below.next().is_none()))
        }
    };
    match chosen {
        Some(model) => places(&label, files, model, &models),
        None => {
            let names: Vec<String> = models.iter().map(Model::name).collect();
            let found = if names.is_empty() {
                "it holds no such model".to_owned()
            } else {
                format!("it holds {}", listed(&names))
            };
            Err(Error::data(format!("{label}: no weights `{}`: {found}", choice.unwrap_or_default())))
        }
    }
}

/// A model's place: the dictionary its tensors are in, and what their keys begin with there.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Model {
    dictionary: String,
    prefix: String,
}

impl Model {
    /// As the user names it; a dot is the top.
    fn name(&self) -> String {
        match super::tensors::joined(&self.dictionary, &self.prefix) {
            name if name.is_empty() => ".".to_owned(),
            name => name,
        }
    }

    /// The rest of a key that belongs to it.
    fn rest<'a>(&self, dictionary: &str, key: &'a str) -> Option<&'a str> {
        (dictionary == self.dictionary).then_some(())?;
        match self.prefix.as_str() {
            "" => Some(key),
            prefix => key.strip_prefix(prefix)?.strip_prefix('.'),
        }
    }
}

/// All of the dictionary with most tensors.
fn largest(files: &[TensorFile]) -> Model {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for file in files {
        file.shapes().keys().for_each(|name| *sizes.entry(file.dictionary(name)).or_default() += 1);
    }
    let dictionary = sizes.into_iter().max_by_key(|(_, size)| *size).map_or("", |(dictionary, _)| dictionary);
    Model { dictionary: dictionary.to_owned(), prefix: String::new() }
}

fn places(label: &str, files: &[TensorFile], model: &Model, models: &BTreeSet<Model>) -> Result<Places> {
    let mut places = Places::new();
    for (index, file) in files.iter().enumerate() {
        for name in file.shapes().keys() {
            let dictionary = file.dictionary(name);
            let key = file.key(name);
            let Some(rest) = model.rest(dictionary, key) else { continue };
            // Another model may lie below this one's prefix: a copy beside the weights that it is the mean of.
            let nested =
                |other: &&Model| other.prefix.len() > model.prefix.len() && other.rest(dictionary, key).is_some();
            if models.iter().any(|other| nested(&other)) {
                continue;
            }
            let clean = clean(rest);
            if let Some((_, other)) = places.insert(clean.clone(), (index, name.clone())) {
                return Err(Error::data(format!("{label}: two tensors for `{clean}`: `{other}` and `{name}`")));
            }
        }
    }
    Ok(places)
}

/// A key without what trainers put into it.
fn clean(key: &str) -> String {
    let parts: Vec<&str> = key.split('.').filter(|part| !INNER.contains(part)).collect();
    parts.join(".")
}

/// What stands before `anchor` at the end of `key`, whatever trainers put between its parts.
fn before<'a>(key: &'a str, anchor: &str) -> Option<&'a str> {
    let mut rest = key;
    let mut wanted = anchor.rsplit('.').peekable();
    while let Some(part) = wanted.peek() {
        let (head, last) = rest.rsplit_once('.').unwrap_or(("", rest));
        if last == *part {
            wanted.next();
        } else if !INNER.contains(&last) {
            return None;
        }
        if head.is_empty() && wanted.peek().is_some() {
            return None;
        }
        rest = head;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_an_anchor() {
        for (key, wanted) in [
            ("visual.conv1.weight", Some("")),
            ("net.visual.conv1.weight", Some("net")),
            ("a.b._orig_mod.visual.module.conv1.weight", Some("a.b._orig_mod")),
            ("supervisual.conv1.weight", None),
            ("conv1.weight", None),
            ("visual.layer.conv1.weight", None),
            ("", None),
        ] {
            assert_eq!(before(key, "visual.conv1.weight"), wanted, "{key}");
        }
        assert_eq!(clean("_orig_mod.visual._checkpoint_wrapped_module.conv1.module.weight"), "visual.conv1.weight");
    }
}
