//! diffusers-rs 0.3.1 with our weights: its models are built over a `VarStore`, whose variables are then filled from ours
//! by key. It computes in fp32. It knows Stable Diffusion's own layouts only and panics on others: its panics become errors.

use diffusers::models::{
    unet_2d::{BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig},
    vae::{AutoEncoderKL, AutoEncoderKLConfig},
};
use reward::native::guarded;
use tch::{
    Kind, Tensor,
    nn::{Path, VarStore},
};

use crate::{
    Error, Result,
    config::{UnetConfig, VaeConfig},
    weights::Parameters,
};

/// A model of diffusers-rs and its variables, under its key names.
pub struct Reference<M> {
    /// The model.
    pub model: M,
    /// The model's variables, which are trainable.
    pub variables: VarStore,
}

/// Runs diffusers-rs (or libtorch, under it), which panics where it fails.
///
/// # Errors
/// The panic, with what was being done.
pub fn caught<T>(what: &str, run: impl FnOnce() -> T) -> Result<T> {
    guarded(run).map_err(|failure| Error::data(format!("diffusers-rs cannot run {what}: {failure}")))
}

/// The UNet of diffusers-rs with the weights of ours, adapters merged.
///
/// # Errors
/// It knows no such architecture: it panics, or its keys or shapes are others than ours.
pub fn unet(config: &UnetConfig, parameters: &Parameters) -> Result<Reference<UNet2DConditionModel>> {
    if !config.up_attention.iter().rev().eq(&config.down_attention) {
        return Err(Error::data("diffusers-rs has no UNet whose ways down and up differ in their transformers"));
    }
    if config.norm_num_groups != 32 {
        let groups = config.norm_num_groups;
        return Err(Error::data(format!(
            "diffusers-rs knows 32 groups in a UNet's residual blocks, this one has {groups}"
        )));
    }
    let levels = config.block_out_channels.iter().zip(&config.down_attention).zip(&config.heads);
    let blocks = levels.map(|((&out_channels, &use_cross_attn), &heads)| {
        // What it calls the dimension of a head is, as in the published configs, how many heads there are.
        BlockConfig { out_channels, use_cross_attn, attention_head_dim: heads }
    });
    let theirs = UNet2DConditionModelConfig {
        center_input_sample: false,
        flip_sin_to_cos: config.flip_sin_to_cos,
        freq_shift: config.freq_shift,
        blocks: blocks.collect(),
        layers_per_block: config.layers_per_block,
        downsample_padding: 1,
        mid_block_scale_factor: 1.0,
        norm_num_groups: config.norm_num_groups,
        norm_eps: config.norm_eps,
        cross_attention_dim: config.cross_attention_dim,
        sliced_attention_size: None,
        use_linear_projection: config.use_linear_projection,
    };
    let channels = config.channels;
    built("the UNet", parameters, str::to_owned, |path| UNet2DConditionModel::new(path, channels, channels, theirs))
}

/// The VAE of diffusers-rs with the weights of ours.
///
/// # Errors
/// As [`unet`].
pub fn vae(config: &VaeConfig, parameters: &Parameters) -> Result<Reference<AutoEncoderKL>> {
    let theirs = AutoEncoderKLConfig {
        block_out_channels: config.block_out_channels.clone(),
        layers_per_block: config.layers_per_block,
        latent_channels: config.latent_channels,
        norm_num_groups: config.norm_num_groups,
    };
    built("the VAE", parameters, vae_key, |path| AutoEncoderKL::new(path, 3, 3, theirs))
}

/// Our key for a key of theirs: the attention of the VAE had other names when diffusers-rs was written.
fn vae_key(theirs: &str) -> String {
    if !theirs.contains(".attentions.") {
        return theirs.to_owned();
    }
    [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")]
        .iter()
        .fold(theirs.to_owned(), |key, (old, new)| key.replace(&format!(".{old}."), &format!(".{new}.")))
}

/// Builds a model and fills its variables from our parameters.
pub(super) fn built<M>(
    what: &str,
    parameters: &Parameters,
    our_key: impl Fn(&str) -> String,
    build: impl FnOnce(Path) -> M,
) -> Result<Reference<M>> {
    let variables = VarStore::new(parameters.device);
    let model = caught(what, || build(variables.root()))?;
    let theirs = variables.variables();
    if theirs.len() != parameters.tensors.len() {
        let (theirs, ours) = (theirs.len(), parameters.tensors.len());
        return Err(Error::data(format!("{what} of diffusers-rs has {theirs} tensors, ours {ours}")));
    }
    for (key, mut variable) in theirs {
        let key = our_key(&key);
        let value = merged(parameters, &key)
            .ok_or_else(|| Error::data(format!("{what} of diffusers-rs has a tensor `{key}`, which ours has not")))?;
        let shape = variable.size();
        caught(&format!("{what}: `{key}`"), || {
            tch::no_grad(|| variable.copy_(&value.reshape(shape)));
        })?;
    }
    Ok(Reference { model, variables })
}

/// The weight under `key` in fp32, with what its layer's adapter adds: `W + scale · up · down`.
pub(super) fn merged(parameters: &Parameters, key: &str) -> Option<Tensor> {
    let weight = parameters.tensors.get(key)?.detach().to_kind(Kind::Float);
    let Some(adapter) = key.strip_suffix(".weight").and_then(|layer| parameters.adapted.get(layer)) else {
        return Some(weight);
    };
    let flat = |tensor: &Tensor| tensor.detach().to_kind(Kind::Float).flatten(1, -1);
    let update = flat(&adapter.up).matmul(&flat(&adapter.down)) * adapter.scale;
    Some(&weight + update.view_as(&weight))
}

/// A latent `sample()` of diffusers-rs' encoder for the noise that the global generator gives after `seed`, and that noise.
///
/// # Errors
/// It panics.
pub fn vae_sample(reference: &AutoEncoderKL, pixels: &Tensor, seed: i64) -> Result<(Tensor, Tensor)> {
    let sample = caught("the VAE's encoder", || {
        let distribution = reference.encode(pixels);
        tch::manual_seed(seed);
        distribution.sample()
    })?;
    // Laid out as the mean there, which is half of a tensor: the generator's order depends on it.
    let mean = Tensor::cat(&[&sample, &sample], 1).chunk(2, 1).swap_remove(0);
    tch::manual_seed(seed);
    let noise = mean.randn_like();
    Ok((sample, noise))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_vae_are_todays() {
        assert_eq!(vae_key("encoder.mid_block.attentions.0.key.bias"), "encoder.mid_block.attentions.0.to_k.bias");
        let out = "decoder.mid_block.attentions.0.to_out.0.weight";
        assert_eq!(vae_key("decoder.mid_block.attentions.0.proj_attn.weight"), out);
        assert_eq!(vae_key("decoder.conv_in.weight"), "decoder.conv_in.weight");
    }

    #[test]
    fn a_panic_is_an_error_of_one_line() {
        let error = caught("the UNet", || panic!("called `unwrap`\non nothing")).unwrap_err();
        assert_eq!(error.to_string(), "diffusers-rs cannot run the UNet: called `unwrap`");
    }
}
