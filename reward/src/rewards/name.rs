//! Names of the rewards, and what is known of each without loading it.

use crate::closed_set;

closed_set! {
    /// The rewards that can be loaded, which are the metrics with weights.
    pub enum RewardName: "reward" {
        /// The cosine of a CLIP trained on what people remix.
        SocialReward = "social-reward",
        /// The cosine of a CLIP.
        ClipScore = "clip-score",
        /// LAION's aesthetic predictor v2.
        Aesthetic = "aesthetic",
        /// PickScore v1.
        PickScore = "pick-score",
        /// Human Preference Score v2.
        HpsV2 = "hps-v2",
        /// Human Preference Score v2.1.
        HpsV21 = "hps-v2.1",
        /// ImageReward v1.0.
        ImageReward = "image-reward",
    }
}

/// What a score's number is, printed beside it: numbers of one model under two conventions cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    /// The cosine of unit embeddings, −1 to 1; not ×100, not ×2.5.
    Cosine,
    /// The cosine times the model's own temperature.
    ScaledCosine,
    /// A mean opinion.
    Rating,
    /// A score of mean 0 and deviation 1 over the pictures that ImageReward was trained on.
    Standardised,
}

impl Convention {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::ScaledCosine => "exp(logit_scale) × cosine",
            Self::Rating => "rating, about 1 to 10",
            Self::Standardised => "(head − 0.1672) / 1.0333",
        }
    }
}

impl RewardName {
    /// What its number is.
    pub fn convention(self) -> Convention {
        match self {
            Self::SocialReward | Self::ClipScore | Self::HpsV2 | Self::HpsV21 => Convention::Cosine,
            Self::PickScore => Convention::ScaledCosine,
            Self::Aesthetic => Convention::Rating,
            Self::ImageReward => Convention::Standardised,
        }
    }

    /// Whether it stands on a CLIP that is not in its file.
    pub fn needs_clip(self) -> bool {
        self == Self::Aesthetic
    }

    /// Whether its CLIP may have either activation: that of a published reward is known.
    pub fn takes_activation(self) -> bool {
        matches!(self, Self::SocialReward | Self::ClipScore | Self::Aesthetic)
    }

    /// Whether it is a Human Preference Score, of either version.
    pub fn is_hps(self) -> bool {
        matches!(self, Self::HpsV2 | Self::HpsV21)
    }
}
