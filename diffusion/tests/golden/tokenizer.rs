//! Token ids of transformers' `CLIPTokenizer`, for the pad tokens of Stable Diffusion 1 and 2 (`sd_tokens.py`).

use diffusion::tokenizer::Tokenizer;
use serde_json::Value;

fn ids(value: &Value) -> Vec<i64> {
    value["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

fn check(name: &str, tokenizer: &Tokenizer) {
    let text = include_str!("../../../tests/golden/sd_tokens.jsonl");
    assert!(text.lines().count() > 300);
    let pad = if name == "sd1" { 49407 } else { 0 };
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let prompt = line["text"].as_str().unwrap();
        let wanted = line.get(name).unwrap_or(&line["sd1"]);
        let tokens = wanted["tokens"].as_u64().unwrap() as usize;
        let mut padded = ids(wanted);
        padded.resize(77, pad);
        let encoded = tokenizer.encode(prompt).unwrap();
        assert_eq!(encoded.ids, padded, "{name}: {prompt:?}");
        assert_eq!(encoded.tokens, tokens, "{name}: {prompt:?}");
        assert_eq!(encoded.truncated, tokens > 77, "{name}: {prompt:?}");
    }
}

#[test]
fn tokens_are_those_of_transformers() {
    check("sd1", &Tokenizer::openai("<|endoftext|>", 77).unwrap());
    check("sd2", &Tokenizer::openai("!", 77).unwrap());
}

#[test]
fn a_folder_that_was_written_reads_the_same() {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::openai("!", 77).unwrap().write_files(folder.path()).unwrap();
    check("sd2", &Tokenizer::open(folder.path()).unwrap());
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::openai("!", 77).unwrap().write_files(folder.path()).unwrap();
    fs_err::remove_file(folder.path().join("merges.txt")).unwrap();
    let error = Tokenizer::open(folder.path()).err().unwrap();
    assert!(error.to_string().contains("merges.txt"), "{error}");
}
