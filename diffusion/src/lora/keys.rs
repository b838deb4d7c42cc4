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
    /// `attentions.0.proj_in`: diffusers, PEFT; `input_blocks.1.1.proj_in`: LDM.
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
    /// LyCORIS' factor on the update.
    Scalar,
}

/// How keys end, but for PEFT's.
const ENDS: [(&str, Role); 10] = [
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    // diffusers before 0.22: `attn1.processor.to_q_lora.down.weight`, `self_attn.to_q_lora.down.weight`.
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
    (".scalar", Role::Scalar),
];

/// How names begin that have underscores for dots.
const UNDERSCORED: [(&str, Option<Model>); 4] = [
    ("lora_unet_", Some(Model::Unet)),
    ("lora_te1_", Some(Model::Text)),
    ("lora_te_", Some(Model::Text)),
    ("lycoris_", None),
];

/// What stands in front of dotted names, one or more of them: PEFT's wrapper, diffusers' models, ComfyUI's, OneTrainer's, LDM's.
const PREFIXES: [(&str, Option<Model>); 11] = [
    ("base_model.model.", None),
    ("unet.", Some(Model::Unet)),
    ("diffusion_model.", Some(Model::Unet)),
    ("model.diffusion_model.", Some(Model::Unet)),
    ("text_encoder.", Some(Model::Text)),
    ("text_encoders.", Some(Model::Text)),
    ("clip_l.", Some(Model::Text)),
    ("clip_h.", Some(Model::Text)),
    ("cond_stage_model.", Some(Model::Text)),
    // Before the text model's name: ComfyUI's and LDM's.
    ("transformer.text_model.", Some(Model::Text)),
    ("transformer.encoder.layers.", Some(Model::Text)),
];

/// Where a trainer was when it saved the file.
const STRAY: [&str; 7] = ["step", "steps", "global_step", "epoch", "epochs", "iteration", "iterations"];

/// Whether `key` says nothing about an update.
pub(super) fn is_stray(key: &str) -> bool {
    STRAY.contains(&key)
}

/// `None`: not a key of a LoRA file.
pub(super) fn parse(key: &str) -> Option<Key> {
    let (layer, role, end) = split(key)?;
    for (start, model) in UNDERSCORED {
        if let Some(name) = layer.strip_prefix(start) {
            return Some(Key { model, layer: Name::Underscored(name.to_owned()), role });
        }
    }
    let (mut name, mut model) = (layer, None);
    while let Some((prefix, said)) = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)) {
        model = model.or(*said);
        match prefix.strip_prefix("transformer.") {
            // What follows is a part of the layer's name.
            Some(_) => name = &name["transformer.".len()..],
            None => name = &name[prefix.len()..],
        }
    }
    let name = if end.starts_with('_') { of_processor(name)? } else { name.to_owned() };
    Some(Key { model, layer: Name::Dotted(name), role })
}

/// A key as layer, role and the end that told it.
fn split(key: &str) -> Option<(&str, Role, &str)> {
    if let Some(found) = ENDS.iter().find_map(|(end, role)| Some((key.strip_suffix(end)?, *role, *end))) {
        return Some(found);
    }
    // PEFT's, with or without the name of the adapter: `lora_A.weight`, `lora_A.default.weight`.
    let stem = key.strip_suffix(".weight")?;
    [(".lora_A", Role::Down), (".lora_B", Role::Up)].into_iter().find_map(|(part, role)| {
        let (layer, adapter) = stem.rsplit_once(part)?;
        let named = adapter.strip_prefix('.').is_some_and(|name| !name.is_empty() && !name.contains('.'));
        (adapter.is_empty() || named).then_some((layer, role, part))
    })
}

/// The layer of an attention processor's `PLACE.to_q_lora`.
fn of_processor(name: &str) -> Option<String> {
    if let Some((attention, projection)) = name.rsplit_once(".processor.") {
        let projection = if projection == "to_out" { "to_out.0" } else { projection };
        return Some(format!("{attention}.{projection}"));
    }
    let (attention, projection) = name.rsplit_once(".to_")?;
    Some(format!("{attention}.{projection}_proj"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAYER: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0";

    #[test]
    fn every_convention_names_the_same_layer() {
        let dotted = |model| Some(Key { model, layer: Name::Dotted(LAYER.to_owned()), role: Role::Up });
        for key in [
            format!("unet.{LAYER}.lora.up.weight"),
            format!("unet.{LAYER}.lora_B.weight"),
            format!("unet.{LAYER}.lora_B.default_0.weight"),
            format!("unet.base_model.model.{LAYER}.lora_B.weight"),
            format!("base_model.model.unet.{LAYER}.lora_B.my_style.weight"),
            format!("unet.{}", LAYER.replace(".to_out.0", ".processor.to_out_lora.up.weight")),
            format!("diffusion_model.{LAYER}.lora_up.weight"),
        ] {
            assert_eq!(parse(&key), dotted(Some(Model::Unet)), "{key}");
        }
        assert_eq!(parse(&format!("base_model.model.{LAYER}.lora_B.default.weight")), dotted(None));
        let kohya = parse(&format!("lora_unet_{}.alpha", LAYER.replace('.', "_"))).unwrap();
        assert_eq!(kohya.layer, Name::Underscored(LAYER.replace('.', "_")));
        assert_eq!(kohya.role, Role::Alpha);
        assert_eq!(parse("unet.conv_in.weight"), None);
        assert_eq!(parse("unet.conv_in.lora_A..weight"), None);
    }

    #[test]
    fn every_convention_names_the_same_layer_of_the_text_encoder() {
        let layer = "encoder.layers.0.self_attn.q_proj";
        for key in [
            format!("text_encoder.text_model.{layer}.lora_A.weight"),
            format!("text_encoder.{layer}.lora_linear_layer.down.weight"),
            format!("text_encoders.clip_l.transformer.text_model.{layer}.lora_down.weight"),
            format!("text_encoders.clip_h.transformer.text_model.{layer}.lora_down.weight"),
            format!("clip_l.{layer}.lora_down.weight"),
            format!("clip_l.transformer.text_model.{layer}.lora_down.weight"),
            format!("cond_stage_model.transformer.{layer}.lora_down.weight"),
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight".to_owned(),
        ] {
            let found = parse(&key).unwrap();
            assert_eq!((found.model, found.role), (Some(Model::Text), Role::Down), "{key}");
            let name = found.layer.as_str();
            assert_eq!(name.strip_prefix("text_model.").unwrap_or(name), layer, "{key}");
        }
    }

    proptest! {
        #[test]
        fn no_key_panics(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "unet", "text_encoder", "base_model", "model", "lora_unet_", "transformer", "lora_A", "lora_B", "lora", "_lora",
                    "up", "down", "weight", "alpha", "scalar", "processor", "to_q", "to_", "text_model", "encoder", "layers", "0", "",
                    "ä", "雨", "_", ".", "input_blocks", "99999999999999999999", "diff", "hada_w1_a", "bias",
                ]),
                0..10,
            ),
            anything in ".{0,40}",
            dots in any::<bool>(),
        ) {
            let key = parts.join(if dots { "." } else { "" });
            for key in [key.clone(), format!("{key}{anything}"), format!("{anything}.lora_A.weight"), anything.clone()] {
                parse(&key);
                crate::lora::kinds::of_key(&key, None);
            }
        }
    }
}
