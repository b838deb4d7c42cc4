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

/// Textual inversion in the layouts of transformers 4 and 5 (`added_tokens.py`).
#[test]
fn added_tokens_have_the_ids_of_transformers() {
    let cases: Value = serde_json::from_str(include_str!("../../../tests/golden/added_tokens.json")).unwrap();
    for (name, case) in cases.as_object().unwrap() {
        let old = tempfile::tempdir().unwrap();
        Tokenizer::openai("<|endoftext|>", 77).unwrap().write_files(old.path()).unwrap();
        for (file, content) in case["files"].as_object().unwrap() {
            fs_err::write(old.path().join(file), content.to_string()).unwrap();
        }
        // As transformers 5 saves it.
        let new = tempfile::tempdir().unwrap();
        let json = |file: &str| serde_json::from_str::<Value>(&fs_err::read_to_string(old.path().join(file)).unwrap());
        let merges = fs_err::read_to_string(old.path().join("merges.txt")).unwrap();
        let merges: Vec<Vec<&str>> = merges.lines().skip(1).map(|line| line.split(' ').collect()).collect();
        let model = serde_json::json!({"type": "BPE", "vocab": json("vocab.json").unwrap(), "merges": merges});
        let saved = serde_json::json!({"added_tokens": case["saved_added_tokens"], "model": model});
        fs_err::write(new.path().join("tokenizer.json"), saved.to_string()).unwrap();
        fs_err::write(new.path().join("tokenizer_config.json"), case["saved_config"].to_string()).unwrap();
        for folder in [old, new] {
            let tokenizer = Tokenizer::open(folder.path()).unwrap();
            for (prompt, wanted) in case["ids"].as_object().unwrap() {
                let encoded = tokenizer.encode(prompt).unwrap();
                let ids: Vec<i64> = wanted.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
                assert_eq!(encoded.ids[..ids.len()], ids, "{name}: {prompt:?}");
                assert!(encoded.ids[ids.len()..].iter().all(|id| *id == 49407), "{name}: {prompt:?}");
            }
        }
    }
}

/// Another picture without a word before: an id, a line or a file that cannot be.
#[test]
fn damaged_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::openai("!", 77).unwrap().write_files(folder.path()).unwrap();
    let lines = fs_err::read_to_string(folder.path().join("merges.txt")).unwrap();
    let half = &lines[..lines[..lines.len() / 2].rfind('\n').unwrap() + 1];
    let vocabulary = fs_err::read_to_string(folder.path().join("vocab.json")).unwrap();
    let far = vocabulary.replacen(":49407", ":4294967296", 1).replacen(": 49407", ": 4294967296", 1);
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
    for (file, content, says) in [
        ("merges.txt", "", "is an empty file"),
        ("merges.txt", "#version: 0.2\n", "no merge makes 48894 pieces of vocab.json"),
        ("merges.txt", half, "no merge makes "),
        ("merges.txt", "#version: 0.2\ni n\nnonsense\n", "line 3: not two pieces"),
        ("merges.txt", "#version: 0.2\ni n\nqqq zzzz\n", "line 3: `qqq` is not in vocab.json"),
        ("merges.txt", "#version: 0.2\ni n\ni n\n", "line 3: the same two pieces as before"),
        ("merges.txt", lfs, "Git LFS pointer"),
        ("vocab.json", lfs, "Git LFS pointer"),
        ("vocab.json", "{}", "no vocabulary"),
        ("vocab.json", "[1]", "no vocabulary"),
        ("vocab.json", r#"{"a": 0, "b": 0}"#, "`b` has id 0, want each of 0 to 1 once"),
        ("vocab.json", r#"{"a": "0"}"#, "`a` has id \"0\", want"),
        ("vocab.json", &far, "has id 4294967296, want each of 0 to 49407 once"),
        ("vocab.json", "<!DOCTYPE html><html>", "is an HTML page"),
        ("tokenizer_config.json", r#"{"model_max_length": "77"}"#, "`model_max_length` is \"77\", want"),
        ("tokenizer_config.json", r#"{"model_max_length": -3}"#, "`model_max_length` is -3, want"),
        ("special_tokens_map.json", r#"{"bos_token": 7}"#, "`bos_token` is 7, want a token"),
        ("added_tokens.json", r#"{"<cat>": 5000000000}"#, "`<cat>` has no id that is a whole number below 16777216"),
        ("added_tokens.json", r#"{"<cat>": 7}"#, "`<cat>` has id 7, which is another's"),
        ("added_tokens.json", r#"{"fox</w>": 50000}"#, "`fox</w>` has id 50000, which is another's"),
        ("added_tokens.json", r#"{"<cat>": 49408, "<dog>": 49408}"#, "`<dog>` has id 49408, which is another's"),
    ] {
        let path = folder.path().join(file);
        let before = fs_err::read(&path).ok();
        fs_err::write(&path, content).unwrap();
        let error = Tokenizer::open(folder.path()).err().unwrap_or_else(|| panic!("{file} {says}")).to_string();
        assert!(error.contains(file) && error.contains(says) && !error.contains('\n'), "{says}: {error}");
        match before {
            Some(bytes) => fs_err::write(path, bytes).unwrap(),
            None => fs_err::remove_file(path).unwrap(),
        }
    }
    // A byte order mark is none of the text.
    let path = folder.path().join("vocab.json");
    fs_err::write(&path, format!("\u{feff}{vocabulary}")).unwrap();
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
