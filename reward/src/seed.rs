//! Seeds: whole numbers from 0 to 2⁶⁴ − 1, as ComfyUI and numpy draw them, in text, tables and TOML.
//!
//! TOML's integers end at 2⁶³ − 1, so a larger seed is a string there. Parquet's are the same 64 bits with or without a sign;
//! so a negative number in a table is the seed of the same bits.

use std::fmt;

use serde::{Deserializer, Serializer, de};

/// What a seed has to be.
pub const WANTED: &str = "a whole number from 0 to 18446744073709551615";

/// What a column holds where there is no seed: nothing, or what pandas and others write for it.
const MISSING: [&str; 8] = ["", "nan", "NaN", "NA", "<NA>", "null", "None", "NULL"];

/// Numbers up to here are exact as 64-bit floats.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The seed that a cell of text holds, if any; `3.0` is 3.
///
/// # Errors
/// What was wanted in place of this text.
pub fn of_text(text: &str) -> Result<Option<u64>, &'static str> {
    let text = text.trim();
    if MISSING.contains(&text) {
        return Ok(None);
    }
    let digits = text.split_once('.').filter(|(_, zeros)| zeros.bytes().all(|zero| zero == b'0'));
    match digits.map_or(text, |(digits, _)| digits).parse::<i128>() {
        Ok(whole) => of_whole(whole).map(Some),
        Err(_) => text.parse().map_err(|_| "a whole number").and_then(of_float),
    }
}

/// The seed that a float is, if it is a number at all.
///
/// # Errors
/// What was wanted in place of it.
pub fn of_float(value: f64) -> Result<Option<u64>, &'static str> {
    if value.is_nan() {
        Ok(None)
    } else if value.fract() != 0.0 || value.is_infinite() {
        Err("a whole number")
    } else if value.abs() > EXACT {
        Err("a whole number with all its digits, not a rounded float (in pandas: `astype(\"UInt64\")`)")
    } else {
        of_whole(value as i128).map(Some)
    }
}

/// The seed that a whole number is; a negative one is taken for 64 bits with a sign.
fn of_whole(value: i128) -> Result<u64, &'static str> {
    if i128::from(i64::MIN) <= value && value <= i128::from(u64::MAX) {
        Ok(value as u64)
    } else {
        Err("a whole number below 2^64")
    }
}

/// The note of a parquet schema's field `seed` on its values, which are 64 bits either way. It says nothing where a signed
/// number holds them all, as most readers expect.
pub fn parquet_annotation(mut seeds: impl Iterator<Item = u64>) -> &'static str {
    if seeds.all(|seed| i64::try_from(seed).is_ok()) { "" } else { " (INTEGER(64,false))" }
}

/// Serialises a seed as a number where TOML has it, else as a string.
///
/// # Errors
/// Those of the serialiser.
pub fn serialize<S: Serializer>(seed: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    match i64::try_from(*seed) {
        Ok(number) => serializer.serialize_i64(number),
        Err(_) => serializer.serialize_str(&seed.to_string()),
    }
}

/// Reads a seed from a number or a string.
///
/// # Errors
/// It is neither, or out of range.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(SeedVisitor)
}

struct SeedVisitor;

impl de::Visitor<'_> for SeedVisitor {
    type Value = u64;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{WANTED} (as a string above 9223372036854775807)")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
        value.try_into().map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// The same for a seed that may be absent, for `#[serde(default, with = "reward::seed::optional")]`.
pub mod optional {
    use serde::{Deserializer, Serializer};

    /// As [`super::serialize`].
    ///
    /// # Errors
    /// Those of the serialiser.
    pub fn serialize<S: Serializer>(seed: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match seed {
            Some(seed) => super::serialize(seed, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// As [`super::deserialize`], of a seed that is there.
    ///
    /// # Errors
    /// It is not a seed.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[test]
    fn text_of_all_programs_is_read_or_refused() {
        let big = "14932476290187345921";
        let cases: [(&str, Option<u64>); 12] = [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("3.0", Some(3)),
            ("3.", Some(3)),
            ("1e3", Some(1000)),
            (big, Some(14_932_476_290_187_345_921)),
            ("14932476290187345921.0", Some(14_932_476_290_187_345_921)),
            ("18446744073709551615", Some(u64::MAX)),
            ("-1", Some(u64::MAX)),
            ("", None),
            ("nan", None),
            ("<NA>", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(of_text(text), Ok(wanted), "{text}");
        }
        assert_eq!(of_text("-x"), Err("a whole number"));
        assert_eq!(of_text("1.5"), Err("a whole number"));
        assert_eq!(of_text("inf"), Err("a whole number"));
        assert_eq!(of_text("18446744073709551616"), Err("a whole number below 2^64"));
        // What pandas writes of a large seed once a gap has made its column floats: digits are lost.
        assert!(of_text("1.4932476290187346e+19").unwrap_err().contains("UInt64"));
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Settings {
        #[serde(with = "crate::seed")]
        seed: u64,
        #[serde(default, with = "crate::seed::optional", skip_serializing_if = "Option::is_none")]
        other: Option<u64>,
    }

    #[test]
    fn toml_holds_every_seed() {
        for seed in [0, 7, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX] {
            for other in [None, Some(seed)] {
                let settings = Settings { seed, other };
                let text = toml::to_string(&settings).unwrap();
                assert_eq!(toml::from_str::<Settings>(&text).unwrap(), settings, "{text}");
                let json = serde_json::to_string(&settings).unwrap();
                assert_eq!(serde_json::from_str::<Settings>(&json).unwrap(), settings, "{json}");
            }
        }
        let json = format!("{{\"seed\": {}}}", u64::MAX);
        assert_eq!(serde_json::from_str::<Settings>(&json).unwrap().seed, u64::MAX);
        for wrong in ["-1", "\"-1\"", "\"18446744073709551616\"", "3.5", "true", "\"\""] {
            let error = toml::from_str::<Settings>(&format!("seed = {wrong}")).unwrap_err();
            assert!(error.message().contains("expected a whole number from 0 to 18446744073709551615"), "{error}");
        }
    }
}
