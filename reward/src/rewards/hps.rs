//! Human Preference Score v2 and v2.1 (Wu et al., 2023, <https://arxiv.org/abs/2306.09341>): open_clip's ViT-H/14 tuned on
//! people's choices. The two are one architecture with different weights, told apart by their names only.
//!
//! Score: cosine (`hpsv2/img_score.py` of hpsv2 1.2.0; its tables give it ×100). Pictures are letterboxed, not cropped
//! ([`Resize::Letterbox`]). Deviations: fp32 where the original runs under `autocast`; the resize
//! is antialiased, as torchvision's is from 0.17 on.

use std::path::Path;

use tch::{Device, Kind};

use super::{
    clip::{ClipReward, Reading, open_vit_h},
    name::RewardName,
};
use crate::{
    Error, Result,
    clip::preprocessing::{Preprocessing, Resize},
};

/// Loads `HPS_v2_compressed.pt` or `HPS_v2.1_compressed.pt` of `xswu/HPSv2`, as `name` says: an open_clip state dict under
/// the key `state_dict`. `kind`: of weights and activations.
///
/// # Errors
/// The weights cannot be read, or are of another model or version.
pub fn hps(name: RewardName, path: &str, device: Device, kind: Kind) -> Result<ClipReward> {
    const PUBLISHED: [(RewardName, &str); 2] =
        [(RewardName::HpsV2, "HPS_v2_compressed.pt"), (RewardName::HpsV21, "HPS_v2.1_compressed.pt")];
    let [own, other] = if name == RewardName::HpsV2 { PUBLISHED } else { [PUBLISHED[1], PUBLISHED[0]] };
    if Path::new(path).ends_with(other.1) {
        return Err(Error::data(format!("{path}: the weights of {}, not of {}", other.0.as_str(), name.as_str()))
            .hint(format!("say {}={path}", other.0.as_str())));
    }
    let checkpoint = open_vit_h(name, path, &format!("{} of xswu/HPSv2", own.1))?;
    checkpoint.check_vocabulary()?;
    let letterboxed = Preprocessing { resize: Resize::Letterbox, ..Preprocessing::default() };
    let reading = Reading { preprocessing: Some(letterboxed), ..Reading::default() };
    ClipReward::new(name, &checkpoint, reading, device, kind)
}
