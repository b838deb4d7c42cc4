//! PickScore v1 (Kirstain et al., 2023, <https://arxiv.org/abs/2305.01569>): a CLIP ViT-H/14 trained on people's choices.
//!
//! Score: exp(logit_scale) × cosine, about 20 to 23, as its model card computes it. Others report the bare cosine
//! (DiffusionDPO) or a 26th of it (Flow-GRPO): compare within one convention only. Prompts are tokenized as its processor
//! does, which mends no encoding and unescapes nothing.

use tch::{Device, Kind};

use super::{
    clip::{ClipReward, Reading, open_vit_h},
    name::RewardName,
};
use crate::Result;

/// Loads `yuvalkirstain/PickScore_v1`: a Hugging Face CLIP folder. `kind`: of weights and activations.
///
/// # Errors
/// The weights cannot be read, or are of another model.
pub fn pick_score(path: &str, device: Device, kind: Kind) -> Result<ClipReward> {
    let checkpoint = open_vit_h(RewardName::PickScore, path, "the folder of yuvalkirstain/PickScore_v1")?;
    checkpoint.check_vocabulary()?;
    // Not from the parameters, which bf16 may have rounded.
    let scale = checkpoint.read("logit_scale", &[])?.iter().map(|scale| f64::from(*scale).exp()).sum();
    let reading = Reading { scale, mends_prompts: false, ..Reading::default() };
    ClipReward::new(RewardName::PickScore, &checkpoint, reading, device, kind)
}
