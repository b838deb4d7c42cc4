//! The reference for the text encoder. The crate diffusers-rs knows the encoders of Stable Diffusion 1.5 and 2.1. Others are held
//! against the same formula written down plainly, with nothing fused (Radford et al., 2021; transformers' `modeling_clip.py`).

use diffusers::transformers::clip::{ClipTextTransformer, Config};
use tch::{Kind, Tensor};

use super::reference::{built, caught, merged};
use crate::{
    Result,
    config::{Activation, TextConfig},
    weights::Parameters,
};

/// Hidden states after the final norm `[B, T, width]` in fp32 for `ids` `[B, T]`, and who computed them.
///
/// # Errors
/// diffusers-rs panics, or its keys or shapes are others than ours.
pub(super) fn hidden_states(
    config: &TextConfig,
    parameters: &Parameters,
    ids: &Tensor,
) -> Result<(Tensor, &'static str)> {
    match known(config) {
        Some(theirs) => {
            let model = built(
                "the text encoder",
                parameters,
                |key| our_key(parameters, key),
                |path| ClipTextTransformer::new(path, &theirs),
            )?;
            let states = caught("the text encoder", || tch::no_grad(|| ids.apply(&model.model)))?;
            Ok((states, "diffusers-rs"))
        }
        None => Ok((tch::no_grad(|| plain(config, parameters, ids)), "the plain formula")),
    }
}

/// The config of diffusers-rs for this architecture, if it has one.
fn known(config: &TextConfig) -> Option<Config> {
    let published = [("sd15", Config::v1_5 as fn() -> Config), ("sd21-base", Config::v2_1)];
    let same = |name: &str| {
        TextConfig::preset(name).is_some_and(|preset| {
            let TextConfig { projection_dim, bos_token_id, eos_token_id, pad_token_id, .. } = *config;
            TextConfig { projection_dim, bos_token_id, eos_token_id, pad_token_id, ..preset } == *config
        })
    };
    published.iter().find(|(name, _)| same(name)).map(|(_, theirs)| theirs())
}

/// Our key for a key of theirs: with or without the prefix.
fn our_key(parameters: &Parameters, theirs: &str) -> String {
    let bare = theirs.strip_prefix("text_model.").unwrap_or(theirs);
    if parameters.tensors.contains_key(theirs) { theirs.to_owned() } else { bare.to_owned() }
}

fn plain(config: &TextConfig, parameters: &Parameters, ids: &Tensor) -> Tensor {
    let TextConfig { hidden_size: width, num_attention_heads: heads, layer_norm_eps: eps, .. } = *config;
    let weight = |name: &str| {
        let key = our_key(parameters, &format!("text_model.{name}"));
        // The models were built from these very keys.
        merged(parameters, &key).unwrap_or_else(|| Tensor::zeros([0], (Kind::Float, parameters.device)))
    };
    let linear =
        |x: &Tensor, name: &str| x.matmul(&weight(&format!("{name}.weight")).tr()) + weight(&format!("{name}.bias"));
    let norm = |x: &Tensor, name: &str| {
        let centred = x - x.mean_dim(-1, true, Kind::Float);
        let variance = centred.square().mean_dim(-1, true, Kind::Float);
        centred / (variance + eps).sqrt() * weight(&format!("{name}.weight")) + weight(&format!("{name}.bias"))
    };
    let (batch, length) = (ids.size()[0], ids.size()[1]);
    let positions = weight("embeddings.position_embedding.weight").narrow(0, 0, length);
    let tokens = weight("embeddings.token_embedding.weight").index_select(0, &ids.reshape(-1));
    let mut x = tokens.view([batch, length, width]) + positions;
    let ahead = Tensor::full([length, length], f64::NEG_INFINITY, (Kind::Float, x.device())).triu(1);
    let split = |x: Tensor| x.view([batch, length, heads, -1]).transpose(1, 2);
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("encoder.layers.{layer}.{part}");
        let input = norm(&x, &name("layer_norm1"));
        let [queries, keys, values] =
            ["q_proj", "k_proj", "v_proj"].map(|part| split(linear(&input, &name(&format!("self_attn.{part}")))));
        let scores = queries.matmul(&keys.transpose(-1, -2)) / (queries.size()[3] as f64).sqrt() + &ahead;
        let mixed = scores.softmax(-1, Kind::Float).matmul(&values).transpose(1, 2).reshape([batch, length, width]);
        x += linear(&mixed, &name("self_attn.out_proj"));
        let inner = linear(&norm(&x, &name("layer_norm2")), &name("mlp.fc1"));
        let inner = match config.hidden_act {
            Activation::QuickGelu => &inner * (&inner * 1.702).sigmoid(),
            Activation::Gelu => &inner * (&inner / 2_f64.sqrt()).erf().g_add_scalar(1.0) * 0.5,
        };
        x += linear(&inner, &name("mlp.fc2"));
    }
    norm(&x, "final_layer_norm")
}
