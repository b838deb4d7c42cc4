//! BERT's uncased tokenizer: clean-up, words, and the longest pieces of each that the vocabulary has.
//!
//! Reference: `BertNormalizer`, `BertPreTokenizer` and `WordPiece` of Hugging Face's tokenizers, as `BertTokenizer` of
//! transformers 5.24 uses them. Golden values: `tests/golden/image_reward.py`.

use std::{collections::HashMap, path::Path};

use regex::Regex;

use crate::{
    Error, Result,
    clip::clean::{Normalization, normal_form, pattern},
    text,
};

/// A word of more letters is unknown.
const LONGEST_WORD: usize = 100;
const IDEOGRAPHS: &str = r"\u{4e00}-\u{9fff}\u{3400}-\u{4dbf}\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b820}-\u{2ceaf}\u{f900}-\u{faff}\u{2f800}-\u{2fa1f}";

/// BERT's uncased tokenizer.
#[derive(Debug)]
pub struct WordPiece {
    ids: HashMap<String, i64>,
    special: Regex,
    control: Regex,
    accent: Regex,
    words: Regex,
}

impl WordPiece {
    /// Reads `vocab.txt`: a piece per line, whose number from 0 is its id.
    ///
    /// # Errors
    /// The file cannot be read, has a piece twice, or lacks BERT's special tokens.
    pub fn read(path: &Path) -> Result<Self> {
        let text = text::read(path, "pieces of BERT's vocabulary")?;
        let mut ids: HashMap<String, i64> = HashMap::new();
        for (piece, id) in text.lines().zip(0..) {
            if let Some(earlier) = ids.insert(piece.to_owned(), id) {
                return Err(Error::data(format!(
                    "{} line {}: `{}` is line {} already",
                    path.display(),
                    id + 1,
                    piece.escape_debug(),
                    earlier + 1
                ))
                .hint("want vocab.txt of bert-base-uncased"));
            }
        }
        if let Some(missing) = ["[UNK]", "[CLS]", "[SEP]"].iter().find(|piece| !ids.contains_key(**piece)) {
            return Err(Error::data(format!("{}: no piece `{missing}`", path.display()))
                .hint("want vocab.txt of bert-base-uncased"));
        }
        if ids.get("[PAD]") != Some(&0) {
            return Err(Error::data(format!("{}: the first piece is not `[PAD]`", path.display()))
                .hint("want vocab.txt of bert-base-uncased"));
        }
        let mark = r"\p{P}$+<=>^`|~";
        Ok(Self {
            ids,
            special: pattern(r"\[(?:PAD|UNK|CLS|SEP|MASK)\]"),
            control: pattern(r"[\p{C}\u{fffd}--\t\n\r]"),
            accent: pattern(r"\p{Mn}"),
            words: pattern(&format!(r"[{IDEOGRAPHS}{mark}]|[^\s{IDEOGRAPHS}{mark}]+")),
        })
    }

    /// Pieces of the vocabulary.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none, which [`Self::read`] refuses.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// `[CLS]`, the pieces of `text`, `[SEP]`: at most `max_length` ids, the end cut off before `[SEP]`.
    pub fn encode(&self, text: &str, max_length: usize) -> Vec<i64> {
        let mut ids = vec![self.ids["[CLS]"]];
        let mut start = 0;
        for special in self.special.find_iter(text) {
            self.push_text(&text[start..special.start()], &mut ids);
            ids.push(self.id(special.as_str()));
            start = special.end();
        }
        self.push_text(&text[start..], &mut ids);
        ids.truncate(max_length.saturating_sub(1));
        ids.push(self.ids["[SEP]"]);
        ids
    }

    fn id(&self, piece: &str) -> i64 {
        self.ids.get(piece).copied().unwrap_or(self.ids["[UNK]"])
    }

    fn push_text(&self, text: &str, ids: &mut Vec<i64>) {
        let text = self.control.replace_all(text, "");
        let text: String = match text.is_ascii() {
            true => text.to_ascii_lowercase(),
            false => {
                let apart = normal_form(&text, Normalization::NFD);
                self.accent.replace_all(&apart, "").chars().flat_map(char::to_lowercase).collect()
            }
        };
        for word in self.words.find_iter(&text) {
            self.push_word(word.as_str(), ids);
        }
    }

    fn push_word(&self, word: &str, ids: &mut Vec<i64>) {
        let known = ids.len();
        let mut rest = word;
        while !rest.is_empty() && word.chars().count() <= LONGEST_WORD {
            let mark = if rest.len() == word.len() { "" } else { "##" };
            let mut ends = rest.char_indices().map(|(start, letter)| start + letter.len_utf8()).rev();
            let longest = ends.find_map(|end| Some((end, *self.ids.get(&format!("{mark}{}", &rest[..end]))?)));
            let Some((end, id)) = longest else { break };
            ids.push(id);
            rest = &rest[end..];
        }
        if !rest.is_empty() {
            ids.truncate(known);
            ids.push(self.ids["[UNK]"]);
        }
    }
}
