//! The CLIP tokenizer of a Stable Diffusion folder: its own vocabulary and its own pad token, through Hugging Face's
//! `tokenizers`.
//!
//! Text is put into NFC and lower case; there is no ftfy here (that belongs to CLIP scoring). Folders written by
//! transformers 5 hold only `tokenizer.json`; older ones `vocab.json`, `merges.txt` and `special_tokens_map.json`, of which the
//! same pipeline is built. Reference: `CLIPTokenizer` of transformers 5.24, `models/clip/tokenization_clip.py`.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Files of a tokenizer folder that are kept, so that a saved model has the ones it was opened with.
const FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
];
/// What one word is, from OpenAI's tokenizer.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// Ids of a prompt where `model_max_length` does not say.
pub(crate) const LENGTH: usize = 77;

/// A prompt as the text encoder reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Start, pieces, end, padding: as many ids as [`Tokenizer::length`] says.
    pub ids: Vec<i64>,
    /// Ids of the whole prompt, start and end included, before anything was cut.
    pub tokens: usize,
    /// The prompt did not fit; the end token was kept.
    pub truncated: bool,
}

/// The tokenizer of one model.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    length: usize,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Tokenizer {
    /// Opens a folder that transformers wrote, of version 4 or 5.
    ///
    /// # Errors
    /// A file is missing (named) or not what it has to be; a special token is not in the vocabulary.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for name in FILES {
            if folder.join(name).is_file() {
                files.insert(name, fs_err::read(folder.join(name))?);
            }
        }
        Self::from_files(files, folder)
    }

    /// OpenAI's vocabulary, which every Stable Diffusion 1.x and 2.x uses, with `pad` as pad token: `<|endoftext|>` in 1.x,
    /// `!` in 2.x. `length`: ids of every prompt, 77 in both.
    ///
    /// # Errors
    /// The temporary folder cannot be written.
    pub fn openai(pad: &str, length: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        reward::clip::tokenizer::Tokenizer::openai().write_files(folder.path())?;
        for file in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.path().join(file);
            let mut tokens = parse(&fs_err::read(&path)?, &path)?;
            for name in ["bos_token", "eos_token", "unk_token"] {
                // As the published folders have them: looked for after the text is in lower case.
                tokens[name] = json!({
                    "content": tokens[name], "lstrip": false, "normalized": true, "rstrip": false, "single_word": false,
                });
            }
            tokens["pad_token"] = pad.into();
            if file == "tokenizer_config.json" {
                tokens["model_max_length"] = length.into();
            }
            fs_err::write(&path, format!("{tokens:#}\n"))?;
        }
        Self::open(folder.path())
    }

    fn from_files(files: BTreeMap<&'static str, Vec<u8>>, folder: &Path) -> Result<Self> {
        let optional = |name: &str| files.get(name).map_or(Ok(Value::Null), |bytes| parse(bytes, &folder.join(name)));
        let (map, config) = (optional("special_tokens_map.json")?, optional("tokenizer_config.json")?);
        let tokens = SpecialTokens::read(&map, &config);
        let failed = |name: &str, error: tokenizers::Error| {
            Error::data(format!("{}: not a tokenizer this program can read", folder.join(name).display()))
                .caused_by(error)
        };
        let mut inner = if let Some(bytes) = files.get("tokenizer.json") {
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| failed("tokenizer.json", error))?
        } else {
            let needed = |name: &str| {
                files.get(name).ok_or_else(|| {
                    Error::data(format!("{}: no such file", folder.join(name).display()))
                        .hint("a tokenizer folder holds tokenizer.json, or vocab.json and merges.txt")
                })
            };
            let vocabulary = parse(needed("vocab.json")?, &folder.join("vocab.json"))?;
            let pipeline = tokens.pipeline(vocabulary, &String::from_utf8_lossy(needed("merges.txt")?));
            tokenizers::Tokenizer::from_bytes(pipeline.to_string()).map_err(|error| failed("vocab.json", error))?
        };
        inner.with_padding(None).with_truncation(None).map_err(|error| failed("tokenizer.json", error))?;
        let id = |token: &Token| {
            inner.token_to_id(&token.content).ok_or_else(|| {
                Error::data(format!("{}: `{}` is not in the vocabulary", folder.display(), token.content))
            })
        };
        let (start, end, pad) = (id(&tokens.start)?, id(&tokens.end)?, id(&tokens.pad)?);
        let length = config["model_max_length"].as_u64().map_or(LENGTH, |length| length as usize);
        // transformers writes 1e30 for "no limit".
        let length = if (2..=1 << 16).contains(&length) { length } else { LENGTH };
        Ok(Self { inner, start, end, pad, length, files })
    }

    /// Ids of every encoded prompt: 77 of every published model.
    pub fn length(&self) -> usize {
        self.length
    }

    /// One more than the highest id, which the text encoder's embedding has to hold.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The ids of `prompt`, cut and padded to [`Tokenizer::length`].
    ///
    /// # Errors
    /// The vocabulary lacks a piece and has no token for the unknown.
    pub fn encode(&self, prompt: &str) -> Result<Encoded> {
        let encoding = self.inner.encode_fast(prompt, false).map_err(|error| {
            Error::data(format!("the prompt `{prompt}` cannot be split into tokens")).caused_by(error)
        })?;
        let pieces = encoding.get_ids();
        let kept = pieces.len().min(self.length - 2);
        let mut ids = Vec::with_capacity(self.length);
        ids.push(self.start.into());
        ids.extend(pieces[..kept].iter().copied().map(i64::from));
        ids.push(self.end.into());
        ids.resize(self.length, self.pad.into());
        Ok(Encoded { ids, tokens: pieces.len() + 2, truncated: kept < pieces.len() })
    }

    /// Writes the files it was opened with into `folder`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_files(&self, folder: &Path) -> Result<()> {
        fs_err::create_dir_all(folder)?;
        for (name, bytes) in &self.files {
            reward::weights::save::replace_file(&folder.join(name), |partial| Ok(fs_err::write(partial, bytes)?))?;
        }
        Ok(())
    }
}

/// A special token and whether the text is normalised before it is looked for.
#[derive(Clone)]
struct Token {
    content: String,
    normalized: bool,
}

struct SpecialTokens {
    start: Token,
    end: Token,
    unknown: Token,
    pad: Token,
}

impl SpecialTokens {
    /// `special_tokens_map.json` wins over `tokenizer_config.json`, as in transformers.
    fn read(map: &Value, config: &Value) -> Self {
        let find = |key: &str| {
            [map, config].into_iter().find_map(|file| match file.get(key)? {
                Value::String(content) => Some(Token { content: content.clone(), normalized: false }),
                token => Some(Token {
                    content: token.get("content")?.as_str()?.to_owned(),
                    normalized: token["normalized"].as_bool().unwrap_or(false),
                }),
            })
        };
        let default = |content: &str| Token { content: content.to_owned(), normalized: false };
        let end = find("eos_token").unwrap_or_else(|| default("<|endoftext|>"));
        Self {
            start: find("bos_token").unwrap_or_else(|| default("<|startoftext|>")),
            unknown: find("unk_token").unwrap_or_else(|| end.clone()),
            pad: find("pad_token").unwrap_or_else(|| end.clone()),
            end,
        }
    }

    /// What transformers' `CLIPTokenizer` builds of `vocab.json` and `merges.txt`, as a `tokenizer.json`.
    fn pipeline(&self, vocabulary: Value, merges: &str) -> Value {
        let mut added: BTreeMap<u64, Value> = BTreeMap::new();
        // Of two with the same content the later counts.
        for Token { content, normalized } in [&self.start, &self.end, &self.unknown, &self.pad] {
            if let Some(id) = vocabulary.get(content).and_then(Value::as_u64) {
                let mut token =
                    Map::from_iter([("id".to_owned(), id.into()), ("content".to_owned(), content.as_str().into())]);
                for (flag, value) in [
                    ("single_word", false),
                    ("lstrip", false),
                    ("rstrip", false),
                    ("normalized", *normalized),
                    ("special", true),
                ] {
                    token.insert(flag.to_owned(), value.into());
                }
                added.insert(id, token.into());
            }
        }
        let pairs = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
        let merges: Vec<[&str; 2]> =
            pairs.filter_map(|line| line.split_once(' ').map(|(left, right)| [left, right])).collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.into_values().collect::<Vec<_>>(),
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
                {"type": "Lowercase"},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            ]},
            "post_processor": null,
            "decoder": null,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": self.unknown.content, "continuing_subword_prefix": "",
                "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": merges,
            },
        })
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| Error::data(format!("{}: not JSON", path.display())).caused_by(error))
}
