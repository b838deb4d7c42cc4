//! The files of a tokenizer folder in the layouts of transformers 4 (`vocab.json`, `merges.txt`, `special_tokens_map.json`,
//! `added_tokens.json`, `added_tokens_decoder`) and 5 (`tokenizer.json`), checked, as one [`Vocabulary`].
//!
//! As `CLIPTokenizer` of transformers 5 does it, only vocabulary, merges and added tokens of a `tokenizer.json` are read. What a
//! word is and how text is normalised are the same in every folder.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use reward::foreign::{Foreign, HEAD};
use serde_json::{Map, Value};

use super::LENGTH;
use crate::{Error, Result, json};

/// Most ids of a vocabulary.
const MOST: u64 = 1 << 24;
/// Pieces of OpenAI's vocabulary, all but single letters and special tokens made by merges.
const OPENAI: usize = 49408;
/// The longest prompt in ids that a file may ask for; transformers writes 1e30 for "no limit".
const LONGEST: f64 = 65536.0;

/// The files that were there, by name.
pub(super) type Bytes = BTreeMap<&'static str, Vec<u8>>;

/// A token that is looked for in the text before it is split into words.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) content: String,
    /// Looked for after the text is put into lower case, itself in lower case.
    pub(super) normalized: bool,
    /// As tokenizers have them.
    pub(super) flags: [(&'static str, bool); 4],
}

impl Token {
    fn plain(content: &str, normalized: bool, special: bool) -> Self {
        let flags = [("single_word", false), ("lstrip", false), ("rstrip", false), ("special", special)];
        Self { content: content.to_owned(), normalized, flags }
    }

    /// From its name, or from an object as transformers writes it.
    fn of(value: &Value, special: bool) -> Option<Self> {
        if let Some(content) = value.as_str() {
            return Some(Self::plain(content, false, special));
        }
        let flag = |name: &str, default: bool| value.get(name).map_or(Some(default), Value::as_bool);
        let mut token = Self::plain(value.get("content")?.as_str()?, flag("normalized", !special)?, special);
        for (name, value) in &mut token.flags {
            *value = flag(name, *value)?;
        }
        Some(token)
    }
}

/// What a tokenizer is made of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Vocabulary {
    /// Ids of all pieces, added tokens included.
    pub(super) ids: Map<String, Value>,
    pub(super) merges: Vec<[String; 2]>,
    /// Added and special tokens by id.
    pub(super) added: BTreeMap<u32, Token>,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) pad: u32,
    pub(super) unknown: Token,
    /// Ids of every encoded prompt.
    pub(super) length: usize,
}

/// The folder that is read, and what is read of it.
struct Reader<'a> {
    folder: &'a Path,
    files: &'a Bytes,
}

impl Reader<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn refused(&self, name: &str, what: impl std::fmt::Display) -> Error {
        Error::data(format!("{}: {what}", self.path(name).display()))
    }

    /// The file that has the pieces and their ids.
    fn vocabulary(&self) -> &'static str {
        if self.files.contains_key("tokenizer.json") { "tokenizer.json" } else { "vocab.json" }
    }

    fn object(&self, name: &str) -> Result<Option<Map<String, Value>>> {
        self.files.get(name).map(|bytes| json::object(bytes.clone(), &self.path(name))).transpose()
    }

    fn needed(&self, name: &str) -> Result<&Vec<u8>> {
        self.files.get(name).ok_or_else(|| {
            self.refused(name, "no such file")
                .hint("a tokenizer folder holds tokenizer.json, or vocab.json and merges.txt")
        })
    }

    /// `vocab.json`, or the vocabulary of `tokenizer.json`: each id from 0 up once.
    fn ids(&self, name: &str, value: &Value) -> Result<Map<String, Value>> {
        let ids = value.as_object().filter(|ids| !ids.is_empty());
        let ids = ids.ok_or_else(|| self.refused(name, "no vocabulary, want an object of pieces and their ids"))?;
        let mut taken = vec![false; ids.len()];
        for (piece, id) in ids {
            let free = id.as_u64().and_then(|id| taken.get_mut(usize::try_from(id).ok()?));
            match free.filter(|taken| !**taken) {
                Some(place) => *place = true,
                None => {
                    let text = format!("`{}` has id {id}, want each of 0 to {} once", shown(piece), ids.len() - 1);
                    return Err(self.refused(name, text));
                }
            }
        }
        Ok(ids.clone())
    }

    /// Lines of two pieces, after a line with the version.
    fn merges_of_text(&self, name: &str, ids: &Map<String, Value>) -> Result<Vec<[String; 2]>> {
        let (bytes, path) = (self.needed(name)?, self.path(name));
        Foreign::refuse(&path, &bytes[..bytes.len().min(HEAD)], "merges")?;
        let text = reward::text::decode(bytes.clone(), &path, "merges")?;
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(number, line)| !(line.is_empty() || *number == 0 && line.starts_with("#version")));
        let pair = |line: &str| {
            let (left, right) = line.split_once(' ')?;
            Some([left.to_owned(), right.to_owned()])
        };
        self.merges(name, ids, lines.map(|(number, line)| (format!("line {}", number + 1), pair(line))))
    }

    /// Pairs of pieces whose whole is a piece too, each once.
    fn merges(
        &self,
        name: &str,
        ids: &Map<String, Value>,
        pairs: impl Iterator<Item = (String, Option<[String; 2]>)>,
    ) -> Result<Vec<[String; 2]>> {
        let mut merges: Vec<[String; 2]> = Vec::new();
        let (mut seen, mut made) = (HashSet::new(), HashSet::new());
        for (place, pair) in pairs {
            let pair = pair.ok_or_else(|| self.refused(name, format!("{place}: not two pieces")))?;
            let whole = pair.concat();
            if let Some(piece) = [&pair[0], &pair[1], &whole].into_iter().find(|piece| !ids.contains_key(*piece)) {
                let text = format!("{place}: `{}` is not in {}", shown(piece), self.vocabulary());
                return Err(self.refused(name, text).hint("are both files of the same tokenizer?"));
            }
            if !seen.insert(pair.clone()) {
                return Err(self.refused(name, format!("{place}: the same two pieces as before")));
            }
            made.insert(whole);
            merges.push(pair);
        }
        let long = |piece: &&String| piece.strip_suffix("</w>").unwrap_or(piece).chars().count() > 1;
        let special = |piece: &str| piece.starts_with("<|") && piece.ends_with("|>");
        let wanted = ids.keys().filter(long).filter(|piece| !special(piece) && !made.contains(*piece)).count();
        if wanted > 0 && (merges.is_empty() || ids.len() >= OPENAI) {
            let text = format!("no merge makes {wanted} pieces of {}", self.vocabulary());
            return Err(self.refused(name, text).hint("the file is empty or cut off: copy it again"));
        }
        Ok(merges)
    }

    /// Tokens beside the vocabulary with the ids that the files give them, as transformers finds them: those of
    /// `added_tokens_decoder`, or else of `added_tokens.json` and `tokenizer.json`.
    fn added(&self, config: &Map<String, Value>, specials: &[String]) -> Result<Vec<(String, u64, Token)>> {
        let mut added = Vec::new();
        let id = |name: &str, content: &str, value: Option<u64>| {
            value.filter(|id| *id < MOST).ok_or_else(|| {
                self.refused(name, format!("`{}` has no id that is a whole number below {MOST}", shown(content)))
            })
        };
        let name = "tokenizer_config.json";
        if let Some(decoder) = config.get("added_tokens_decoder").filter(|decoder| !decoder.is_null()) {
            let wrong = || self.refused(name, "`added_tokens_decoder`: want ids with tokens");
            for (key, value) in decoder.as_object().ok_or_else(wrong)? {
                let special = value.get("special").and_then(Value::as_bool).unwrap_or(false);
                let token = Token::of(value, special).filter(|_| value.is_object()).ok_or_else(wrong)?;
                added.push((name.to_owned(), id(name, &token.content, key.parse().ok())?, token));
            }
            return Ok(added);
        }
        let name = "added_tokens.json";
        for (content, value) in self.object(name)?.unwrap_or_default() {
            let special = specials.contains(&content);
            let token = Token::plain(&content, !special, special);
            added.push((name.to_owned(), id(name, &content, value.as_u64())?, token));
        }
        let name = "tokenizer.json";
        if let Some(bytes) = self.files.get(name) {
            let file = json::object(bytes.clone(), &self.path(name))?;
            for value in file.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
                let special = value.get("special").and_then(Value::as_bool).unwrap_or(false);
                let token = Token::of(value, special).filter(|_| value.is_object());
                let token = token.ok_or_else(|| self.refused(name, "`added_tokens`: want tokens with ids"))?;
                added.push((name.to_owned(), id(name, &token.content, value["id"].as_u64())?, token));
            }
        }
        Ok(added)
    }
}

impl Vocabulary {
    /// Reads the files of `folder`.
    ///
    /// # Errors
    /// A file is missing or not what it has to be: it is named, with the line or key.
    pub(super) fn read(files: &Bytes, folder: &Path) -> Result<Self> {
        let reader = Reader { folder, files };
        let (vocabulary, merges) = ("vocab.json", "merges.txt");
        let (mut ids, merges) = match files.get("tokenizer.json") {
            Some(bytes) => {
                let name = "tokenizer.json";
                let file = json::parse(bytes.clone(), &reader.path(name))?;
                let model = &file["model"];
                if model.get("type").is_some_and(|kind| kind != "BPE") {
                    return Err(reader.refused(name, format!("`model.type` is {}, want BPE", model["type"])));
                }
                let ids = reader.ids(name, &model["vocab"])?;
                let pairs = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
                let pair = |pair: &Value| match pair {
                    Value::String(pair) => {
                        pair.split_once(' ').map(|(left, right)| [left.to_owned(), right.to_owned()])
                    }
                    Value::Array(pair) => match pair.as_slice() {
                        [Value::String(left), Value::String(right)] => Some([left.clone(), right.clone()]),
                        _ => None,
                    },
                    _ => None,
                };
                let pairs = pairs.iter().enumerate().map(|(index, value)| (format!("merge {index}"), pair(value)));
                let merges = reader.merges(name, &ids, pairs)?;
                (ids, merges)
            }
            None => {
                let value = json::parse(reader.needed(vocabulary)?.clone(), &reader.path(vocabulary))?;
                let ids = reader.ids(vocabulary, &value)?;
                let merges = reader.merges_of_text(merges, &ids)?;
                (ids, merges)
            }
        };
        let config = reader.object("tokenizer_config.json")?.unwrap_or_default();
        let map = reader.object("special_tokens_map.json")?.unwrap_or_default();
        // Where the config lists tokens by id, transformers does not look into the older file.
        let places = match config.get("added_tokens_decoder").is_some_and(|decoder| !decoder.is_null()) {
            true => [(&config, "tokenizer_config.json"), (&map, "special_tokens_map.json")],
            false => [(&map, "special_tokens_map.json"), (&config, "tokenizer_config.json")],
        };
        // A token and where it is named.
        let named = |key: &str| -> Result<Option<(Token, String)>> {
            let mut places = places.iter();
            let said = places.find_map(|(file, name)| Some((file.get(key).filter(|value| !value.is_null())?, *name)));
            let Some((value, name)) = said else { return Ok(None) };
            let wrong = || reader.refused(name, format!("`{key}` is {value}, want a token"));
            // transformers looks for them in the text as it is, unless the file says otherwise.
            let normalized = value.get("normalized").and_then(Value::as_bool).unwrap_or(false);
            let token = Token::of(value, true).ok_or_else(wrong)?;
            Ok(Some((Token { normalized, ..token }, format!("`{key}` of {name}"))))
        };
        let default = |content: &str| (Token::plain(content, false, true), "a token of every CLIP".to_owned());
        let end = named("eos_token")?.unwrap_or_else(|| default("<|endoftext|>"));
        let start = named("bos_token")?.unwrap_or_else(|| default("<|startoftext|>"));
        let unknown = named("unk_token")?.unwrap_or_else(|| end.clone());
        let pad = named("pad_token")?.unwrap_or_else(|| end.clone());
        let specials: Vec<String> = [&start, &end, &unknown, &pad].map(|(token, _)| token.content.clone()).to_vec();

        let mut added: BTreeMap<u32, Token> = BTreeMap::new();
        for (name, id, token) in reader.added(&config, &specials)? {
            let known = ids.get(&token.content).and_then(Value::as_u64);
            let other = added.get(&(id as u32)).is_some_and(|other| other.content != token.content);
            // The vocabulary has every id up to its size.
            if other || known.is_some_and(|known| known != id) || (known.is_none() && id < ids.len() as u64) {
                let text = format!("`{}` has id {id}, which is another's in the vocabulary", shown(&token.content));
                return Err(reader.refused(&name, text));
            }
            added.insert(id as u32, token);
        }
        for (id, token) in &added {
            ids.insert(token.content.clone(), Value::from(*id));
        }
        let id = |(token, place): &(Token, String)| -> Result<u32> {
            let id = ids.get(&token.content).and_then(Value::as_u64);
            let missing = || format!("no `{}`, which is {place}", shown(&token.content));
            Ok(id.ok_or_else(|| reader.refused(reader.vocabulary(), missing()))? as u32)
        };
        let (start_id, end_id, pad_id) = (id(&start)?, id(&end)?, id(&pad)?);
        let unknown_id = id(&unknown)?;
        // Of two with the same content the later counts; what a list by id says counts more.
        let unknown = unknown.0;
        let named = [(start_id, start.0), (end_id, end.0), (unknown_id, unknown.clone()), (pad_id, pad.0)];
        let mut added = BTreeMap::from_iter(named).into_iter().chain(added).collect::<BTreeMap<_, _>>();
        let extra = [(&config, "additional_special_tokens"), (&map, "additional_special_tokens")];
        let mut next = ids.values().filter_map(Value::as_u64).max().unwrap_or_default() + 1;
        for value in extra.iter().filter_map(|(file, key)| file.get(*key)?.as_array()).flatten() {
            let Some(token) = Token::of(value, true) else { continue };
            if !ids.contains_key(&token.content) {
                ids.insert(token.content.clone(), Value::from(next));
                added.insert(next as u32, token);
                next += 1;
            }
        }
        let length = match config.get("model_max_length") {
            None | Some(Value::Null) => LENGTH,
            Some(value) => match value.as_f64() {
                Some(length) if length > LONGEST => LENGTH,
                Some(length) if length >= 2.0 && length.fract() == 0.0 => length as usize,
                _ => {
                    let text = format!("`model_max_length` is {value}, want a whole number from 2 up");
                    return Err(reader.refused("tokenizer_config.json", text));
                }
            },
        };
        Ok(Self { ids, merges, added, start: start_id, end: end_id, pad: pad_id, unknown, length })
    }
}

/// A piece of text in an error: its start.
fn shown(piece: &str) -> String {
    piece.chars().take(40).collect::<String>().escape_debug().to_string()
}
