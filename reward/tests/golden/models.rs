//! The models of `tests/golden/clip` and what they were given.

use reward::{
    clip::tokenizer::Tokens,
    weights::{Checkpoint, OpenOptions},
};

use crate::fixture::{Fixture, golden_text};

/// File or folder, name of its expectations, and the model that gives the architecture where shapes cannot.
const MODELS: [(&str, &str, Option<&str>); 13] = [
    ("hf_quick_gelu", "hf_quick_gelu", None),
    ("hf_gelu", "hf_gelu", None),
    ("hf_old_eos", "hf_old_eos", None),
    ("openai.pt", "openai", None),
    ("openai.safetensors", "openai", None),
    ("openai_fp16_wrapped.pt", "openai_fp16_wrapped", None),
    ("openai_small_lightning.ckpt", "openai_small", None),
    ("openai_small_legacy.pt", "openai_small", None),
    ("openai_small_torchscript.pt", "openai_small", None),
    ("open_clip_gelu.pt", "open_clip_gelu", Some("open_clip_config")),
    ("open_clip_quick_gelu.pt", "open_clip_quick_gelu", None),
    ("open_clip_custom_text.pt", "open_clip_custom_text", Some("open_clip_config")),
    // The architecture may be named where it need not be.
    ("hf_gelu/model.safetensors", "hf_gelu", Some("hf_gelu")),
];

/// A model and what its own library computes.
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) expected: Fixture,
}

/// All of them.
pub(crate) fn models() -> impl Iterator<Item = Model> {
    MODELS.into_iter().map(|(name, expected, architecture)| Model {
        name,
        checkpoint: open(name, architecture).unwrap_or_else(|error| panic!("{error}: {error:?}")),
        expected: Fixture::open(&format!("clip/{expected}.expected.safetensors")),
    })
}

/// Opens a model of `tests/golden/clip`.
pub(crate) fn open(name: &str, architecture: Option<&str>) -> reward::Result<Checkpoint> {
    let path = |name: &str| golden_text(&format!("clip/{name}"));
    Checkpoint::open_base(Some(&path(name)), architecture.map(path).as_deref(), OpenOptions::default())
}

/// The error of a model that must not open.
#[track_caller]
pub(crate) fn refusal(result: reward::Result<Checkpoint>) -> reward::Error {
    match result {
        Ok(checkpoint) => panic!("opened: {}", checkpoint.config),
        Err(error) => error,
    }
}

impl Model {
    /// The prompts as the fixture has them, padded to the context length.
    pub(crate) fn padded_prompts(&self) -> Vec<Tokens> {
        let context = self.expected.shape("input_ids")[1];
        let ids: Vec<u32> = self.expected.integers("input_ids").into_iter().map(|id| id as u32).collect();
        ids.chunks(context).map(|ids| Tokens { ids: ids.to_vec(), truncated: false }).collect()
    }

    /// The prompts as our tokenizer would give them: cut after the end token.
    pub(crate) fn prompts(&self) -> Vec<Tokens> {
        let mut prompts = self.padded_prompts();
        for prompt in &mut prompts {
            prompt.ids.truncate(1 + self.checkpoint.config.end_of_text.position(&prompt.ids));
        }
        prompts
    }
}
