//! What a file or a key is in place of plain LoRA: whole models, textual inversions, other kinds of adapters, other bases.

use std::{collections::BTreeMap, path::Path};

use super::keys::{self, Role};
use crate::{Error, Result};

/// Parts of keys, between dots, of other kinds of adapters.
const PARTS: [(&str, &str); 22] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("lora_mid", "LoCon with a Tucker decomposition"),
    ("lora_embedding_A", "LoRA of an embedding"),
    ("lora_embedding_B", "LoRA of an embedding"),
    ("a1", "GLoRA"),
    ("a2", "GLoRA"),
    ("b1", "GLoRA"),
    ("b2", "GLoRA"),
    ("on_input", "IA3"),
    ("ia3_l", "IA3"),
    ("diff", "a full difference of weights"),
    ("diff_b", "a difference of biases"),
    ("set_weight", "a replaced weight"),
    ("w_norm", "LyCORIS' training of norms"),
    ("b_norm", "LyCORIS' training of norms"),
    ("vera_lambda_b", "VeRA"),
    ("vera_lambda_d", "VeRA"),
    ("base_layer", "a model with adapters inside (PEFT's `base_layer`)"),
    ("reshape_weight", "a weight of another shape"),
    ("lora_diag", "KaSA"),
    ("lora_E", "AdaLoRA"),
];

/// Beginnings of such parts.
const STARTS: [(&str, &str); 5] =
    [("hada_", "LoHa"), ("lokr_", "LoKr"), ("oft_", "OFT"), ("boft_", "BOFT"), ("glora_", "GLoRA")];

/// Parts of keys of models that are not supported, with underscores for dots.
const BASES: [(&str, &str); 13] = [
    ("lora_te2_", "Stable Diffusion XL (a second text encoder)"),
    ("text_encoder_2_", "Stable Diffusion XL (a second text encoder)"),
    ("clip_g_", "Stable Diffusion XL (a second text encoder)"),
    ("add_embedding_", "Stable Diffusion XL"),
    ("label_emb_", "Stable Diffusion XL"),
    ("lora_te3_", "Stable Diffusion 3 or Flux (a T5 text encoder)"),
    ("text_encoder_3_", "Stable Diffusion 3"),
    ("t5xxl_", "Stable Diffusion 3 or Flux (a T5 text encoder)"),
    ("joint_blocks_", "Stable Diffusion 3"),
    ("double_blocks_", "Flux"),
    ("single_blocks_", "Flux"),
    ("lora_transformer_", "a diffusion transformer, such as Stable Diffusion 3 or Flux"),
    ("lora_prior_", "Stable Cascade"),
];

/// Refuses a key of another kind of adapter, or of another base.
///
/// `path`: the file, for the message.
pub(super) fn of_key(key: &str, path: Option<&Path>) -> Option<Error> {
    let refused = |what: &str| {
        let path = path.map_or(String::new(), |path| format!("{}: ", path.display()));
        Error::data(format!("{path}`{key}`: {what}"))
    };
    if key.split('.').next() == Some("bundle_emb") {
        return Some(
            refused("a textual inversion bundled with the LoRA is not supported, want plain LoRA")
                .hint("remove the tensors named `bundle_emb.…` from the file; their trigger words then mean nothing"),
        );
    }
    if is_numbered(key) {
        return Some(
            refused("matrices that have numbers in place of layer names (cloneofsimo's `lora`) are not supported")
                .hint("convert it to diffusers' or kohya's layout with the tool that made it"),
        );
    }
    if let Some(kind) = adapter(key) {
        let hint = match kind {
            _ if kind.contains("base_layer") => {
                "save the adapters alone: `model.save_pretrained` of PEFT, `save_lora_weights` of diffusers"
            }
            "a difference of biases" => "save it without them (ComfyUI's LoraSave: bias_diff off)",
            _ => "merge it into the model with the tool that made it, or train a plain LoRA",
        };
        return Some(refused(&format!("{kind} is not supported, want plain LoRA")).hint(hint));
    }
    let base = base(key)?;
    Some(refused(&format!("an adapter of {base}, want one of Stable Diffusion 1.x or 2.x")))
}

fn adapter(key: &str) -> Option<&'static str> {
    let name = |part: &str| {
        let whole = PARTS.iter().find(|(known, _)| part == *known);
        whole.or_else(|| STARTS.iter().find(|(start, _)| part.starts_with(start))).map(|(_, name)| *name)
    };
    let biased = key.ends_with(".bias") && [".lora_B.", ".lora_up.", ".lora.up."].iter().any(|part| key.contains(part));
    key.split('.').find_map(name).or(biased.then_some("LoRA with biases"))
}

fn base(key: &str) -> Option<&'static str> {
    let plain = key.replace('.', "_");
    if key.starts_with("transformer.") && !key.starts_with("transformer.text_model.") {
        return Some("a diffusion transformer, such as Stable Diffusion 3 or Flux");
    }
    let named = BASES.iter().find(|(part, _)| plain.contains(part)).map(|(_, name)| *name);
    // The transformers of 1.x and 2.x have one block.
    let block = || plain.split("_transformer_blocks_").nth(1)?.split('_').next()?.parse::<u32>().ok();
    named.or_else(|| block().is_some_and(|block| block > 0).then_some("Stable Diffusion XL"))
}

/// `unet:0:up`.
fn is_numbered(key: &str) -> bool {
    let parts: Vec<&str> = key.split(':').collect();
    matches!(parts[..], [_, number, "up" | "down" | "rank"] if number.parse::<u32>().is_ok())
}

/// Refuses a file that is something else as a whole, told by the names and shapes of its tensors.
///
/// # Errors
/// It is; the error says what.
pub(super) fn of_file(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) -> Result<()> {
    let says = |what: &str, hint: &str| {
        Err(Error::data(format!("{}: {what}, want a LoRA", path.display())).hint(hint.to_owned()))
    };
    let embedding = "train or find a LoRA; textual inversions are read from a model folder's tokenizer only";
    let is_embedding = |key: &String| {
        matches!(key.as_str(), "emb_params" | "clip_l" | "clip_g")
            || key.starts_with("string_to_param")
            || (key.starts_with('<') && key.ends_with('>'))
    };
    if !shapes.is_empty() && shapes.keys().all(is_embedding) {
        return says("a textual inversion (embeddings of words)", embedding);
    }
    let is_factor = |key: &String| {
        keys::parse(key).is_some_and(|key| matches!(key.role, Role::Down | Role::Up)) || adapter(key).is_some()
    };
    if shapes.keys().any(is_factor) {
        return Ok(());
    }
    let has = |starts: &[&str]| shapes.keys().any(|key| starts.iter().any(|start| key.starts_with(start)));
    if has(&["model.diffusion_model.", "cond_stage_model.", "first_stage_model.", "conditioner."]) {
        return says("a whole checkpoint (a model's own weights)", "give it as --model");
    }
    let folder = "give the folder that holds model_index.json as --model";
    if has(&["control_model.", "controlnet_cond_embedding."]) {
        return says("a ControlNet", "ControlNets are not supported");
    }
    if has(&["conv_in.", "down_blocks.", "input_blocks."]) {
        return says("the weights of a UNet", folder);
    }
    if has(&["encoder.conv_in.", "decoder.conv_in.", "encoder.down", "decoder.up"]) {
        return says("the weights of a VAE", folder);
    }
    if has(&["text_model.", "vision_model.", "visual."]) {
        return says("the weights of a CLIP or a text encoder", folder);
    }
    if let [(_, shape)] = &shapes.iter().collect::<Vec<_>>()[..] {
        // As diffusers saves them: the token is the key.
        if matches!(shape[..], [768 | 1024] | [1..=64, 768 | 1024]) {
            return says("a textual inversion (embeddings of words)", embedding);
        }
    }
    Ok(())
}

/// Refuses pickles that are no dictionary of tensors but known to users as LoRA or embedding, told by the bytes at their start.
///
/// # Errors
/// It is one; the error says what.
pub(super) fn of_pickle(path: &Path, start: &[u8]) -> Result<()> {
    let has = |part: &[u8]| start.windows(part.len()).any(|window| window == part);
    if !start.starts_with(b"PK\x03\x04") {
        return Ok(());
    }
    if has(b"string_to_param") || has(b"emb_params") {
        return Err(Error::data(format!("{}: a textual inversion (embeddings of words), want a LoRA", path.display())));
    }
    // Protocol 2, then an empty list: matrices without names.
    if has(b"\x80\x02]") {
        return Err(Error::data(format!(
            "{}: a list of matrices without layer names (cloneofsimo's `lora`), want a LoRA of diffusers, PEFT or kohya",
            path.display()
        ))
        .hint("convert it to safetensors with the tool that made it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_adapters_and_bases_are_told_by_a_key() {
        for (key, part) in [
            ("lora_unet_conv_in.hada_w1_a", "LoHa"),
            ("lora_unet_conv_in.lokr_w1", "LoKr"),
            ("lora_unet_conv_in.diff", "full difference"),
            ("diffusion_model.input_blocks.1.0.in_layers.2.diff_b", "biases"),
            ("lora_unet_down_blocks_0_resnets_0_norm1.w_norm", "LyCORIS' training of norms"),
            ("lora_unet_mid.on_input", "IA3"),
            ("unet.conv_in.lora_magnitude_vector", "DoRA"),
            ("bundle_emb.fox.string_to_param", "bundled"),
            ("unet:0:up", "numbers in place of layer names"),
            ("unet.mid_block.to_q.base_layer.weight", "adapters inside"),
            ("unet.conv_in.lora_B.bias", "biases"),
            ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "Stable Diffusion XL"),
            ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight", "Stable Diffusion XL"),
            ("unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.lora_A.weight", "Stable Diffusion XL"),
            ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "diffusion transformer"),
            ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "Flux"),
        ] {
            let error = of_key(key, Some(Path::new("x.safetensors"))).expect(key).to_string();
            assert!(error.starts_with("x.safetensors: `") && error.contains(part), "{error}");
        }
        for key in [
            "model.diffusion_model.input_blocks.0.0.weight",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_up.weight",
            "unet.conv_in.lora_B.weight",
        ] {
            assert!(of_key(key, None).is_none(), "{key}");
        }
    }

    #[test]
    fn whole_models_and_embeddings_are_told_by_their_tensors() {
        for (tensors, part) in [
            (&[("model.diffusion_model.input_blocks.0.0.weight", &[16, 4, 3, 3][..])][..], "a whole checkpoint"),
            (&[("conv_in.weight", &[16, 4, 3, 3]), ("down_blocks.0.x.bias", &[16])], "UNet"),
            (&[("encoder.conv_in.weight", &[16, 3, 3, 3])], "VAE"),
            (&[("text_model.final_layer_norm.bias", &[16])], "text encoder"),
            (&[("emb_params", &[2, 32])], "textual inversion"),
            (&[("<cat-toy>", &[768])], "textual inversion"),
            (&[("midjourney", &[1, 768])], "textual inversion"),
            (&[("clip_l", &[2, 768]), ("clip_g", &[2, 1280])], "textual inversion"),
            (&[("control_model.input_blocks.0.0.weight", &[16, 4, 3, 3])], "ControlNet"),
        ] {
            let shapes = tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
            let error = of_file(Path::new("x.safetensors"), &shapes).unwrap_err().to_string();
            assert!(error.starts_with("x.safetensors: ") && error.contains(part), "{error}");
        }
        let lora = [("unet.conv_in.lora_A.weight".to_owned(), vec![4, 4, 3, 3])];
        of_file(Path::new("x"), &lora.into()).unwrap();
        of_file(Path::new("x"), &BTreeMap::new()).unwrap();
    }
}
