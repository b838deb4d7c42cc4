//! The fields of one `config.json`, each read once, with bounds on every number: what is built of them is counted by them.
//!
//! Errors name the key, what was found and what is wanted; whoever opened the file adds its name.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::other_family;
use crate::{Error, Result};

/// Most channels of a layer.
pub(super) const WIDTH: i64 = 1 << 16;
/// Most blocks one after the other.
pub(super) const BLOCKS: i64 = 256;
/// Most resolutions of a UNet or VAE.
const LEVELS: usize = 12;
/// Keys whose null diffusers and transformers take as "not said", although they have a default.
const NULLABLE: [&str; 6] =
    ["sample_size", "force_upcast", "projection_dim", "bos_token_id", "eos_token_id", "pad_token_id"];
/// Where only Stable Diffusion 1.x and 2.x will do.
const SUPPORTED: &str = "Stable Diffusion 1.x and 2.x are supported";

/// A `config.json` that is being read.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    seen: BTreeSet<&'a str>,
    /// Sentences for the user about what was left unread.
    pub(super) remarks: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(config: &'a Value) -> Result<Self> {
        let map = config.as_object().ok_or_else(|| Error::data("not a JSON object, as a model's config is"))?;
        Ok(Self { map, seen: BTreeSet::new(), remarks: Vec::new() })
    }

    pub(super) fn class(&mut self, key: &'static str, want: &str) -> Result<()> {
        let Some(value) = self.value(key) else { return Ok(()) };
        let first = value.as_array().and_then(|classes| classes.first()).unwrap_or(value);
        let Some(found) = first.as_str() else {
            return Err(Error::data(format!("`{key}` is {value}, want {want}")));
        };
        if found == want {
            return Ok(());
        }
        let family = other_family(found).map_or(String::new(), |family| format!(" ({family})"));
        Err(Error::data(format!("`{key}` is {found}{family}, which is not supported; {want} is")).hint(SUPPORTED))
    }

    /// The value as it stands, null included.
    pub(super) fn raw(&mut self, key: &'static str) -> Option<&'a Value> {
        self.seen.insert(key);
        self.map.get(key)
    }

    /// The value where there is one; null is none.
    fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.raw(key).filter(|value| !value.is_null())
    }

    /// Reads `key` by `parse`; absent gives `default`, or an error where there is none.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        want: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        match self.raw(key) {
            Some(Value::Null) if NULLABLE.contains(&key) => {
                default.ok_or_else(|| Error::data(format!("`{key}` is null, want {want}")))
            }
            Some(value) => parse(value).ok_or_else(|| Error::data(format!("`{key}` is {}, want {want}", short(value)))),
            None => default.ok_or_else(|| Error::data(format!("`{key}` is missing"))),
        }
    }

    /// A whole number from 1 to `most`.
    pub(super) fn count(&mut self, key: &'static str, default: Option<i64>, most: i64) -> Result<i64> {
        self.get(key, default, &format!("a whole number from 1 to {most}"), |value| count(value, most))
    }

    /// As [`Self::count`], of a list that says the same for each of `levels` as well.
    pub(super) fn count_of_all(&mut self, key: &'static str, default: i64, most: i64, levels: usize) -> Result<i64> {
        let want = format!("a whole number from 1 to {most}, the same for every level");
        self.get(key, Some(default), &want, |value| match value {
            Value::Array(list) if list.len() == levels && same(value, &list[0]) => count(&list[0], most),
            value => count(value, most),
        })
    }

    /// A number above 0 and below `below`.
    pub(super) fn number(&mut self, key: &'static str, default: f64, below: f64) -> Result<f64> {
        self.get(key, Some(default), &format!("a number above 0 and below {below}"), |value| {
            value.as_f64().filter(|number| *number > 0.0 && *number < below)
        })
    }

    /// A switch; null is off, as in Python.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Result<bool> {
        let switch = |value: &Value| if value.is_null() { Some(false) } else { value.as_bool() };
        self.get(key, Some(default), "true or false", switch)
    }

    /// The channels of each level.
    pub(super) fn channels(&mut self, key: &'static str) -> Result<Vec<i64>> {
        let want = format!("a list of 1 to {LEVELS} whole numbers from 1 to {WIDTH}");
        self.get(key, None, &want, |value| {
            let list = value.as_array().filter(|list| (1..=LEVELS).contains(&list.len()))?;
            list.iter().map(|value| count(value, WIDTH)).collect()
        })
    }

    /// One of the names given, for each of `count` entries of a list; gives their indices.
    pub(super) fn names(&mut self, key: &'static str, known: &[&str], count: usize) -> Result<Vec<usize>> {
        let want = format!("a list of {count} of {}", known.join(", "));
        self.get(key, None, &want, |value| {
            let index = |name: &Value| known.iter().position(|known| name.as_str() == Some(known));
            value.as_array().filter(|list| list.len() == count)?.iter().map(index).collect()
        })
    }

    /// A field of which one value is supported, or a list of it for every level; `note` says what another would mean.
    pub(super) fn only(&mut self, key: &'static str, supported: Value, note: &str) -> Result<()> {
        let Some(found) = self.value(key).filter(|found| !same(found, &supported)) else { return Ok(()) };
        let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
        let found = short(found);
        Err(Error::data(format!("`{key}` is {found}{note}, which is not supported; {supported} is")).hint(SUPPORTED))
    }

    /// A field that has to be absent, null or false, for every level too.
    pub(super) fn none(&mut self, key: &'static str, note: &str) -> Result<()> {
        match self.value(key) {
            Some(value) if says_something(value) => self.only(key, Value::Null, note),
            _ => Ok(()),
        }
    }

    /// Fields that change nothing here and are not carried along: a remark names those that are there.
    pub(super) fn unread(&mut self, keys: &[&'static str], what: &str) {
        let there: Vec<String> =
            keys.iter().filter(|key| self.raw(key).is_some()).map(|key| format!("`{key}`")).collect();
        if !there.is_empty() {
            self.remarks.push(format!("{} not read: {what}", there.join(", ")));
        }
    }

    /// Fields that are nowhere read must say nothing. Gives the remarks.
    pub(super) fn finish(self) -> Result<Vec<String>> {
        let unknown = self
            .map
            .iter()
            .find(|(key, value)| !key.starts_with('_') && !self.seen.contains(key.as_str()) && says_something(value));
        match unknown {
            Some((key, value)) => Err(Error::data(format!(
                "`{key}` (here {}) is not a field that Stable Diffusion 1.x and 2.x have",
                short(value)
            ))),
            None => Ok(self.remarks),
        }
    }
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => list.iter().any(says_something),
        _ => true,
    }
}

/// Equal values, 1 and 1.0 included; a list is the same where each of its entries is.
fn same(found: &Value, wanted: &Value) -> bool {
    match found {
        Value::Array(list) if !wanted.is_array() => !list.is_empty() && list.iter().all(|entry| same(entry, wanted)),
        _ => found == wanted || (found.is_number() && found.as_f64() == wanted.as_f64()),
    }
}

pub(super) fn count(value: &Value, most: i64) -> Option<i64> {
    value.as_i64().filter(|count| (1..=most).contains(count))
}

/// The value as JSON, cut where it is long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_of_the_default_are_the_default() {
        let config = json!({"a": [1, 1.0], "b": [[1], [1]], "c": [false, null], "d": [3, 3], "e": [1, 2]});
        let mut fields = Fields::new(&config).unwrap();
        fields.only("a", json!(1), "").unwrap();
        fields.only("b", json!(1), "").unwrap();
        fields.none("c", "").unwrap();
        assert_eq!(fields.count_of_all("d", 1, 5, 2).unwrap(), 3);
        let error = fields.only("e", json!(1), "two").unwrap_err().to_string();
        assert_eq!(error, "`e` is [1,2] (two), which is not supported; 1 is");
        assert!(fields.count_of_all("d", 1, 5, 3).is_err());
    }

    #[test]
    fn null_is_no_number() {
        let config = json!({"norm_num_groups": null, "sample_size": null, "flip": null});
        let mut fields = Fields::new(&config).unwrap();
        let error = fields.count("norm_num_groups", Some(32), 64).unwrap_err().to_string();
        assert_eq!(error, "`norm_num_groups` is null, want a whole number from 1 to 64");
        assert_eq!(fields.count("sample_size", Some(64), 64).unwrap(), 64);
        assert!(!fields.flag("flip", true).unwrap());
    }
}
