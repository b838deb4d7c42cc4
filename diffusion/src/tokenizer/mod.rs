//! The CLIP tokenizer of a Stable Diffusion folder: its own vocabulary, added tokens and pad token, through Hugging Face's
//! `tokenizers`.
//!
//! Text is put into NFC and lower case; there is no ftfy here (that belongs to CLIP scoring). Reference: `CLIPTokenizer` of
//! transformers 5.24, `models/clip/tokenization_clip.py`. A token of textual inversion that has several vectors (`<cat>`,
//! `<cat>_1`, …) is written out as all of them, as diffusers' `TextualInversionLoaderMixin.maybe_convert_prompt` does it.

mod files;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use self::files::{Bytes, Vocabulary};
use crate::{Error, Result, json::parse};

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
    highest: u32,
    /// Tokens of several vectors: id, content, and the contents of all vectors.
    several: Vec<(u32, String, String)>,
    /// Rows of the text encoder's embedding.
    rows: Option<i64>,
    folder: PathBuf,
    files: Bytes,
}

impl Tokenizer {
    /// Opens a folder that transformers wrote, of version 4 or 5.
    ///
    /// # Errors
    /// A file is missing (named) or not what it has to be; a special token is not in the vocabulary.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut files = Bytes::new();
        for name in FILES {
            if folder.join(name).is_file() {
                files.insert(name, fs_err::read(folder.join(name))?);
            }
        }
        Self::from_files(files, folder)
    }

    /// The tokenizer for a text encoder whose embedding has `rows` rows and whose longest prompt has `positions` ids. An id
    /// beyond the embedding is an error when a prompt has it.
    ///
    /// # Errors
    /// Prompts would be longer than `positions`.
    pub(crate) fn of_encoder(self, rows: i64, positions: i64) -> Result<Self> {
        if self.length as i64 > positions {
            let (config, length) = (self.folder.join("tokenizer_config.json"), self.length);
            return Err(Error::data(format!(
                "{}: prompts have {length} ids (`model_max_length`), but the text encoder reads {positions} \
                 (`max_position_embeddings`)",
                config.display()
            )));
        }
        Ok(Self { rows: Some(rows), ..self })
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
            let mut tokens = parse(fs_err::read(&path)?, &path)?;
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

    fn from_files(files: Bytes, folder: &Path) -> Result<Self> {
        let vocabulary = Vocabulary::read(&files, folder)?;
        let several = several(&vocabulary);
        let highest = vocabulary.ids.values().filter_map(Value::as_u64).max().unwrap_or_default() as u32;
        let Vocabulary { start, end, pad, length, .. } = vocabulary;
        let inner = tokenizers::Tokenizer::from_bytes(pipeline(vocabulary).to_string()).map_err(|error| {
            let files = if files.contains_key("tokenizer.json") { "tokenizer.json" } else { "vocab.json" };
            Error::data(format!("{}: not a tokenizer: {error}", folder.join(files).display()))
        })?;
        Ok(Self { inner, start, end, pad, length, highest, several, rows: None, folder: folder.to_owned(), files })
    }

    /// Ids of every encoded prompt: 77 of every published model.
    pub fn length(&self) -> usize {
        self.length
    }

    /// One more than the highest id, which the text encoder's embedding has to hold.
    pub fn vocabulary(&self) -> usize {
        self.highest as usize + 1
    }

    /// The ids of `prompt`, cut and padded to [`Tokenizer::length`].
    ///
    /// # Errors
    /// The vocabulary lacks a piece and has no token for the unknown; an id is beyond the text encoder's embedding.
    pub fn encode(&self, prompt: &str) -> Result<Encoded> {
        let split = |text: &str| {
            self.inner.encode_fast(text, false).map_err(|error| {
                Error::data(format!("the prompt `{prompt}` cannot be split into tokens")).caused_by(error)
            })
        };
        let mut encoding = split(prompt)?;
        let there = |id: &u32| encoding.get_ids().contains(id);
        let several: Vec<_> = self.several.iter().filter(|(id, _, _)| there(id)).collect();
        if !several.is_empty() {
            let written_out = |text: String, (_, token, all): &(u32, String, String)| text.replace(token, all);
            encoding = split(&several.into_iter().fold(prompt.to_owned(), written_out))?;
        }
        let pieces = encoding.get_ids();
        let kept = pieces.len().min(self.length - 2);
        let mut ids = Vec::with_capacity(self.length);
        ids.push(self.start.into());
        ids.extend(pieces[..kept].iter().copied().map(i64::from));
        ids.push(self.end.into());
        ids.resize(self.length, self.pad.into());
        if let Some(rows) = self.rows
            && let Some(id) = ids.iter().find(|id| **id >= rows)
        {
            let token = self.inner.id_to_token(*id as u32).unwrap_or_default();
            return Err(Error::data(format!(
                "{}: token `{token}` has id {id}, but the text encoder's embedding has {rows} rows (`vocab_size`)",
                self.folder.display()
            ))
            .hint("tokenizer and text encoder have to be saved together, after tokens were added to both"));
        }
        Ok(Encoded { ids, tokens: pieces.len() + 2, truncated: kept < pieces.len() })
    }

    /// Writes the files it was opened with into `folder`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_files(&self, folder: &Path) -> Result<()> {
        fs_err::create_dir_all(folder)?;
        for (name, bytes) in &self.files {
            reward::files::replace_file(&folder.join(name), |partial| Ok(fs_err::write(partial, bytes)?))?;
        }
        Ok(())
    }
}

/// The tokens that have several vectors: `NAME` where there is a `NAME_1`.
fn several(vocabulary: &Vocabulary) -> Vec<(u32, String, String)> {
    let known = |content: &str| vocabulary.added.values().any(|token| token.content == content);
    let all = |content: &str| {
        let more = (1..).map(|number| format!("{content}_{number}")).take_while(|name| known(name));
        std::iter::once(content.to_owned()).chain(more).collect::<Vec<_>>()
    };
    let tokens = vocabulary.added.iter().map(|(id, token)| (*id, &token.content));
    let written = tokens.map(|(id, content)| (id, content.clone(), all(content)));
    written.filter(|(_, _, all)| all.len() > 1).map(|(id, content, all)| (id, content, all.join(" "))).collect()
}

/// What transformers' `CLIPTokenizer` builds of a vocabulary and merges, as a `tokenizer.json`.
fn pipeline(vocabulary: Vocabulary) -> Value {
    let Vocabulary { ids, merges, added, unknown, .. } = vocabulary;
    let added = added.into_iter().map(|(id, token)| {
        let mut fields = Map::from_iter([("id".to_owned(), id.into()), ("content".to_owned(), token.content.into())]);
        fields.extend(token.flags.map(|(flag, value)| (flag.to_owned(), value.into())));
        fields.insert("normalized".to_owned(), token.normalized.into());
        Value::from(fields)
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
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
            "type": "BPE", "dropout": null, "unk_token": unknown.content, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": ids, "merges": merges,
        },
    })
}
