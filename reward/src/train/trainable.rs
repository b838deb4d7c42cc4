//! What trains: the original's six modes as lists of parameters, and how deep the frozen prefix of each tower is.

use serde::{Deserialize, Serialize};

use crate::clip::{config::ClipConfig, model::Depth};

/// The original's training modes (`--training-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainingMode {
    /// Every parameter.
    All,
    /// The image tower and its projection.
    Visual,
    /// The last 3 visual blocks and `ln_post`.
    VisualUpperLayers,
    /// Those, the last 2 text blocks, `ln_final` and `text_projection`: the paper's.
    VisualUpperLayersTextualUpperLayers,
    /// The last 4 visual and 3 text blocks, and the same heads.
    VisualUpperLayersTextualUpperLayersDeeper,
    /// The last visual block and `ln_post`.
    VisualLastLayer,
}

impl TrainingMode {
    /// Every mode with the seed's name for it.
    pub const NAMES: [(&str, Self); 6] = [
        ("all", Self::All),
        ("visual", Self::Visual),
        ("visual_upper_layers", Self::VisualUpperLayers),
        ("visual_upper_layers_textual_upper_layers", Self::VisualUpperLayersTextualUpperLayers),
        ("visual_upper_layers_textual_upper_layers_deeper", Self::VisualUpperLayersTextualUpperLayersDeeper),
        ("visual_last_layer", Self::VisualLastLayer),
    ];

    /// AdamW in the textual modes, Adam in the others, as the original.
    pub fn uses_adamw(self) -> bool {
        matches!(self, Self::VisualUpperLayersTextualUpperLayers | Self::VisualUpperLayersTextualUpperLayersDeeper)
    }

    /// Number of last blocks that train in the image and in the text tower; `None`: not this mode's way of choosing.
    fn upper_blocks(self) -> Option<(usize, usize)> {
        match self {
            Self::All | Self::Visual => None,
            Self::VisualUpperLayers => Some((3, 0)),
            Self::VisualUpperLayersTextualUpperLayers => Some((3, 2)),
            Self::VisualUpperLayersTextualUpperLayersDeeper => Some((4, 3)),
            Self::VisualLastLayer => Some((1, 0)),
        }
    }
}

/// A mode applied to an architecture.
#[derive(Debug, Clone, Copy)]
pub struct Trainable {
    mode: TrainingMode,
    first_visual: usize,
    first_textual: usize,
    /// What of the image tower is frozen.
    pub image_depth: Depth,
    /// What of the text tower is frozen.
    pub text_depth: Depth,
}

impl Trainable {
    /// Towers with fewer blocks than the mode trains have all of them trained.
    pub fn new(mode: TrainingMode, config: &ClipConfig) -> Self {
        let (visual, textual) = mode.upper_blocks().unwrap_or_default();
        let first_visual = config.vision.layers.saturating_sub(visual);
        let first_textual = config.text.layers.saturating_sub(textual);
        let (image_depth, text_depth) = match mode {
            TrainingMode::All => (Depth::Input, Depth::Input),
            TrainingMode::Visual => (Depth::Input, Depth::Whole),
            _ if textual == 0 => (Depth::Blocks(first_visual), Depth::Whole),
            _ => (Depth::Blocks(first_visual), Depth::Blocks(first_textual)),
        };
        Self { mode, first_visual, first_textual, image_depth, text_depth }
    }

    /// Whether the parameter with this OpenAI key trains.
    pub fn trains(&self, name: &str) -> bool {
        let block = |prefix: &str| -> Option<usize> {
            name.strip_prefix(prefix)?.strip_prefix("transformer.resblocks.")?.split('.').next()?.parse().ok()
        };
        match self.mode {
            TrainingMode::All => true,
            TrainingMode::Visual => name.starts_with("visual."),
            _ => match (block("visual."), block("")) {
                (Some(block), _) => block >= self.first_visual,
                (None, Some(block)) => block >= self.first_textual,
                (None, None) => {
                    name.starts_with("visual.ln_post.")
                        || (self.mode.uses_adamw() && (name.starts_with("ln_final.") || name == "text_projection"))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_six_modes_select_the_originals_parameters() {
        let config = ClipConfig::preset("vit-l-14").unwrap();
        let trained = |mode| {
            let trainable = Trainable::new(mode, &config);
            let names = config.parameters().into_iter().map(|(name, _)| name);
            names.filter(|name| trainable.trains(name)).collect::<Vec<_>>()
        };
        // 12 tensors a block.
        assert_eq!(trained(TrainingMode::VisualLastLayer).len(), 12 + 2);
        assert_eq!(trained(TrainingMode::VisualUpperLayers).len(), 3 * 12 + 2);
        let paper = trained(TrainingMode::VisualUpperLayersTextualUpperLayers);
        assert_eq!(paper.len(), 3 * 12 + 2 + 2 * 12 + 3);
        for name in
            ["visual.transformer.resblocks.21.ln_1.weight", "transformer.resblocks.10.ln_1.weight", "text_projection"]
        {
            assert!(paper.iter().any(|trained| trained == name), "{name}");
        }
        for name in
            ["visual.proj", "visual.transformer.resblocks.20.ln_1.weight", "transformer.resblocks.9.ln_1.weight"]
        {
            assert!(!paper.iter().any(|trained| trained == name), "{name}");
        }
        assert_eq!(trained(TrainingMode::VisualUpperLayersTextualUpperLayersDeeper).len(), 4 * 12 + 2 + 3 * 12 + 3);
        assert_eq!(trained(TrainingMode::Visual).len(), 24 * 12 + 8);
        assert_eq!(trained(TrainingMode::All).len(), config.parameters().len());
    }

    #[test]
    fn a_shallow_tower_trains_whole_blocks_only() {
        let config = ClipConfig::preset("tiny").unwrap();
        let trainable = Trainable::new(TrainingMode::VisualUpperLayersTextualUpperLayersDeeper, &config);
        assert_eq!((trainable.image_depth, trainable.text_depth), (Depth::Blocks(0), Depth::Blocks(0)));
        assert!(!trainable.trains("visual.conv1.weight") && !trainable.trains("logit_scale"));
    }
}
