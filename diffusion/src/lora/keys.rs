//! The keys of LoRA files, taken apart: for which model, which layer, and which part of the update.

use super::Model;

/// A key that says something about a low-rank update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// `None`: the key does not say, and the layer's name has to.
    pub(super) model: Option<Model>,
    pub(super) layer: Name,
    pub(super) role: Role,
}

/// A layer as a file names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    /// `attentions.0.proj_in`: diffusers, PEFT.
    Dotted(String),
    /// `attentions_0_proj_in`: kohya, where a dot and an underscore are the same.
    Underscored(String),
}

impl Name {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Dotted(name) | Self::Underscored(name) => name,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Down,
    Up,
    Alpha,
}

/// How keys end. The longer come first.
const ENDS: [(&str, Role); 13] = [
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    // Attention processors of diffusers before 0.22: `attn1.processor.to_q_lora.down.weight`.
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// Parts of keys of other kinds of adapters.
const OTHERS: [(&str, &str); 17] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_mid", "LoCon with a Tucker decomposition"),
    ("lora_embedding_", "LoRA of an embedding"),
    ("oft_", "OFT"),
    ("boft_", "BOFT"),
    (".a1.weight", "GLoRA"),
    (".on_input", "IA3"),
    (".diff", "a full difference"),
    (".w_norm", "LyCORIS norms"),
    (".b_norm", "LyCORIS norms"),
    ("bundle_emb", "a textual inversion"),
    ("lora_B.bias", "LoRA with biases"),
    ("lora_up.bias", "LoRA with biases"),
    ("lora.up.bias", "LoRA with biases"),
];

/// Starts of keys of models that are not supported.
const OTHER_BASES: [(&str, &str); 6] = [
    ("lora_te2_", "Stable Diffusion XL (a second text encoder)"),
    ("text_encoder_2.", "Stable Diffusion XL (a second text encoder)"),
    ("text_encoder_3.", "Stable Diffusion 3"),
    ("transformer.", "a diffusion transformer, such as Stable Diffusion 3 or Flux"),
    ("lora_transformer_", "a diffusion transformer, such as Stable Diffusion 3 or Flux"),
    ("lora_prior_", "Stable Cascade"),
];

/// Another kind of adapter that `key` belongs to.
pub(super) fn other_kind(key: &str) -> Option<&'static str> {
    OTHERS.iter().find(|(part, _)| key.contains(part)).map(|(_, name)| *name)
}

/// Another base model that `key` belongs to.
pub(super) fn other_base(key: &str) -> Option<&'static str> {
    OTHER_BASES.iter().find(|(start, _)| key.starts_with(start)).map(|(_, name)| *name)
}

/// `None`: not a key of a LoRA file.
pub(super) fn parse(key: &str) -> Option<Key> {
    let (layer, role, end) = ENDS.iter().find_map(|(end, role)| Some((key.strip_suffix(end)?, *role, *end)))?;
    for (start, model) in [("lora_unet_", Model::Unet), ("lora_te1_", Model::Text), ("lora_te_", Model::Text)] {
        if let Some(name) = layer.strip_prefix(start) {
            return Some(Key { model: Some(model), layer: Name::Underscored(name.to_owned()), role });
        }
    }
    let layer = layer.strip_prefix("base_model.model.").unwrap_or(layer);
    let prefixes = [("unet.", Model::Unet), ("text_encoder.", Model::Text)];
    let said = prefixes.iter().find_map(|(start, model)| Some((layer.strip_prefix(start)?, *model)));
    let (name, model) = said.map_or((layer, None), |(name, model)| (name, Some(model)));
    let mut name = name.to_owned();
    if end.starts_with('_') {
        let (attention, projection) = name.rsplit_once(".processor.")?;
        let projection = if projection == "to_out" { "to_out.0" } else { projection };
        name = format!("{attention}.{projection}");
    }
    Some(Key { model, layer: Name::Dotted(name), role })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_convention_names_the_same_layer() {
        let layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0";
        let dotted = |model| Some(Key { model, layer: Name::Dotted(layer.to_owned()), role: Role::Up });
        assert_eq!(parse(&format!("unet.{layer}.lora.up.weight")), dotted(Some(Model::Unet)));
        assert_eq!(parse(&format!("unet.{layer}.lora_B.weight")), dotted(Some(Model::Unet)));
        assert_eq!(parse(&format!("base_model.model.{layer}.lora_B.weight")), dotted(None));
        let processor = layer.replace(".to_out.0", ".processor.to_out_lora.up.weight");
        assert_eq!(parse(&format!("unet.{processor}")), dotted(Some(Model::Unet)));
        let kohya = parse(&format!("lora_unet_{}.alpha", layer.replace('.', "_"))).unwrap();
        assert_eq!(kohya.layer, Name::Underscored(layer.replace('.', "_")));
        assert_eq!(kohya.role, Role::Alpha);
        assert_eq!(parse("unet.conv_in.weight"), None);
        assert_eq!(other_kind("lora_unet_conv_in.hada_w1_a"), Some("LoHa"));
    }
}
