//! What PEFT says about the scale of its adapters: `adapter_config.json`, or diffusers' copy of it in a file's metadata.

use std::path::Path;

use regex::Regex;
use reward::error::did_you_mean;
use serde_json::{Map, Value};

use super::Model;
use crate::{Error, Result, metadata::metadata};

/// What PEFT says about alpha, for both models.
#[derive(Default)]
pub(super) struct Configs {
    unet: Option<Scaling>,
    text: Option<Scaling>,
}

/// The part of PEFT's `LoraConfig` that decides the scale.
struct Scaling {
    alpha: f64,
    patterns: Vec<(Regex, f64)>,
    rank_stabilised: bool,
}

/// Settings that make an update something else than plain LoRA, unless they are absent, null, false or empty.
const OTHERS: [(&str, &str); 11] = [
    ("use_dora", "DoRA"),
    ("lora_bias", "LoRA with biases"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "BD-LoRA"),
    ("kasa_config", "KaSA"),
    ("velora_config", "VeLoRA"),
    ("monteclora_config", "MonteCLoRA"),
    ("alora_invocation_tokens", "aLoRA"),
    ("layer_replication", "a model with repeated layers"),
    ("modules_to_save", "a LoRA with whole layers beside it"),
    ("target_parameters", "LoRA of single parameters"),
];

/// Settings that decide the scale.
const READ: [&str; 4] = ["lora_alpha", "use_rslora", "alpha_pattern", "peft_type"];

/// Other settings of PEFT 0.21 whose names are near those.
const NEAR: [&str; 2] = ["rank_pattern", "layers_pattern"];

impl Configs {
    /// From `lora_adapter_metadata` in the file (diffusers), else from `adapter_config.json` beside it (PEFT).
    pub(super) fn read(path: &Path) -> Result<Self> {
        if let Some(text) = metadata(path)?.get("lora_adapter_metadata").and_then(Value::as_str) {
            let place = format!("{}: `lora_adapter_metadata`", path.display());
            let packed: Map<String, Value> = serde_json::from_str(text)
                .map_err(|error| Error::data(format!("{place} is not a JSON object")).caused_by(error))?;
            let known = |key: &String| ["unet.", "text_encoder."].iter().any(|part| key.starts_with(part));
            if let Some(key) = packed.keys().find(|key| !known(key)) {
                return Err(Error::data(format!("{place}: `{key}` is of neither `unet.` nor `text_encoder.`")));
            }
            let part = |prefix: &str| {
                let fields = packed.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value)));
                let fields: Map<_, _> = fields.map(|(key, value)| (key.to_owned(), value.clone())).collect();
                if fields.is_empty() { Ok(None) } else { Scaling::of(&fields, &place).map(Some) }
            };
            return Ok(Self { unet: part("unet.")?, text: part("text_encoder.")? });
        }
        let beside = path.with_file_name("adapter_config.json");
        if path.file_name().is_none_or(|name| name != "adapter_model.safetensors" && name != "adapter_model.bin")
            || !beside.is_file()
        {
            return Ok(Self::default());
        }
        let place = beside.display().to_string();
        let config: Map<String, Value> = serde_json::from_str(&reward::text::read(&beside, "a LoRA config")?)
            .map_err(|error| Error::data(format!("{place}: not a JSON object")).caused_by(error))?;
        Ok(Self { unet: Some(Scaling::of(&config, &place)?), text: Some(Scaling::of(&config, &place)?) })
    }

    /// alpha / r of `layer`.
    pub(super) fn scale(&self, model: Model, layer: &str, rank: i64) -> f64 {
        let scaling = match model {
            Model::Unet => &self.unet,
            Model::Text => &self.text,
        };
        let Some(Scaling { alpha, patterns, rank_stabilised }) = scaling else { return 1.0 };
        let own = patterns.iter().find(|(pattern, _)| pattern.is_match(layer));
        let alpha = own.map_or(*alpha, |(_, alpha)| *alpha);
        alpha / if *rank_stabilised { (rank as f64).sqrt() } else { rank as f64 }
    }
}

impl Scaling {
    /// `place`: what errors call the config.
    fn of(config: &Map<String, Value>, place: &str) -> Result<Self> {
        let refused = |what: String| Err(Error::data(format!("{place}: {what} is not supported, want plain LoRA")));
        let wrong = |key: &str, value: &Value, want: &str| {
            Err(Error::data(format!("{place}: `{key}` is {}, want {want}", shortened(value))))
        };
        near_misses(config, place)?;
        match config.get("peft_type") {
            None | Some(Value::Null) => {}
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(kind) => return refused(format!("`peft_type` {}", shortened(kind))),
        }
        for (key, name) in OTHERS {
            let off = match config.get(key) {
                None | Some(Value::Null | Value::Bool(false)) => true,
                Some(Value::Array(list)) => list.is_empty(),
                Some(Value::Object(map)) => map.is_empty(),
                Some(_) => false,
            };
            if !off {
                return refused(format!("{name} (`{key}`)"));
            }
        }
        if let Some(Value::String(start)) = config.get("init_lora_weights") {
            // These take their adapters out of the base's weights: the file alone is not the update.
            if ["pissa", "olora", "corda", "loftq"].iter().any(|name| start.starts_with(name)) {
                return refused(format!("`init_lora_weights` {start}, which changes the base's weights too,"));
            }
        }
        let rank_stabilised = match config.get("use_rslora") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(on)) => *on,
            Some(other) => return wrong("use_rslora", other, "true or false"),
        };
        let number = |value: &Value| value.as_f64().filter(|value| value.is_finite());
        let alpha = match config.get("lora_alpha") {
            None => return Err(Error::data(format!("{place}: `lora_alpha` is missing"))),
            Some(value) => match number(value) {
                Some(alpha) => alpha,
                None => return wrong("lora_alpha", value, "a number"),
            },
        };
        let mut patterns = Vec::new();
        let empty = Map::new();
        let given = match config.get("alpha_pattern") {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(given)) => given,
            Some(other) => return wrong("alpha_pattern", other, "an object of numbers by layer"),
        };
        for (pattern, value) in given {
            let Some(alpha) = number(value) else {
                return wrong(&format!("alpha_pattern.{pattern}"), value, "a number");
            };
            // As PEFT matches them: at the end of the name, after a dot.
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$")).map_err(|_| {
                Error::data(format!("{place}: `alpha_pattern` has a pattern that is not understood: `{pattern}`"))
            })?;
            patterns.push((regex, alpha));
        }
        Ok(Self { alpha, patterns, rank_stabilised })
    }
}

/// Refuses a key that is nearly one that decides the scale, where that one is absent: an alpha must not be lost in silence.
fn near_misses(config: &Map<String, Value>, place: &str) -> Result<()> {
    let known = |key: &str| READ.contains(&key) || NEAR.contains(&key) || OTHERS.iter().any(|(other, _)| key == *other);
    let missing = READ.into_iter().filter(|key| !config.contains_key(*key)).collect::<Vec<_>>();
    for key in config.keys().filter(|key| !known(key)) {
        if let Some(hint) = did_you_mean(key, missing.iter().copied()) {
            return Err(Error::data(format!("{place}: unknown key `{}`", key.escape_debug())).hint(hint));
        }
    }
    Ok(())
}

/// A value on one line, its first 60 letters.
fn shortened(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}
