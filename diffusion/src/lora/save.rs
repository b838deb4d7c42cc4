//! Writing LoRA files: diffusers' (PEFT's keys, alpha and rank in `lora_adapter_metadata`) and kohya's (an alpha tensor a layer).

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::{Base, Lora};
use crate::{
    Result,
    layer::Adapter,
    save::{Saved, tensor_file},
};

/// Writes what `load_lora_weights` of diffusers reads, alpha and rank included.
///
/// # Errors
/// The file cannot be written; what was there before stays.
pub fn diffusers(path: &Path, lora: &Lora) -> Result<()> {
    let mut tensors = Vec::new();
    let mut config = Map::new();
    for (prefix, adapters) in [("unet", &lora.unet), ("text_encoder", &lora.text)] {
        for (layer, adapter) in adapters {
            tensors.push((format!("{prefix}.{layer}.lora_A.weight"), fp32(&adapter.down)));
            tensors.push((format!("{prefix}.{layer}.lora_B.weight"), fp32(&adapter.up)));
        }
        config.extend(peft_config(adapters).into_iter().map(|(key, value)| (format!("{prefix}.{key}"), value)));
    }
    let metadata = [("lora_adapter_metadata".to_owned(), format!("{:#}", Value::Object(config)))];
    tensor_file(path, tensors, metadata.into())
}

/// Writes what kohya's scripts and the web UIs read. The library diffusers reads it too, but gives all attention layers one
/// alpha: for it, use [`diffusers()`]. Web UIs list it under `base`.
///
/// # Errors
/// The file cannot be written; what was there before stays.
pub fn kohya(path: &Path, lora: &Lora, base: &Base) -> Result<()> {
    let mut tensors = Vec::new();
    for (prefix, adapters) in [("lora_unet", &lora.unet), ("lora_te", &lora.text)] {
        for (layer, adapter) in adapters {
            let name = format!("{prefix}_{}", layer.replace('.', "_"));
            tensors.push((format!("{name}.lora_down.weight"), fp32(&adapter.down)));
            tensors.push((format!("{name}.lora_up.weight"), fp32(&adapter.up)));
            tensors.push((format!("{name}.alpha"), fp32(&Tensor::from(alpha(adapter) as f32))));
        }
    }
    let all = || lora.unet.values().chain(lora.text.values());
    let network = [
        ("ss_network_module".to_owned(), "networks.lora".to_owned()),
        ("ss_network_dim".to_owned(), most_frequent(all().map(rank)).to_string()),
        ("ss_network_alpha".to_owned(), number(most_frequent(all().map(alpha_bits)))),
    ];
    tensor_file(path, tensors, base.metadata().into_iter().chain(network).collect())
}

fn fp32(tensor: &Tensor) -> Saved {
    Saved::new(tensor, Kind::Float)
}

fn rank(adapter: &Adapter) -> i64 {
    adapter.down.size().first().copied().unwrap_or_default()
}

/// The alpha that gives this adapter's scale. Rounded to a multiple of 2⁻²⁰, so that alpha / r · r is what it was.
fn alpha(adapter: &Adapter) -> f64 {
    let alpha = adapter.scale * rank(adapter) as f64;
    let rounded = (alpha * f64::from(1 << 20)).round() / f64::from(1 << 20);
    if (rounded - alpha).abs() <= 1e-12 * alpha.abs() { rounded } else { alpha }
}

fn alpha_bits(adapter: &Adapter) -> i64 {
    alpha(adapter).to_bits().cast_signed()
}

fn number(bits: i64) -> String {
    json!(f64::from_bits(bits.cast_unsigned())).to_string()
}

/// The most frequent value, the smallest of several; 0 of none.
fn most_frequent(values: impl Iterator<Item = i64>) -> i64 {
    let mut counts = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_insert(0) += 1);
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map_or(0, |(value, _)| value)
}

/// PEFT's `LoraConfig` of these adapters: the most frequent rank and alpha, and a pattern for every layer that has others.
fn peft_config(adapters: &BTreeMap<String, Adapter>) -> Map<String, Value> {
    if adapters.is_empty() {
        return Map::new();
    }
    let common_rank = most_frequent(adapters.values().map(rank));
    let common_alpha = f64::from_bits(most_frequent(adapters.values().map(alpha_bits)).cast_unsigned());
    // transformers 5 drops `text_model.`; a name is matched from its end.
    let name = |layer: &String| layer.strip_prefix("text_model.").unwrap_or(layer).to_owned();
    let pattern = |value: &dyn Fn(&Adapter) -> Option<Value>| -> Map<String, Value> {
        adapters.iter().filter_map(|(layer, adapter)| Some((name(layer), value(adapter)?))).collect()
    };
    let number = |alpha: f64| if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) };
    let ranks = pattern(&|adapter| (rank(adapter) != common_rank).then(|| rank(adapter).into()));
    let alphas = pattern(&|adapter| (alpha(adapter) != common_alpha).then(|| number(alpha(adapter))));
    let targets: Vec<_> = adapters.keys().map(name).collect();
    let fields = [
        ("alpha_pattern", alphas.into()),
        ("lora_alpha", number(common_alpha)),
        ("r", common_rank.into()),
        ("rank_pattern", ranks.into()),
        ("target_modules", targets.into()),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
