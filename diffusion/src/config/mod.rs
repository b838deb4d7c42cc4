//! What the three models look like: read from diffusers' and transformers' `config.json`, written for saving, and the
//! published configurations as presets. A value that is not supported is an error that names its field.

mod text;
mod unet;
mod vae;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{Error, Result};

pub use text::{Activation, TextConfig};
pub use unet::UnetConfig;
pub use vae::VaeConfig;

/// The names of the presets: `random:NAME` is a model of this architecture.
pub const PRESETS: [&str; 4] = ["sd-tiny", "sd-toy", "sd15", "sd21-base"];

/// The model family that a class of diffusers or transformers belongs to, where it is one that is not supported.
pub fn other_family(class_name: &str) -> Option<&'static str> {
    let families = [
        ("StableDiffusionXL", "Stable Diffusion XL"),
        ("StableDiffusion3", "Stable Diffusion 3"),
        ("SD3", "Stable Diffusion 3"),
        ("Flux", "Flux"),
        ("Inpaint", "inpainting"),
        ("InstructPix2Pix", "InstructPix2Pix"),
        ("Upscale", "upscaling"),
        ("Depth2Img", "depth to image"),
        ("Transformer2D", "diffusion transformer"),
        ("UNet3D", "video"),
        ("UNetMotion", "video"),
        ("Kandinsky", "Kandinsky"),
        ("PixArt", "PixArt"),
    ];
    families.iter().find(|(part, _)| class_name.contains(part)).map(|(_, family)| *family)
}

/// The fields of one `config.json`, each read once.
struct Fields<'a> {
    model: &'static str,
    map: &'a Map<String, Value>,
    seen: BTreeSet<&'a str>,
}

impl<'a> Fields<'a> {
    /// `model`: what errors call it.
    fn new(model: &'static str, config: &'a Value) -> Result<Self> {
        let map = config.as_object().ok_or_else(|| Error::data(format!("{model} config: want a JSON object")))?;
        Ok(Self { model, map, seen: BTreeSet::new() })
    }

    fn class(&mut self, key: &'static str, want: &str) -> Result<()> {
        let Some(found) = self.value(key) else { return Ok(()) };
        let found = found.as_array().and_then(|classes| classes.first()).unwrap_or(found).as_str().unwrap_or_default();
        if found == want {
            return Ok(());
        }
        let family = other_family(found).map_or(String::new(), |family| format!(" ({family})"));
        Err(Error::data(format!(
            "{} config: `{key}` is {found}{family}, which is not supported; {want} is",
            self.model
        ))
        .hint("Stable Diffusion 1.x and 2.x are supported"))
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.seen.insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Reads `key` by `parse`; absent or null gives `default`, or an error where there is none.
    fn get<T>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        want: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        match self.value(key) {
            Some(value) => parse(value)
                .ok_or_else(|| Error::data(format!("{} config: `{key}` is {value}, want {want}", self.model))),
            None => default.ok_or_else(|| Error::data(format!("{} config: `{key}` is missing", self.model))),
        }
    }

    /// A positive integer.
    fn count(&mut self, key: &'static str, default: Option<i64>) -> Result<i64> {
        self.get(key, default, "a positive integer", count)
    }

    fn number(&mut self, key: &'static str, default: f64) -> Result<f64> {
        self.get(key, Some(default), "a number", Value::as_f64)
    }

    fn flag(&mut self, key: &'static str, default: bool) -> Result<bool> {
        self.get(key, Some(default), "true or false", Value::as_bool)
    }

    /// A list of positive integers.
    fn counts(&mut self, key: &'static str) -> Result<Vec<i64>> {
        self.get(key, None, "a list of positive integers", |value| {
            value.as_array().filter(|list| !list.is_empty())?.iter().map(count).collect()
        })
    }

    /// One of the names given, for each of `count` entries of a list; gives their indices.
    fn names(&mut self, key: &'static str, known: &[&str], count: usize) -> Result<Vec<usize>> {
        let want = format!("a list of {count} of {}", known.join(", "));
        self.get(key, None, &want, |value| {
            let index = |name: &Value| known.iter().position(|known| name.as_str() == Some(known));
            value.as_array().filter(|list| list.len() == count)?.iter().map(index).collect()
        })
    }

    /// A field of which one value is supported; `note` says what another would mean.
    fn only(&mut self, key: &'static str, supported: Value, note: &str) -> Result<()> {
        let Some(found) = self.value(key) else { return Ok(()) };
        let equal = *found == supported || (found.is_number() && found.as_f64() == supported.as_f64());
        if equal {
            return Ok(());
        }
        let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
        Err(Error::data(format!(
            "{} config: `{key}` is {found}{note}, which is not supported; {supported} is",
            self.model
        ))
        .hint("Stable Diffusion 1.x and 2.x are supported"))
    }

    /// A field that has to be absent, null or false.
    fn none(&mut self, key: &'static str, note: &str) -> Result<()> {
        match self.value(key) {
            Some(Value::Bool(false)) => Ok(()),
            _ => self.only(key, Value::Null, note),
        }
    }

    /// Fields that are nowhere read must say nothing.
    fn finish(self) -> Result<()> {
        let says_something = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            _ => true,
        };
        let unknown = self
            .map
            .iter()
            .find(|(key, value)| !key.starts_with('_') && !self.seen.contains(key.as_str()) && says_something(value));
        match unknown {
            Some((key, value)) => Err(Error::data(format!(
                "{} config: `{key}` (here {value}) is not a field that Stable Diffusion 1.x and 2.x have",
                self.model
            ))),
            None => Ok(()),
        }
    }
}

fn count(value: &Value) -> Option<i64> {
    value.as_i64().filter(|count| *count > 0)
}
