//! Single files that are no whole checkpoint of Stable Diffusion 1.x or 2.x: what they are instead, by their keys.

use std::{collections::BTreeMap, path::Path};

use super::{CLIP_TEXT, OPEN_CLIP_TEXT, UNET, VAE};
use crate::{Error, Result};

/// Starts of keys that give another architecture away.
const OTHERS: [(&str, &str); 14] = [
    ("conditioner.", "Stable Diffusion XL"),
    ("add_embedding.", "a UNet of Stable Diffusion XL"),
    ("label_emb.", "a UNet of Stable Diffusion XL"),
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("model.diffusion_model.double_blocks.", "Flux"),
    ("double_blocks.", "Flux"),
    ("depth_model.", "Stable Diffusion 2 depth"),
    ("low_scale_model.", "the Stable Diffusion upscaler"),
    ("embedder.", "Stable unCLIP"),
    ("noise_augmentor.", "Stable unCLIP"),
    ("edm_", "a model of the EDM schedule (CosXL, Playground)"),
    ("transformer_blocks.", "a diffusion transformer (Stable Diffusion 3, Flux or PixArt)"),
    ("model.diffusion_model.label_emb.", "Stable Diffusion XL or another class-conditioned UNet"),
];

/// Parts of keys that tell what else a file is, with the way out.
const KINDS: [(&[&str], &str, &str); 4] = [
    (
        &[".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", "_lora.down.", "_lora.up.", ".hada_w1", ".lokr_w"],
        "a LoRA",
        "it goes to --lora, beside the --model that it is for",
    ),
    (
        &["emb_params", "string_to_param", "clip_l"],
        "an embedding of textual inversion",
        "in diffusers: `pipe.load_textual_inversion(FILE)`, then `pipe.save_pretrained(FOLDER)`, and give that folder",
    ),
    (
        &["control_model.", "controlnet_cond_embedding.", "input_hint_block."],
        "a ControlNet",
        "--model wants Stable Diffusion itself",
    ),
    (&["visual.transformer.", "vision_model."], "a CLIP", "it goes to --reward or --clip"),
];

/// Refuses what is no whole checkpoint.
///
/// # Errors
/// Another architecture or kind of file (named), one model of three, a model that is missing.
pub(super) fn refuse(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) -> Result<()> {
    let has = |prefix: &str| shapes.keys().any(|key| key.starts_with(prefix));
    let failed = |what: String| Error::data(format!("{}: {what}", path.display()));
    let all = [UNET, VAE, CLIP_TEXT, OPEN_CLIP_TEXT];
    let whole = all.iter().any(|prefix| has(prefix));
    if let Some((_, name)) = OTHERS.iter().find(|(prefix, _)| has(prefix)) {
        return Err(failed(format!("{name} is not supported, want Stable Diffusion 1.x or 2.x")));
    }
    // One vector a token, of the width of a known text encoder, under the token's name.
    let vectors = |shape: &Vec<usize>| shape.len() <= 2 && shape.last().is_some_and(|last| [768, 1024].contains(last));
    let embedding = shapes.len() <= 2 && !shapes.is_empty() && shapes.values().all(vectors);
    for (index, (parts, what, hint)) in KINDS.iter().enumerate().filter(|_| !whole) {
        if shapes.keys().any(|key| parts.iter().any(|part| key.contains(part))) || (index == 1 && embedding) {
            return Err(failed(format!("{what}, want the whole checkpoint")).hint(*hint));
        }
    }
    let alone = [
        ("down_blocks.", "a UNet by itself, as in a diffusers folder"),
        ("encoder.down_blocks.", "a VAE by itself, as in a diffusers folder"),
        ("text_model.", "a text encoder by itself, as in a diffusers folder"),
        ("input_blocks.", "a UNet by itself"),
        ("encoder.down.", "a VAE by itself"),
    ];
    if let Some((_, what)) = alone.iter().find(|(prefix, _)| !whole && has(prefix)) {
        return Err(failed(format!("{what}, want the whole checkpoint")).hint(
            "give the folder that holds model_index.json, or put the file into its unet, vae or text_encoder folder",
        ));
    }
    let models = [("UNet", &[UNET][..]), ("VAE", &[VAE]), ("text encoder", &[CLIP_TEXT, OPEN_CLIP_TEXT])];
    let there = |prefixes: &[&str]| prefixes.iter().any(|prefix| has(prefix));
    if let Some((what, prefixes)) = models.iter().find(|(_, prefixes)| !there(prefixes)) {
        let found: Vec<&str> = models.iter().filter(|(_, prefixes)| there(prefixes)).map(|(what, _)| *what).collect();
        let found = if found.is_empty() { String::new() } else { format!(", only {}", found.join(" and ")) };
        return Err(failed(format!("no {what} in this file (no key starts with `{}`){found}", prefixes[0]))
            .hint("a single-file checkpoint holds UNet, VAE and text encoder"));
    }
    Ok(())
}
