//! Prompts from a file: one per line of text, or a column of a table.

use std::path::Path;

use serde_json::Value;

use super::delimited::header;
use super::format::Format;
use super::parts::{Part, parts};
use super::{
    cell::{Column, Kind},
    rows,
};
use crate::{Error, Result, foreign::Foreign, text};

/// The names that objects in JSON have for a prompt, the first that is there; of other tables only the first counts.
const COLUMNS: [&str; 3] = ["prompt", "text", "caption"];

/// The prompts of a file in its order. A table (`.parquet`, `.csv`, `.tsv`, `.json`, `.jsonl`, or a folder or glob of them) gives
/// the column `prompt`, in upper or lower case. Objects in JSON give `prompt`, else `text`, else `caption`, and a JSON array its
/// strings. Any other file gives its lines, less white space around them, without empty ones. A table may hold empty prompts.
///
/// # Errors
///
/// An unreadable file, text that is not UTF-8, a table by another name, or no prompt at all. A missing column, or a cell that is
/// null or not a string.
pub fn read(file: &Path) -> Result<Vec<String>> {
    read_noted(file, &mut |_| ())
}

/// As [`read`]; `note` gets a line for each file whose prompts are not from a column `prompt`.
///
/// # Errors
/// As [`read`].
pub fn read_noted(file: &Path, note: &mut dyn FnMut(&str)) -> Result<Vec<String>> {
    let mut prompts = Vec::new();
    for part in parts(&[file])? {
        let names = match Format::of(&part.path) {
            None => {
                lines(&text_of(&part.path)?, &mut prompts);
                continue;
            }
            Some(Format::Json | Format::JsonLines) => &COLUMNS[..],
            Some(Format::Parquet | Format::Csv | Format::Tsv) => &COLUMNS[..1],
        };
        table(&part, names, &mut prompts, note)?;
    }
    if prompts.is_empty() {
        return Err(Error::data(format!("no prompts in {}", file.display()))
            .hint("one prompt per line, or a table (.parquet, .csv, .tsv, .json, .jsonl) with a column `prompt`"));
    }
    Ok(prompts)
}

fn table(part: &Part, names: &[&str], prompts: &mut Vec<String>, note: &mut dyn FnMut(&str)) -> Result<()> {
    let column = Column { any_case: true, ..Column::new(names, Kind::Text) };
    let names = rows::read(part, &[column], &mut |cells| prompts.extend(cells[0].text().map(str::to_owned)))?;
    match &names[..] {
        [Some(name)] if name != COLUMNS[0] => {
            note(&format!("{}: the prompts are those of its column `{name}`", part.path.display()));
        }
        _ => {}
    }
    Ok(())
}

/// The text of a file whose name is no table's.
fn text_of(file: &Path) -> Result<String> {
    let text = text::read(file, "prompts")?;
    if text.is_empty() {
        return Err(Foreign::Empty.error(file.display(), "prompts"));
    }
    let Some((what, ending)) = table_in(&text) else { return Ok(text) };
    Err(Error::data(format!("{} holds {what}, wanted a prompt a line", file.display()))
        .hint(format!("a table is read as one if its name ends in {ending}: rename it")))
}

/// The table that a text looks like, and the ending that would say so.
fn table_in(text: &str) -> Option<(&'static str, &'static str)> {
    let first = text.lines().find(|line| !line.trim().is_empty())?.trim();
    if first.starts_with('[') && serde_json::from_str::<Vec<Value>>(text).is_ok() {
        return Some(("a JSON array", ".json"));
    }
    if first.starts_with('{') {
        if serde_json::from_str::<Value>(first).is_ok() {
            return Some(("JSON lines", ".jsonl"));
        }
        if serde_json::from_str::<Value>(text).is_ok() {
            return Some(("a JSON object", ".json"));
        }
    }
    let has_prompts = |delimiter: u8| {
        let header = header(first, delimiter).ok();
        header.is_some_and(|header| header.iter().any(|name| name.eq_ignore_ascii_case(COLUMNS[0])))
    };
    if has_prompts(b'\t') && first.contains('\t') {
        return Some(("a table of tab-separated values", ".tsv"));
    }
    [b',', b';'].into_iter().any(has_prompts).then_some(("a CSV table", ".csv"))
}

/// Lines end with `\n`, `\r\n` or, from old programs, `\r`.
fn lines(text: &str, prompts: &mut Vec<String>) {
    prompts.extend(text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tables");

    fn in_file(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        fs_err::write(&file, content).unwrap();
        read(&file)
    }

    fn refused(name: &str, content: impl AsRef<[u8]>) -> String {
        let message = in_file(name, content).unwrap_err().to_string();
        // Of a path, the name alone.
        message.split(' ').map(|word| word.rsplit('/').next().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_same_prompts_from_every_format() {
        let wanted = ["a red fox", "she said \"hi\", twice", "a red fox"];
        for name in ["manifest.parquet", "manifest.csv", "manifest.jsonl"] {
            assert_eq!(read(&Path::new(TABLES).join(name)).unwrap(), wanted, "{name}");
        }
        let text = "\u{feff}a red fox\r\n\n  she said \"hi\", twice \na red fox";
        assert_eq!(in_file("prompts.txt", text).unwrap(), wanted);
        assert_eq!(in_file("prompts", text).unwrap(), wanted);
        assert_eq!(in_file("empty.csv", "prompt,id\n,1\nx,2\n").unwrap(), ["", "x"]);
    }

    #[test]
    fn what_holds_no_prompts_is_refused_by_place() {
        assert_eq!(refused("p.txt", " \n\n"), "no prompts in p.txt");
        assert_eq!(refused("p.csv", "prompt\n"), "no prompts in p.csv");
        assert_eq!(refused("p.csv", "promt\nx\n"), "p.csv has no column `prompt` (it has: promt)");
        assert_eq!(refused("p.csv", "text\nx\n"), "p.csv has no column `prompt` (it has: text)");
        assert_eq!(refused("p.jsonl", "{\"prompt\": 7}"), "p.jsonl line 1: `prompt` is 7, wanted a string");
        assert_eq!(refused("p.txt", b"fox\nF\xfcchse\n"), "p.txt line 2: not UTF-8 text, wanted prompts");
        assert_eq!(refused("p.txt", ""), "p.txt is an empty file (0 bytes), wanted prompts");
        assert_eq!(read(Path::new("none.txt")).unwrap_err().to_string(), "none.txt does not exist");
    }

    #[test]
    fn published_lists_are_read_as_what_they_are() {
        let wanted = ["a red fox", "an owl"];
        for (name, content, column) in [
            // HPSv2's benchmark, ImageReward's refl_data.json, a column of Pick-a-Pic.
            ("anime.json", "[\"a red fox\", \n \"an owl\"]", None),
            ("refl_data.json", r#"[{"id": "1", "text": "a red fox"}, {"id": "2", "text": "an owl"}]"#, Some("text")),
            ("pick.json", r#"[{"caption": "a red fox", "w": [1]}, {"caption": "an owl"}]"#, Some("caption")),
            ("lines.json", "{\"prompt\": \"a red fox\"}\n{\"prompt\": \"an owl\"}\n", None),
            ("strings.jsonl", "\"a red fox\"\n\"an owl\"\n", None),
            ("array.jsonl", "[{\"prompt\": \"a red fox\"}, {\"prompt\": \"an owl\"}]", None),
            ("PartiPrompts.tsv", "Prompt\tCategory\tNote\na red fox\tAnimals\t\nan owl\tAnimals\tx\n", Some("Prompt")),
            ("upper.csv", "URL,PROMPT\nx,a red fox\ny,an owl\n", Some("PROMPT")),
            ("both.csv", "text,prompt\nx,a red fox\ny,an owl\n", None),
            ("excel.csv", "id;prompt\n1;a red fox\n2;an owl\n", None),
            ("tabs.csv", "id\tprompt\n1\ta red fox\n2\tan owl\n", None),
            ("pandas.csv", ",\"prompt\"\r\n0,a red fox\r\n1,\"an owl\"\r\n", None),
            ("mac.txt", "a red fox\ran owl\r", None),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join(name);
            fs_err::write(&file, content).unwrap();
            let mut notes = Vec::new();
            let prompts =
                read_noted(&file, &mut |note| notes.push(note.to_owned())).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(prompts, wanted, "{name}");
            let said = column.map(|name| format!("{}: the prompts are those of its column `{name}`", file.display()));
            assert_eq!(notes, Vec::from_iter(said), "{name}");
        }
    }

    #[test]
    fn tables_by_another_name_are_refused() {
        for (content, what) in [
            ("[\"a fox\",\n\"an owl\"]", "a JSON array"),
            ("\u{feff}[{\"prompt\": \"a fox\"}]", "a JSON array"),
            ("{\"prompt\": \"a fox\"}\n{\"prompt\": \"an owl\"}\n", "JSON lines"),
            ("{\n\"prompt\": [\"a fox\"]}", "a JSON object"),
            ("prompt,path\na fox,a.png\n", "a CSV table"),
            ("\"path\";\"Prompt\"\na.png;a fox\n", "a CSV table"),
            ("Prompt\tCategory\na fox\tAnimals\n", "a table of tab-separated values"),
            ("prompt\na fox\n", "a CSV table"),
        ] {
            assert_eq!(refused("p.txt", content), format!("p.txt holds {what}, wanted a prompt a line"));
            assert_eq!(refused("p", content), format!("p holds {what}, wanted a prompt a line"));
        }
        assert_eq!(refused("p.txt", b"a fox\nan\0owl"), "p.txt line 2: a NUL byte, so this is no text, wanted prompts");
        let parquet = fs_err::read(Path::new(TABLES).join("manifest.parquet")).unwrap();
        assert_eq!(refused("p.txt", &parquet), "p.txt is a parquet file, wanted prompts");
        assert_eq!(refused("p.csv", &parquet), "p.csv is a parquet file, wanted a CSV table");
        assert_eq!(
            refused("p.parquet", "prompt\na fox\n").split(':').next().unwrap(),
            "p.parquet is text, not a parquet file"
        );
        // These are prompts, as web UIs weigh and schedule them.
        for prompt in ["[fox:owl:0.5], night", "{red|blue} fox", "[a fox]", "a prompt, a path", "a fox, text, 4k"] {
            assert_eq!(in_file("p.txt", prompt).unwrap(), [prompt]);
        }
    }

    #[test]
    fn json_of_another_shape_is_refused() {
        let object = "p.json is one JSON object (its keys: prompt), wanted an array of strings or objects";
        assert_eq!(refused("p.json", r#"{"prompt": {"0": "a fox"}}"#), object);
        assert_eq!(refused("p.json", "[\"a\", 7]"), "p.json row 1: 7, wanted a string or an object");
        assert_eq!(refused("p.json", "[{\"prompt\": null}]"), "p.json row 0: `prompt` is null, wanted a string");
        assert!(refused("p.json", "[\"a\",").starts_with("p.json: EOF while parsing"));
        assert_eq!(refused("p.json", "[]"), "no prompts in p.json");
        let quote = "p.csv line 3: a quote that is opened and never closed";
        assert_eq!(refused("p.csv", "prompt\na fox\n\"an owl\nx\n"), quote);
        assert_eq!(in_file("p.csv", "prompt\n\"an\nowl\n\"\na 5\" fox\n").unwrap(), ["an\nowl\n", "a 5\" fox"]);
    }
}
