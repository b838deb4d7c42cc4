//! Writing LoRA files: diffusers' (PEFT's keys, alpha and rank in `lora_adapter_metadata`) and kohya's (an alpha tensor a layer).

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use reward::weights::save::replace_file;
use safetensors::{Dtype, View};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::Lora;
use crate::{Error, Result, layer::Adapter};

/// Writes what `load_lora_weights` of diffusers reads, alpha and rank included.
///
/// # Errors
/// The file cannot be written; what was there before stays.
pub fn diffusers(path: &Path, lora: &Lora) -> Result<()> {
    let mut tensors = BTreeMap::new();
    let mut config = Map::new();
    for (prefix, adapters) in [("unet", &lora.unet), ("text_encoder", &lora.text)] {
        for (layer, adapter) in adapters {
            tensors.insert(format!("{prefix}.{layer}.lora_A.weight"), Values::of(&adapter.down));
            tensors.insert(format!("{prefix}.{layer}.lora_B.weight"), Values::of(&adapter.up));
        }
        config.extend(peft_config(adapters).into_iter().map(|(key, value)| (format!("{prefix}.{key}"), value)));
    }
    let metadata = [("lora_adapter_metadata".to_owned(), format!("{:#}", Value::Object(config)))];
    write(path, tensors, metadata)
}

/// Writes what kohya's scripts and the web UIs read.
///
/// # Errors
/// The file cannot be written; what was there before stays.
pub fn kohya(path: &Path, lora: &Lora) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (prefix, adapters) in [("lora_unet", &lora.unet), ("lora_te", &lora.text)] {
        for (layer, adapter) in adapters {
            let name = format!("{prefix}_{}", layer.replace('.', "_"));
            tensors.insert(format!("{name}.lora_down.weight"), Values::of(&adapter.down));
            tensors.insert(format!("{name}.lora_up.weight"), Values::of(&adapter.up));
            tensors.insert(format!("{name}.alpha"), Values::of(&Tensor::from(alpha(adapter) as f32)));
        }
    }
    let all = || lora.unet.values().chain(lora.text.values());
    let metadata = [
        ("ss_network_module".to_owned(), "networks.lora".to_owned()),
        ("ss_network_dim".to_owned(), most_frequent(all().map(rank)).to_string()),
        ("ss_network_alpha".to_owned(), number(most_frequent(all().map(alpha_bits)))),
    ];
    write(path, tensors, metadata)
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

/// Of equally frequent ones the smallest; 0 of none.
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

/// A tensor of a file.
struct Values {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Values {
    fn of(tensor: &Tensor) -> Self {
        let tensor = tensor.detach().to_device(tch::Device::Cpu).to_kind(Kind::Float).contiguous();
        let mut values = vec![0_f32; tensor.numel()];
        tensor.copy_data(&mut values, tensor.numel());
        Self {
            shape: tensor.size().into_iter().map(|size| size as usize).collect(),
            bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}

impl View for Values {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn write<const N: usize>(
    path: &Path,
    tensors: BTreeMap<String, Values>,
    metadata: [(String, String); N],
) -> Result<()> {
    let metadata = metadata.into_iter().chain([("format".to_owned(), "pt".to_owned())]).collect();
    replace_file(path, |partial| {
        safetensors::serialize_to_file(tensors, Some(metadata), partial)
            .map_err(|error| Error::data(format!("cannot write {}", path.display())).caused_by(error))
    })
}
