//! ImageReward v1.0 (Xu et al., 2023, <https://arxiv.org/abs/2304.05977>): BLIP's ViT-L/16 and a BERT that reads the prompt
//! and, by cross-attention, the picture; an affine head on its first token.
//!
//! Reference: `ImageReward/ImageReward.py` of <https://github.com/THUDM/ImageReward> at
//! 0f5fa3e286577d412aea3e1b02c7fadcdb4d3996. Score: (head − mean) / deviation, with the two constants of that file.
//! Deviation: padding is cut at the longest prompt, which is exact, as padding is masked.

mod bert;
mod vit;
mod word_piece;

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

pub use self::word_piece::WordPiece;
use self::{
    bert::{Bert, BertConfig},
    vit::{Vit, VitConfig},
};
use super::{
    affine::Affine,
    name::RewardName,
    reward::{Reward, check},
};
use crate::{
    Error, Result,
    clip::{block::Parameters, preprocess_tensor::preprocess, preprocessing::Preprocessing},
    weights::wrappers,
};

/// Tokens of a prompt at most, `[CLS]` and `[SEP]` included.
const MAX_LENGTH: usize = 35;
const MEAN: f64 = 0.167_173_628_300_524_26;
const DEVIATION: f64 = 1.033_339_496_605_407_2;
const VISION: &str = "blip.visual_encoder.";

/// A loaded ImageReward.
pub struct ImageReward {
    vit: Vit,
    bert: Bert,
    head: Affine,
    words: WordPiece,
    parameters: Parameters,
    checkpointing: bool,
    device: Device,
}

impl ImageReward {
    /// Loads a folder with `ImageReward.pt` and `med_config.json` of `THUDM/ImageReward`, and `vocab.txt` of
    /// `bert-base-uncased`. `kind`: of weights and activations; preprocessing, norms and the head are fp32.
    ///
    /// # Errors
    /// A file is missing or of another model.
    pub fn load(folder: &str, device: Device, kind: Kind) -> Result<Self> {
        let [weights, config, vocabulary] = &files(folder)?;
        let (described, config) = (config.display(), BertConfig::read(config)?);
        let words = WordPiece::read(vocabulary)?;
        // BLIP adds [DEC] and [ENC]. A vocabulary that was cut would make unknown words of known ones.
        if ![words.len(), words.len() + 2].contains(&config.vocab_size) {
            return Err(Error::data(format!(
                "{}: {} pieces, but med_config.json has a vocab_size of {}",
                vocabulary.display(),
                words.len(),
                config.vocab_size
            ))
            .hint("want vocab.txt of bert-base-uncased, which has 30522; [DEC] and [ENC] make 30524"));
        }
        let file = wrappers::open(&weights.to_string_lossy(), &[&format!("{VISION}patch_embed.proj.weight")])?;
        let hint = "want ImageReward.pt of THUDM/ImageReward and the med_config.json beside it";
        let vision = VitConfig::from_shapes(&file, VISION).map_err(|error| error.hint(hint))?;
        let mut wanted = vision.parameters(VISION);
        wanted.extend(config.parameters(bert::PREFIX, vision.width));
        let head = Affine::parameters(&file, "mlp.", config.hidden_size);
        file.check(&[wanted.as_slice(), &head].concat(), is_unused)
            .map_err(|error| Error::data(format!("{error} (as {described} describes it)")).hint(hint))?;
        crate::threads::settle(vision.largest_product());
        let mut parameters = Parameters::new();
        for (name, shape) in wanted {
            let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
            let tensor = Tensor::from_slice(&file.read(&name)?).reshape(shape).to_device(device).to_kind(kind);
            parameters.insert(name, tensor);
        }
        Ok(Self {
            vit: Vit::new(&parameters, VISION, vision),
            bert: Bert::new(&parameters, &config),
            head: Affine::read(&file, "mlp.", config.hidden_size, device)?,
            words,
            parameters,
            checkpointing: false,
            device,
        })
    }

    /// Token ids padded with `[PAD]` to the longest prompt, `[B, T]`, and where a token stands, bool of the same shape.
    fn tokens(&self, prompts: &[&str]) -> (Tensor, Tensor) {
        let rows: Vec<Vec<i64>> = prompts.iter().map(|prompt| self.words.encode(prompt, MAX_LENGTH)).collect();
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let padded: Vec<i64> =
            rows.iter().flat_map(|row| row.iter().copied().chain([0; MAX_LENGTH]).take(longest)).collect();
        let lengths: Vec<i64> = rows.iter().map(|row| row.len() as i64).collect();
        let shape = [rows.len() as i64, longest as i64];
        let positions = Tensor::arange(longest as i64, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        let stands = positions.lt_tensor(&Tensor::from_slice(&lengths).unsqueeze(1));
        (Tensor::from_slice(&padded).view(shape).to_device(self.device), stands.to_device(self.device))
    }
}

/// `ImageReward.pt`, `med_config.json` and `vocab.txt` of a folder.
///
/// # Errors
/// One is missing.
pub(crate) fn files(folder: &str) -> Result<[PathBuf; 3]> {
    let files = ["ImageReward.pt", "med_config.json", "vocab.txt"].map(|name| Path::new(folder).join(name));
    match files.iter().find(|file| !file.is_file()) {
        None => Ok(files),
        Some(missing) => Err(Error::data(format!("{}: no such file", missing.display())).hint(
            "image-reward is a folder with ImageReward.pt and med_config.json of THUDM/ImageReward, and vocab.txt of bert-base-uncased",
        )),
    }
}

/// What the published file holds beside the reward's own parameters: position tables, and BLIP's contrastive projections.
fn is_unused(name: &str) -> bool {
    name.ends_with("position_ids") || name.starts_with("blip.vision_proj.") || name.starts_with("blip.text_proj.")
}

impl Reward for ImageReward {
    fn name(&self) -> &str {
        RewardName::ImageReward.as_str()
    }

    fn score(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Tensor> {
        check(pixels, prompts)?;
        // BLIP's processor has OpenAI's numbers.
        let seen = preprocess(pixels, self.vit.config.image_size as i64, &Preprocessing::default());
        let picture = self.vit.forward(&seen, self.checkpointing);
        let (ids, stands) = self.tokens(prompts);
        let first = self.bert.forward(&ids, &stands, &picture).select(1, 0);
        Ok((self.head.forward(&first.to_kind(Kind::Float)) - MEAN) / DEVIATION)
    }

    fn differentiable(&self) -> bool {
        true
    }

    /// Recomputes the picture's blocks: there are twenty tokens of a picture to one of a prompt.
    fn set_checkpointing(&mut self, on: bool) {
        self.checkpointing = on;
    }

    fn weights(&self) -> Vec<Tensor> {
        let visual = self.parameters.iter().filter(|(name, _)| name.starts_with(VISION));
        visual.map(|(_, tensor)| tensor.shallow_clone()).collect()
    }
}
