//! Settings in JSON files of other programs. Every value has its type and its bounds checked before it is used, and what is wrong
//! is said by file and key.

use std::{fmt, ops::RangeInclusive, path::Path};

use serde_json::{Map, Value};

use crate::{Error, Result, text};

/// The JSON document in a file.
///
/// # Errors
/// The file cannot be read, or is no JSON.
pub fn read(path: &Path) -> Result<Value> {
    parse(&path.display().to_string(), &text::read(path, "a JSON file")?)
}

/// The JSON document in `text`, which came from `place`.
///
/// # Errors
/// No JSON.
pub fn parse(place: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        let wrong = Error::data(format!("{place}: not JSON: {error}"));
        match ["NaN", "Infinity"].iter().find(|name| text.contains(**name)) {
            Some(name) => wrong.hint(format!("JSON has no {name}: the program that wrote it had no number there")),
            None => wrong,
        }
    })
}

/// An object of settings.
#[derive(Debug, Clone)]
pub struct Section<'a> {
    /// The file, and the key of the section in it.
    place: String,
    object: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// The whole document that came from `place`.
    ///
    /// # Errors
    /// It is no object.
    pub fn of(place: impl Into<String>, value: &'a Value) -> Result<Self> {
        let place = place.into();
        match value.as_object() {
            Some(object) => Ok(Self { place, object }),
            None => Err(Error::data(format!("{place}: want a JSON object, found {}", Short(value)))),
        }
    }

    /// Where it is.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The keys that it has.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    /// A value that is not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The error for a value that is not as it has to be.
    pub fn wrong(&self, key: &str, want: impl fmt::Display) -> Error {
        match self.object.get(key) {
            Some(found) => Error::data(format!("{}: `{key}` is {}, want {want}", self.place, Short(found))),
            None => Error::data(format!("{}: `{key}` is missing, want {want}", self.place)),
        }
    }

    /// The object under `key`.
    ///
    /// # Errors
    /// Another type.
    pub fn section(&self, key: &str) -> Result<Option<Self>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| self.wrong(key, "an object"))?;
        Ok(Some(Self { place: format!("{}: {key}", self.place), object }))
    }

    /// A whole number in `range`.
    ///
    /// # Errors
    /// Another type or value.
    pub fn whole(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, format!("a whole number from {} to {}", range.start(), range.end()))),
        }
    }

    /// A number in `range`.
    ///
    /// # Errors
    /// Another type or value.
    pub fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, format!("a number from {} to {}", range.start(), range.end()))),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// Another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// A text.
    ///
    /// # Errors
    /// Another type.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a text"))
    }

    /// Refuses a key that is a slip of one in `known`, which would leave the default in its place; `others` are keys of
    /// their own that look like one.
    ///
    /// # Errors
    /// Names the key, with the one that was meant as the hint.
    pub fn no_slips(&self, known: &[&str], others: &[&str]) -> Result<()> {
        for key in self.keys().filter(|key| !known.contains(key) && !others.contains(key)) {
            let near = |name: &&&str| strsim::damerau_levenshtein(key, name) <= 1 + name.len().div_euclid(8);
            if let Some(meant) = known.iter().find(near) {
                return Err(Error::data(format!("{}: unknown key `{}`", self.place, key.escape_debug()))
                    .hint(format!("did you mean `{meant}`?")));
            }
        }
        Ok(())
    }

    /// Refuses every key that is not in `known`.
    ///
    /// # Errors
    /// Names the key.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        match self.keys().find(|key| !known.contains(key)) {
            None => Ok(()),
            Some(key) => {
                let error = Error::data(format!("{}: unknown key `{}`", self.place, key.escape_debug()));
                Err(match crate::error::did_you_mean(key, known.iter().copied()) {
                    Some(hint) => error.hint(hint),
                    None => error.hint("it may change what the model computes: this version does not know it"),
                })
            }
        }
    }
}

/// A value on one line, cut where it is long.
struct Short<'a>(&'a Value);

impl fmt::Display for Short<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        const LONGEST: usize = 60;
        let text = self.0.to_string();
        match text.char_indices().nth(LONGEST) {
            Some((end, _)) => write!(formatter, "{}…", &text[..end]),
            None => formatter.write_str(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wrong_value_is_said_by_place_and_key() {
        let value = json!({"a": "12", "b": 1e6, "c": 3, "d": {"e": 1}, "f": null, "g": -1, "h": 4_294_967_296_u64});
        let section = Section::of("x.json", &value).unwrap();
        let said = |result: Result<Option<usize>>| result.unwrap_err().to_string();
        assert_eq!(said(section.whole("a", 1..=9)), "x.json: `a` is \"12\", want a whole number from 1 to 9");
        assert_eq!(said(section.whole("c", 1..=2)), "x.json: `c` is 3, want a whole number from 1 to 2");
        assert_eq!(said(section.whole("g", 0..=2)), "x.json: `g` is -1, want a whole number from 0 to 2");
        assert!(said(section.whole("h", 0..=49_407)).contains("4294967296"));
        assert_eq!(section.whole("f", 1..=2).unwrap(), None);
        assert_eq!(section.number("b", 0.0..=1e7).unwrap(), Some(1e6));
        assert_eq!(section.text("c").unwrap_err().to_string(), "x.json: `c` is 3, want a text");
        assert_eq!(section.flag("c").unwrap_err().to_string(), "x.json: `c` is 3, want true or false");
        let inner = section.section("d").unwrap().unwrap();
        assert_eq!(inner.flag("e").unwrap_err().to_string(), "x.json: d: `e` is 1, want true or false");
        assert!(section.section("c").is_err());
        let error = parse("x.json", "{\"a\": NaN}").unwrap_err();
        assert!(error.to_string().starts_with("x.json: not JSON: expected value at line 1"), "{error}");
        assert!(error.hint_text().unwrap().contains("no NaN"));
    }

    #[test]
    fn a_slip_of_a_key_is_refused() {
        let value = json!({"hiden_act": "gelu", "bos_token_id": 1});
        let section = Section::of("x.json", &value).unwrap();
        let error = section.no_slips(&["hidden_act", "eos_token_id"], &["bos_token_id"]).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.hint_text()),
            ("x.json: unknown key `hiden_act`", Some("did you mean `hidden_act`?"))
        );
        section.no_slips(&["image_size"], &[]).unwrap();
        assert!(section.only(&["hiden_act"]).is_err());
    }
}
