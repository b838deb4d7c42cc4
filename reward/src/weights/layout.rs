//! The one table of CLIP key names. OpenAI's keys are the canonical ones (a Social Reward checkpoint is such a state
//! dict); Hugging Face and open_clip names are derived, for reading and for writing.

/// The library whose key names a file uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `visual.transformer.resblocks.0.attn.in_proj_weight`; open_clip's plain CLIP shares it.
    OpenAi,
    /// open_clip's `CustomTextCLIP`: the text tower's keys carry the prefix `text.`.
    OpenClipCustomText,
    /// `vision_model.encoder.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
}

/// How a canonical tensor is stored in another layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Under this name as it is.
    Same(String),
    /// Under this name, transposed.
    Transposed(String),
    /// Split along the first dimension into these three (query, key, value).
    Split([String; 3]),
}

impl Stored {
    /// The names in the file.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Same(name) | Self::Transposed(name) => std::slice::from_ref(name),
            Self::Split(names) => names,
        }
    }
}

impl Layout {
    /// Finds out whose names these are.
    pub fn detect<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut found = Self::OpenAi;
        for name in names {
            if name.starts_with("vision_model.") || name.starts_with("text_model.") {
                return Self::HuggingFace;
            }
            if name == "text.token_embedding.weight" {
                found = Self::OpenClipCustomText;
            }
        }
        found
    }

    /// Where the tensor with OpenAI key `canonical` is stored.
    pub fn stored(self, canonical: &str) -> Stored {
        match self {
            Self::OpenAi => Stored::Same(canonical.to_owned()),
            Self::OpenClipCustomText if canonical.starts_with("visual.") || canonical == "logit_scale" => {
                Stored::Same(canonical.to_owned())
            }
            Self::OpenClipCustomText => Stored::Same(format!("text.{canonical}")),
            Self::HuggingFace => hugging_face(canonical),
        }
    }
}

fn hugging_face(canonical: &str) -> Stored {
    let (tower, rest) = match canonical.strip_prefix("visual.") {
        Some(rest) => ("vision_model", rest),
        None => ("text_model", canonical),
    };
    if let Some((block, name)) = rest.strip_prefix("transformer.resblocks.").and_then(|rest| rest.split_once('.')) {
        let layer = format!("{tower}.encoder.layers.{block}");
        if let Some(kind) = name.strip_prefix("attn.in_proj_") {
            return Stored::Split(["q", "k", "v"].map(|part| format!("{layer}.self_attn.{part}_proj.{kind}")));
        }
        let renamed = [
            ("ln_1.", "layer_norm1."),
            ("ln_2.", "layer_norm2."),
            ("attn.out_proj.", "self_attn.out_proj."),
            ("mlp.c_fc.", "mlp.fc1."),
            ("mlp.c_proj.", "mlp.fc2."),
        ];
        let name = renamed.iter().find_map(|(ours, theirs)| Some(format!("{theirs}{}", name.strip_prefix(ours)?)));
        return Stored::Same(format!("{layer}.{}", name.unwrap_or_default()));
    }
    match rest {
        "logit_scale" => return Stored::Same(canonical.to_owned()),
        "proj" => return Stored::Transposed("visual_projection.weight".to_owned()),
        "text_projection" => return Stored::Transposed("text_projection.weight".to_owned()),
        _ => {}
    }
    let name = match rest {
        "class_embedding" => "embeddings.class_embedding".to_owned(),
        "positional_embedding" => "embeddings.position_embedding.weight".to_owned(),
        "conv1.weight" => "embeddings.patch_embedding.weight".to_owned(),
        "token_embedding.weight" => "embeddings.token_embedding.weight".to_owned(),
        // `pre_layrnorm` is transformers' own spelling.
        _ => rest
            .replace("ln_pre.", "pre_layrnorm.")
            .replace("ln_post.", "post_layernorm.")
            .replace("ln_final.", "final_layer_norm."),
    };
    Stored::Same(format!("{tower}.{name}"))
}

/// Entries of published files that are no parameters: position tables, masks, TorchScript constants.
pub fn is_buffer(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    matches!(last, "position_ids" | "attn_mask" | "input_resolution" | "context_length" | "vocab_size")
}
