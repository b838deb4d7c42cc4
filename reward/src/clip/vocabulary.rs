//! The tokenizer files of a CLIP folder, held against OpenAI's vocabulary, which is the one that prompts are read with.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use super::tokenizer::{MERGES, Tokenizer};
use crate::{Error, Result, text};

/// Other spellings of the start and the end token, by their ids; open_clip's.
const OTHER_SPELLINGS: [(u32, &str); 2] = [(Tokenizer::START, "<start_of_text>"), (Tokenizer::END, "<end_of_text>")];

/// What is read of `tokenizer.json`.
#[derive(Deserialize)]
struct Fast {
    model: FastModel,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct FastModel {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// A token that is found in a prompt before words are.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// Two pieces: a list, or a text with a space between them.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pieces;
        impl<'de> Visitor<'de> for Pieces {
            type Value = Merge;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("two pieces")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                let (left, right) = text.split_once(' ').ok_or_else(|| E::custom("a merge without a space"))?;
                Ok(Merge(left.to_owned(), right.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                let mut piece =
                    |place| list.next_element()?.ok_or_else(|| serde::de::Error::invalid_length(place, &"two pieces"));
                Ok(Merge(piece(0)?, piece(1)?))
            }
        }
        deserializer.deserialize_any(Pieces)
    }
}

/// Refuses a folder whose tokenizer files, as far as it has any, are not OpenAI's.
///
/// # Errors
/// A file that cannot be read, or says something else, by its first difference.
pub(crate) fn check(folder: &Path) -> Result<()> {
    let ours = Tokenizer::openai();
    let path = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    if let Some(path) = path("vocab.json") {
        vocabulary(&path, ours, &parsed(&path)?)?;
    }
    if let Some(path) = path("merges.txt") {
        let text = text::read(&path, "merges of a tokenizer")?;
        let lines = text.lines().skip_while(|line| line.starts_with("#version")).filter(|line| !line.is_empty());
        let pairs = lines.take(MERGES).map(|line| line.split_once(' ').unwrap_or((line, "")));
        merges(&path, ours, pairs)?;
    }
    if let Some(path) = path("tokenizer.json") {
        let Fast { model, added_tokens } = parsed(&path)?;
        vocabulary(&path, ours, &model.vocab)?;
        merges(&path, ours, model.merges.iter().map(|Merge(left, right)| (left.as_str(), right.as_str())))?;
        added_tokens.iter().try_for_each(|Added { id, content }| added(&path, *id, content))?;
    }
    if let Some(path) = path("added_tokens.json") {
        let tokens: BTreeMap<String, u32> = parsed(&path)?;
        tokens.iter().try_for_each(|(content, id)| added(&path, *id, content))?;
    }
    Ok(())
}

fn parsed<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    serde_json::from_str(&text::read(path, "a JSON file")?)
        .map_err(|error| other(path, &format!("no tokenizer file of a CLIP: {}", error.to_string().replace('\n', " "))))
}

fn other(path: &Path, what: &str) -> Error {
    Error::data(format!("{}: {what}", path.display()))
        .hint("prompts are read with OpenAI's CLIP vocabulary: models with another tokenizer are not supported")
}

fn is_piece(ours: &Tokenizer, id: u32, piece: &str) -> bool {
    ours.pieces.get(id as usize).is_some_and(|own| own == piece) || OTHER_SPELLINGS.contains(&(id, piece))
}

fn vocabulary(path: &Path, ours: &Tokenizer, theirs: &HashMap<String, u32>) -> Result<()> {
    let (found, want) = (theirs.len(), ours.pieces.len());
    if found != want {
        return Err(other(path, &format!("{found} tokens, want {want}")));
    }
    // The first by id, so that the message is the same every time.
    let different = theirs.iter().filter(|(piece, id)| !is_piece(ours, **id, piece)).min_by_key(|(_, id)| **id);
    match different {
        None => Ok(()),
        Some((piece, id)) => {
            let own = ours.pieces.get(*id as usize).map_or("none", String::as_str);
            Err(other(path, &format!("token {id} is `{}`, want `{own}`", piece.escape_debug())))
        }
    }
}

/// Merges, the best first.
fn merges<'a>(path: &Path, ours: &Tokenizer, theirs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<()> {
    let mut own: Vec<(u32, (u32, u32))> = ours.merges.iter().map(|(&pair, &id)| (id, pair)).collect();
    own.sort_unstable();
    let mut found = 0;
    for ((left, right), (_, pair)) in theirs.zip(&own) {
        let [own_left, own_right] = [pair.0, pair.1].map(|id| ours.pieces[id as usize].as_str());
        found += 1;
        if (left, right) != (own_left, own_right) {
            let (left, right) = (left.escape_debug(), right.escape_debug());
            return Err(other(path, &format!("merge {found} is `{left} {right}`, want `{own_left} {own_right}`")));
        }
    }
    if found == MERGES { Ok(()) } else { Err(other(path, &format!("{found} merges, want {MERGES}"))) }
}

fn added(path: &Path, id: u32, content: &str) -> Result<()> {
    let known = [Tokenizer::START, Tokenizer::END].contains(&id) && is_piece(Tokenizer::openai(), id, content);
    if known {
        return Ok(());
    }
    Err(other(path, &format!("an added token `{}` with id {id}", content.escape_debug())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn another_tokenizer_is_refused_by_file_and_difference() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        check(folder.path()).unwrap();
        Tokenizer::openai().write_files(folder.path()).unwrap();
        check(folder.path()).unwrap();
        let [vocabulary, merges] = ["vocab.json", "merges.txt"].map(|name| fs_err::read_to_string(path(name)).unwrap());
        let refused = |name: &str, text: &str| {
            fs_err::write(path(name), text).unwrap();
            let error = check(folder.path()).unwrap_err();
            error.to_string().replace(&format!("{}/", folder.path().display()), "")
        };
        assert_eq!(refused("merges.txt", ""), "merges.txt: 0 merges, want 48894");
        assert_eq!(refused("merges.txt", "#version: 0.2\nx y\n"), "merges.txt: merge 1 is `x y`, want `i n`");
        // Later versions of the file go on after the merges that are used.
        fs_err::write(path("merges.txt"), format!("{merges}x y\n")).unwrap();
        check(folder.path()).unwrap();
        assert_eq!(refused("vocab.json", "{}"), "vocab.json: 0 tokens, want 49408");
        assert!(
            refused("vocab.json", "garbage").starts_with("vocab.json: no tokenizer file of a CLIP: expected value")
        );
        let swapped = vocabulary.replace("\"cat</w>\":2368", "\"cat</w>\":2369");
        assert_eq!(refused("vocab.json", &swapped), "vocab.json: token 2369 is `cat</w>`, want `muse`");
        fs_err::write(path("vocab.json"), vocabulary.replace("<|endoftext|>", "<end_of_text>")).unwrap();
        check(folder.path()).unwrap();
        assert_eq!(
            refused("added_tokens.json", "{\"<sks>\": 49408}"),
            "added_tokens.json: an added token `<sks>` with id 49408"
        );
        fs_err::remove_file(path("added_tokens.json")).unwrap();

        let lines: Vec<&str> = merges.lines().skip(1).collect();
        let pairs: Vec<Vec<&str>> = lines.iter().map(|line| line.split(' ').collect()).collect();
        let vocab: serde_json::Value = serde_json::from_str(&vocabulary).unwrap();
        let end = json!([{"id": 49407, "content": "<|endoftext|>", "special": true}]);
        for merges in [json!(lines), json!(pairs)] {
            let fast = json!({"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "added_tokens": end});
            fs_err::write(path("tokenizer.json"), fast.to_string()).unwrap();
            check(folder.path()).unwrap();
        }
        assert_eq!(
            refused("tokenizer.json", &json!({"model": {"vocab": vocab, "merges": lines[..9]}}).to_string()),
            "tokenizer.json: 9 merges, want 48894"
        );
    }
}
