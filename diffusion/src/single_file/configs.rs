//! The architecture of a single-file checkpoint, from the shapes of its tensors; what shapes cannot tell (heads, activation) is
//! that of the published model.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Family, keys::number};

type Shapes = BTreeMap<String, Vec<usize>>;
/// The key that is missing.
type Found<T> = Result<T, String>;

/// Different numbers after `prefix`.
fn count(shapes: &Shapes, prefix: &str) -> usize {
    let numbers = shapes.keys().filter_map(|key| number(key.strip_prefix(prefix)?).map(|(number, _)| number));
    numbers.collect::<BTreeSet<_>>().len()
}

/// Residual blocks per resolution, of LDM's keys: the first downsampler stands behind them.
pub(super) fn unet_layers(shapes: &Shapes) -> usize {
    let blocks = count(shapes, "model.diffusion_model.input_blocks.");
    let first = (1..blocks)
        .find(|position| shapes.contains_key(&format!("model.diffusion_model.input_blocks.{position}.0.op.weight")));
    first.unwrap_or(blocks).saturating_sub(1).max(1)
}

/// Resolutions of the VAE, of LDM's keys.
pub(super) fn vae_blocks(shapes: &Shapes) -> usize {
    count(shapes, "first_stage_model.decoder.up.")
}

/// Layers of open_clip's text tower, the last included.
pub(super) fn open_clip_layers(shapes: &Shapes) -> usize {
    count(shapes, "cond_stage_model.model.transformer.resblocks.")
}

fn size(shapes: &Shapes, key: &str, dimension: usize) -> Found<usize> {
    shapes.get(key).and_then(|shape| shape.get(dimension)).copied().ok_or_else(|| key.to_owned())
}

/// Width of the prompt's hidden states, by diffusers' keys.
pub(super) fn cross_attention_width(shapes: &Shapes) -> Option<usize> {
    let (_, shape) = shapes.iter().find(|(key, _)| key.ends_with(".attn2.to_k.weight"))?;
    shape.get(1).copied()
}

pub(super) fn unet(shapes: &Shapes, family: Family) -> Found<Value> {
    let blocks = count(shapes, "down_blocks.");
    let layers = count(shapes, "down_blocks.0.resnets.");
    let channels: Vec<usize> = (0..blocks)
        .map(|block| size(shapes, &format!("down_blocks.{block}.resnets.0.conv1.weight"), 0))
        .collect::<Found<_>>()?;
    let attends = |side: &str, block: usize| count(shapes, &format!("{side}_blocks.{block}.attentions.")) > 0;
    let types = |side: &str, name: &str| -> Vec<String> {
        (0..blocks)
            .map(|block| format!("{}{name}Block2D", if attends(side, block) { "CrossAttn" } else { "" }))
            .collect()
    };
    let projection = "mid_block.attentions.0.proj_in.weight";
    let linear = shapes.get(projection).ok_or_else(|| projection.to_owned())?.len() == 2;
    // The *number* of heads, whatever the name says: 8 in 1.x, channels / 64 in 2.x.
    let heads = match family {
        Family::V1 => json!(8),
        Family::V2 => json!(channels.iter().map(|width| width.div_euclid(64).max(1)).collect::<Vec<_>>()),
    };
    Ok(json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": channels,
        "center_input_sample": false,
        "cross_attention_dim": cross_attention_width(shapes).ok_or("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")?,
        "down_block_types": types("down", "Down"),
        "downsample_padding": 1,
        "dual_cross_attention": false,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": size(shapes, "conv_in.weight", 1)?,
        "layers_per_block": layers,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": size(shapes, "conv_out.weight", 0)?,
        "sample_size": 64,
        "up_block_types": types("up", "Up"),
        "use_linear_projection": linear,
    }))
}

pub(super) fn vae(shapes: &Shapes) -> Found<Value> {
    let blocks = count(shapes, "encoder.down_blocks.");
    let channels: Vec<usize> = (0..blocks)
        .map(|block| size(shapes, &format!("encoder.down_blocks.{block}.resnets.0.conv1.weight"), 0))
        .collect::<Found<_>>()?;
    Ok(json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; blocks],
        "in_channels": size(shapes, "encoder.conv_in.weight", 1)?,
        "latent_channels": size(shapes, "post_quant_conv.weight", 0)?,
        "layers_per_block": count(shapes, "encoder.down_blocks.0.resnets."),
        "norm_num_groups": 32,
        "out_channels": size(shapes, "decoder.conv_out.weight", 0)?,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "up_block_types": vec!["UpDecoderBlock2D"; blocks],
    }))
}

pub(super) fn text(shapes: &Shapes, family: Family) -> Found<Value> {
    let embedding = "text_model.embeddings.token_embedding.weight";
    let (vocabulary, width) = (size(shapes, embedding, 0)?, size(shapes, embedding, 1)?);
    Ok(json!({
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": match family { Family::V1 => "quick_gelu", Family::V2 => "gelu" },
        "hidden_size": width,
        "intermediate_size": size(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 0)?,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": size(shapes, "text_model.embeddings.position_embedding.weight", 0)?,
        "num_attention_heads": width.div_euclid(64).max(1),
        "num_hidden_layers": count(shapes, "text_model.encoder.layers."),
        "pad_token_id": match family { Family::V1 => 1, Family::V2 => 0 },
        "projection_dim": match family { Family::V1 => 768, Family::V2 => 512 },
        "vocab_size": vocabulary,
    }))
}
