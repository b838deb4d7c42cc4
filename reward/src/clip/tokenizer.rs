//! OpenAI's CLIP tokenizer: byte-level BPE with `</w>` marking the end of a word, behind the clean-up of `clean`.
//!
//! Reference: <https://github.com/openai/CLIP/blob/a1d071733d7111c9c014f024669f959182114e33/clip/simple_tokenizer.py>.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::{LazyLock, PoisonError, RwLock};

use regex::Regex;
use serde_json::{Map, Value, json};

use super::clean::{clean, normalise, pattern};
use crate::Result;

/// OpenAI's file (MIT, © 2021 OpenAI): a header line, then a merge per line, best first.
static VOCABULARY: &[u8] = include_bytes!("bpe_simple_vocab_16e6.txt.gz");
/// The lines that OpenAI reads; the file goes on.
pub(super) const MERGES: usize = 49152 - 256 - 2;
/// Words remembered at most, so that a long run over ever new words stays small.
const CACHED_WORDS: usize = 1 << 16;
const START_TEXT: &str = "<|startoftext|>";
const END_TEXT: &str = "<|endoftext|>";

/// A prompt as the text tower reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Start, pieces, end: at most `context_length` ids in `0..49408`, unpadded.
    pub ids: Vec<u32>,
    /// The prompt did not fit.
    pub truncated: bool,
}

/// OpenAI's CLIP tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    /// The text of every id, bytes written as printable characters.
    pub(super) pieces: Vec<String>,
    /// Two neighbours and what they merge into; the smaller the id, the earlier the merge.
    pub(super) merges: HashMap<(u32, u32), u32>,
    byte_ids: [u32; 256],
    words: Regex,
    cache: RwLock<HashMap<Box<str>, Box<[u32]>>>,
}

impl Tokenizer {
    /// Opens every sequence.
    pub const START: u32 = 49406;
    /// Closes every sequence, also a truncated one.
    pub const END: u32 = 49407;

    /// The one tokenizer, decoded when first asked for.
    pub fn openai() -> &'static Tokenizer {
        static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::decode);
        &TOKENIZER
    }

    fn decode() -> Self {
        let mut text = String::new();
        flate2::read::GzDecoder::new(VOCABULARY).read_to_string(&mut text).expect("the embedded vocabulary is whole");

        // Printable bytes come first and stand for themselves, the others follow as U+0100 and on.
        let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let (first, rest): (Vec<u8>, Vec<u8>) = (0..=255).partition(printable);
        let letters = first.iter().map(|&byte| char::from(byte)).chain('\u{100}'..);
        let mut pieces: Vec<String> = letters.take(256).map(String::from).collect();
        let mut byte_ids = [0; 256];
        for (id, byte) in (0..).zip(first.into_iter().chain(rest)) {
            byte_ids[usize::from(byte)] = id;
        }
        pieces.extend_from_within(..);
        pieces[256..].iter_mut().for_each(|piece| piece.push_str("</w>"));

        let mut ids: HashMap<String, u32> = pieces.iter().cloned().zip(0..).collect();
        let mut merges = HashMap::with_capacity(MERGES);
        for (line, id) in text.lines().skip(1).take(MERGES).zip(512..) {
            let (left, right) = line.split_once(' ').expect("a merge is two pieces");
            merges.insert((ids[left], ids[right]), id);
            pieces.push([left, right].concat());
            ids.insert([left, right].concat(), id);
        }
        pieces.extend([START_TEXT, END_TEXT].map(String::from));
        let words =
            pattern(r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+");
        Self { pieces, merges, byte_ids, words, cache: RwLock::default() }
    }

    /// The ids of `text` after OpenAI's clean-up. What does not fit into `context_length` (77 for OpenAI's models) is
    /// cut, and the end token kept, as `clip.tokenize(text, truncate=True)` does.
    pub fn encode(&self, text: &str, context_length: usize) -> Tokens {
        self.encode_cleaned(&clean(text), context_length)
    }

    /// The ids of `text` as transformers' `CLIPTokenizerFast` gives them, which mends nothing: composed, single spaces,
    /// lower case.
    pub fn encode_unmended(&self, text: &str, context_length: usize) -> Tokens {
        self.encode_cleaned(&normalise(text), context_length)
    }

    fn encode_cleaned(&self, text: &str, context_length: usize) -> Tokens {
        let mut ids = vec![Self::START];
        for word in self.words.find_iter(text) {
            self.push_word(word.as_str(), &mut ids);
            if ids.len() >= context_length {
                break;
            }
        }
        let truncated = ids.len() >= context_length;
        ids.truncate(context_length.saturating_sub(1));
        if context_length > 0 {
            ids.push(Self::END);
        }
        Tokens { ids, truncated }
    }

    fn push_word(&self, word: &str, ids: &mut Vec<u32>) {
        match word {
            START_TEXT => return ids.push(Self::START),
            END_TEXT => return ids.push(Self::END),
            _ => {}
        }
        if let Some(cached) = self.cache.read().unwrap_or_else(PoisonError::into_inner).get(word) {
            return ids.extend_from_slice(cached);
        }
        let pieces = self.merge(word);
        ids.extend_from_slice(&pieces);
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if cache.len() < CACHED_WORDS {
            cache.insert(word.into(), pieces.into());
        }
    }

    /// Merges the best pair of neighbours, everywhere in the word, until no pair is in the table.
    fn merge(&self, word: &str) -> Vec<u32> {
        let mut pieces: Vec<u32> = word.bytes().map(|byte| self.byte_ids[usize::from(byte)]).collect();
        if let Some(last) = pieces.last_mut() {
            *last += 256;
        }
        let merged = |pair: &[u32]| self.merges.get(&(pair[0], pair[1])).copied();
        while let Some(best) = pieces.windows(2).filter_map(merged).min() {
            let mut kept = 0;
            let mut read = 0;
            while read < pieces.len() {
                let pair = pieces.get(read..read + 2).and_then(merged) == Some(best);
                pieces[kept] = if pair { best } else { pieces[read] };
                kept += 1;
                read += if pair { 2 } else { 1 };
            }
            pieces.truncate(kept);
        }
        pieces
    }

    /// Writes `vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json`: a folder that
    /// `transformers.CLIPTokenizer` (slow and fast, versions 4 and 5) and `AutoTokenizer` open.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_files(&self, folder: &Path) -> Result<()> {
        let vocabulary: Map<String, Value> = self.pieces.iter().cloned().zip((0..).map(|id: u32| id.into())).collect();
        let mut pairs: Vec<_> = self.merges.iter().map(|(&pair, &id)| (id, pair)).collect();
        pairs.sort_unstable();
        let piece = |id: u32| self.pieces[id as usize].as_str();
        let lines: String =
            pairs.iter().map(|(_, (left, right))| format!("{} {}\n", piece(*left), piece(*right))).collect();
        let specials = json!({
            "bos_token": START_TEXT, "eos_token": END_TEXT, "pad_token": END_TEXT, "unk_token": END_TEXT,
        });
        let mut config = json!({
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "do_lower_case": true,
            "add_prefix_space": false,
            "errors": "replace",
            "clean_up_tokenization_spaces": true,
        });
        if let (Value::Object(config), Value::Object(specials)) = (&mut config, &specials) {
            config.extend(specials.clone());
        }
        fs_err::write(folder.join("vocab.json"), Value::Object(vocabulary).to_string())?;
        fs_err::write(folder.join("merges.txt"), format!("#version: 0.2\n{lines}"))?;
        fs_err::write(folder.join("tokenizer_config.json"), format!("{config:#}\n"))?;
        fs_err::write(folder.join("special_tokens_map.json"), format!("{specials:#}\n"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prompts that plsfix 0.1.8 mends otherwise than ftfy 6.3.1: UTF-8 read as Windows-1251 or Mac Roman, twice in two.
    const KNOWN_DIFFERENCES: [&str; 4] = [
        "WГ¶man walkiЕ„g dГµwn the side wГ\u{a0}lk of Г¤ bЕЇsГЅ Г±ight city.",
        "A cat standing on a toilet seat in a bathroom. –≤–Ç‚Ñ¢til –†—î–†—ï–°‚Äö",
        "a –î‚Ä°–ì–Üuple –ì¬∂f p–î‚Äúopl–ì¬´ –ï—ütand–ì–áng inside a k–î¬´t–ì¬ßh–ì–Ñn.",
        "twÐ“Â¶ Ð”ÐŒats Ð”ÐŒhill Ð“Â\u{ad}Ð“Â± the bathtub Ð“Ñ–Ð•â‚¬e Ð“Â\u{ad}Ð•ÑŸ lÐ“ÐŽÐ“Ñ—iÐ•â€žg dÐ“Â¶wn",
    ];

    #[derive(serde::Deserialize)]
    struct Golden {
        text: String,
        ids: Vec<u32>,
    }

    /// tests/golden/tokens.py
    fn golden() -> Vec<Golden> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tokens/tokens.jsonl.gz");
        let file = flate2::read::GzDecoder::new(fs_err::File::open(path).unwrap());
        serde_json::Deserializer::from_reader(file).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn tokens_are_openais() {
        let golden = golden();
        assert!(golden.len() >= 2_000);
        let differing = golden.iter().filter(|golden| Tokenizer::openai().encode(&golden.text, 77).ids != golden.ids);
        assert_eq!(differing.map(|golden| golden.text.as_str()).collect::<Vec<_>>(), KNOWN_DIFFERENCES);
    }

    /// tests/golden/sd_tokens.py: no ftfy there either. Special tokens in a prompt are left out: folders differ in them.
    #[test]
    fn unmended_tokens_are_transformers() {
        #[derive(serde::Deserialize)]
        struct Line {
            text: String,
            sd1: Ids,
        }
        #[derive(serde::Deserialize)]
        struct Ids {
            ids: Vec<u32>,
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/sd_tokens.jsonl");
        let lines = fs_err::read_to_string(path).unwrap();
        let golden = lines.lines().map(|line| serde_json::from_str::<Line>(line).unwrap());
        let plain: Vec<Line> = golden.filter(|line| !line.text.contains("<|")).collect();
        assert!(plain.len() > 250);
        for line in plain {
            assert_eq!(Tokenizer::openai().encode_unmended(&line.text, 77).ids, line.sd1.ids, "{:?}", line.text);
        }
    }

    #[test]
    fn truncation_keeps_the_end_token() {
        let encode = |context_length| Tokenizer::openai().encode("a cat and a dog", context_length);
        let whole = encode(7);
        assert_eq!(whole, Tokens { ids: vec![49406, 320, 2368, 537, 320, 1929, 49407], truncated: false });
        assert_eq!(encode(77), whole);
        assert_eq!(encode(6), Tokens { ids: vec![49406, 320, 2368, 537, 320, 49407], truncated: true });
        assert_eq!(encode(1), Tokens { ids: vec![49407], truncated: true });
        assert_eq!(encode(0), Tokens { ids: vec![], truncated: true });
        assert_eq!(Tokenizer::openai().encode("", 77), Tokens { ids: vec![49406, 49407], truncated: false });
    }

    #[test]
    fn special_tokens_in_a_prompt_are_taken_at_their_word() {
        assert_eq!(Tokenizer::openai().encode("<|EndOfText|>", 77).ids, [49406, 49407, 49407]);
    }

    #[test]
    fn written_files_hold_the_vocabulary() {
        let folder = tempfile::tempdir().unwrap();
        Tokenizer::openai().write_files(folder.path()).unwrap();
        let read = |name| fs_err::read_to_string(folder.path().join(name)).unwrap();
        let vocabulary: HashMap<String, u32> = serde_json::from_str(&read("vocab.json")).unwrap();
        assert_eq!((vocabulary.len(), vocabulary["cat</w>"], vocabulary[END_TEXT]), (49408, 2368, Tokenizer::END));
        let merges = read("merges.txt");
        assert_eq!((merges.lines().count(), merges.lines().nth(1)), (1 + MERGES, Some("i n")));
    }
}
