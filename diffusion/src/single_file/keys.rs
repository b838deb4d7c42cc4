//! LDM's names (CompVis, Stability) in diffusers' and transformers' words, one key at a time.
//!
//! The facts are those of diffusers 0.42 `loaders/single_file_utils.py` and of the two model definitions.

use std::ops::Range;

/// UNet key without `model.diffusion_model.`; `layers` is the number of residual blocks per resolution. `None`: no such key in
/// Stable Diffusion 1.x or 2.x.
pub(crate) fn unet(key: &str, layers: usize) -> Option<String> {
    let renamed = [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
        ("middle_block.1.", "mid_block.attentions.0."),
    ];
    if let Some(name) = rename(key, &renamed) {
        return Some(name);
    }
    for (ldm, block) in [("middle_block.0.", "mid_block.resnets.0"), ("middle_block.2.", "mid_block.resnets.1")] {
        if let Some(rest) = key.strip_prefix(ldm) {
            return Some(format!("{block}.{}", residual(rest)?));
        }
    }
    let (side, rest) = key.split_once("_blocks.")?;
    let (position, rest) = number(rest)?;
    let (inner, rest) = number(rest)?;
    let per_block = layers + 1;
    let (direction, position) = match side {
        // Position 0 is the first convolution.
        "input" => ("down", position.checked_sub(1)?),
        "output" => ("up", position),
        _ => return None,
    };
    let (block, layer) = (position.div_euclid(per_block), position.rem_euclid(per_block));
    let block = format!("{direction}_blocks.{block}");
    if let Some(rest) = rest.strip_prefix("op.").filter(|_| side == "input" && inner == 0) {
        return Some(format!("{block}.downsamplers.0.conv.{rest}"));
    }
    if let Some(rest) = rest.strip_prefix("conv.").filter(|_| side == "output" && inner > 0) {
        return Some(format!("{block}.upsamplers.0.conv.{rest}"));
    }
    match inner {
        0 => Some(format!("{block}.resnets.{layer}.{}", residual(rest)?)),
        1 => Some(format!("{block}.attentions.{layer}.{rest}")),
        _ => None,
    }
}

/// A key within a residual block of the UNet.
fn residual(key: &str) -> Option<String> {
    rename(
        key,
        &[
            ("in_layers.0.", "norm1."),
            ("in_layers.2.", "conv1."),
            ("emb_layers.1.", "time_emb_proj."),
            ("out_layers.0.", "norm2."),
            ("out_layers.3.", "conv2."),
            ("skip_connection.", "conv_shortcut."),
        ],
    )
}

/// VAE key without `first_stage_model.`; `blocks` is the number of resolutions, which LDM's decoder counts from the image's.
pub(super) fn vae(key: &str, blocks: usize) -> Option<String> {
    if key.starts_with("quant_conv.") || key.starts_with("post_quant_conv.") {
        return Some(key.to_owned());
    }
    let (half, rest) = key.split_once('.').filter(|(half, _)| matches!(*half, "encoder" | "decoder"))?;
    let renamed = [
        ("conv_in.", "conv_in."),
        ("conv_out.", "conv_out."),
        ("norm_out.", "conv_norm_out."),
        ("mid.block_1.", "mid_block.resnets.0."),
        ("mid.block_2.", "mid_block.resnets.1."),
        ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
        ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
        ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
        ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
        ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
    ];
    if let Some(name) = rename(rest, &renamed) {
        return Some(format!("{half}.{}", name.replace(".nin_shortcut.", ".conv_shortcut.")));
    }
    let (direction, rest) = rest.split_once('.')?;
    let (position, rest) = number(rest)?;
    let block = match direction {
        "down" => position,
        "up" => blocks.checked_sub(position + 1)?,
        _ => return None,
    };
    let name = rename(
        rest,
        &[
            ("block.", "resnets."),
            ("downsample.conv.", "downsamplers.0.conv."),
            ("upsample.conv.", "upsamplers.0.conv."),
        ],
    )?;
    Some(format!("{half}.{direction}_blocks.{block}.{}", name.replace(".nin_shortcut.", ".conv_shortcut.")))
}

/// Where one of open_clip's text tensors goes: our key, and the rows of the stored tensor that it is.
pub(super) type Part = (String, Option<Range<usize>>);

/// open_clip text key without `cond_stage_model.model.`, of a tower `width` wide: one key of transformers' text model, or three
/// for the fused query, key and value.
pub(super) fn open_clip_text(key: &str, width: usize) -> Option<Vec<Part>> {
    let whole = |name: String| Some(vec![(name, None)]);
    match key {
        "positional_embedding" => return whole("text_model.embeddings.position_embedding.weight".to_owned()),
        "token_embedding.weight" => return whole("text_model.embeddings.token_embedding.weight".to_owned()),
        _ => {}
    }
    if let Some(rest) = key.strip_prefix("ln_final.") {
        return whole(format!("text_model.final_layer_norm.{rest}"));
    }
    let (layer, rest) = number(key.strip_prefix("transformer.resblocks.")?)?;
    let layer = format!("text_model.encoder.layers.{layer}");
    if let Some(kind) = rest.strip_prefix("attn.in_proj_") {
        let rows = |part: usize| Some(part * width..(part + 1) * width);
        let parts = ["q", "k", "v"].into_iter().enumerate();
        return Some(parts.map(|(part, name)| (format!("{layer}.self_attn.{name}_proj.{kind}"), rows(part))).collect());
    }
    let name = rename(
        rest,
        &[
            ("ln_1.", "layer_norm1."),
            ("ln_2.", "layer_norm2."),
            ("attn.out_proj.", "self_attn.out_proj."),
            ("mlp.c_fc.", "mlp.fc1."),
            ("mlp.c_proj.", "mlp.fc2."),
        ],
    )?;
    whole(format!("{layer}.{name}"))
}

fn rename(key: &str, table: &[(&str, &str)]) -> Option<String> {
    table.iter().find_map(|(ldm, ours)| Some(format!("{ours}{}", key.strip_prefix(ldm)?)))
}

/// `12.rest` as 12 and `rest`.
pub(super) fn number(key: &str) -> Option<(usize, &str)> {
    let (number, rest) = key.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_keys_have_their_known_names() {
        for (ldm, ours) in [
            ("input_blocks.3.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"),
            ("input_blocks.4.0.skip_connection.bias", "down_blocks.1.resnets.0.conv_shortcut.bias"),
            ("input_blocks.8.1.proj_in.weight", "down_blocks.2.attentions.1.proj_in.weight"),
            ("output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
            ("output_blocks.5.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
            ("output_blocks.11.0.emb_layers.1.weight", "up_blocks.3.resnets.2.time_emb_proj.weight"),
            ("middle_block.2.out_layers.3.bias", "mid_block.resnets.1.conv2.bias"),
        ] {
            assert_eq!(unet(ldm, 2).as_deref(), Some(ours));
        }
        assert_eq!(unet("label_emb.0.0.weight", 2), None);
        let decoder = vae("decoder.up.3.block.0.nin_shortcut.weight", 4);
        assert_eq!(decoder.as_deref(), Some("decoder.up_blocks.0.resnets.0.conv_shortcut.weight"));
        let fused = open_clip_text("transformer.resblocks.22.attn.in_proj_bias", 1024).unwrap();
        assert_eq!(fused[1], ("text_model.encoder.layers.22.self_attn.k_proj.bias".to_owned(), Some(1024..2048)));
    }
}
