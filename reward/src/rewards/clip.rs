//! Scores that are the cosine of image and prompt under a frozen CLIP: the Social Reward, CLIPScore, PickScore, HPSv2. CLIPScore
//! (Hessel et al., 2021, <https://arxiv.org/abs/2104.08718>) is without its factor 2.5 and its cut at 0.

use std::{cell::RefCell, collections::HashMap};

use tch::{Device, Kind, Tensor};

use super::{
    name::RewardName,
    reward::{Reward, check},
};
use crate::{
    Error, Result,
    clip::{
        config::{Activation, ClipConfig},
        model::{Clip, Depth, unit},
        preprocess_tensor::preprocess,
        preprocessing::Preprocessing,
        tokenizer::Tokenizer,
    },
    weights::{Checkpoint, OpenOptions},
};

/// Differences in how rewards on a CLIP read pictures and prompts.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// Preprocessing of pictures, if another than the checkpoint's.
    pub(super) preprocessing: Option<Preprocessing>,
    /// True if prompts are cleaned as OpenAI's tokenizer does (ftfy, HTML entities).
    pub(super) mends_prompts: bool,
    /// Factor on the cosine.
    pub(super) scale: f64,
}

impl Default for Reading {
    fn default() -> Self {
        Self { preprocessing: None, mends_prompts: true, scale: 1.0 }
    }
}

/// The cosine of image and prompt under a frozen CLIP.
pub struct ClipReward {
    name: RewardName,
    clip: Clip,
    reading: Reading,
    /// The unit embedding `[1, E]` of every prompt scored so far.
    texts: RefCell<HashMap<String, Tensor>>,
}

impl ClipReward {
    /// The plain cosine of what [`Checkpoint::open`] opens: `social-reward` or `clip-score`. `kind`: of weights and
    /// activations; preprocessing, norms and the cosine are fp32.
    ///
    /// # Errors
    /// The weights cannot be read, or the tokenizer does not fit.
    pub fn cosine(name: RewardName, path: &str, device: Device, kind: Kind) -> Result<Self> {
        Self::of(name, &Checkpoint::open(path, OpenOptions::default())?, device, kind)
    }

    /// As [`Self::cosine`], of an open checkpoint.
    ///
    /// # Errors
    /// As [`Self::cosine`].
    pub(super) fn of(name: RewardName, checkpoint: &Checkpoint, device: Device, kind: Kind) -> Result<Self> {
        checkpoint.check_vocabulary()?;
        Self::new(name, checkpoint, Reading::default(), device, kind)
    }

    /// The cosine of an open checkpoint, which reads pictures and prompts as `reading` says.
    ///
    /// # Errors
    /// The weights cannot be read.
    pub(super) fn new(
        name: RewardName,
        checkpoint: &Checkpoint,
        reading: Reading,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let mut clip = Clip::load(checkpoint, device, kind, |_| false)?;
        if let Some(preprocessing) = reading.preprocessing.clone() {
            clip.config.preprocessing = preprocessing;
        }
        Ok(Self { name, clip, reading, texts: RefCell::default() })
    }

    /// The architecture, and how it sees pictures.
    pub fn config(&self) -> &ClipConfig {
        &self.clip.config
    }

    /// Unit image embeddings, in the graph of `pixels`.
    ///
    /// `pixels`: `[B, 3, H, W]`, in 0..=1, on the reward's device; gives `[B, E]`, fp32.
    pub fn image_embeddings(&self, pixels: &Tensor) -> Tensor {
        let ClipConfig { image_size, preprocessing, .. } = &self.clip.config;
        let seen = preprocess(pixels, *image_size as i64, preprocessing);
        unit(&self.clip.image_suffix(&seen, Depth::Input))
    }

    /// Unit prompt embeddings, `[B, E]`, fp32, without a graph.
    fn text_embeddings(&self, prompts: &[&str]) -> Tensor {
        let mut known = self.texts.borrow_mut();
        let embedding = |prompt: &&str| match known.get(*prompt) {
            Some(embedding) => embedding.shallow_clone(),
            None => {
                let embedding = self.text_embedding(prompt);
                known.insert((*prompt).to_owned(), embedding.shallow_clone());
                embedding
            }
        };
        Tensor::cat(&prompts.iter().map(embedding).collect::<Vec<_>>(), 0)
    }

    /// A prompt alone, so that its bits do not depend on which others were new with it: a resumed run has the same.
    fn text_embedding(&self, prompt: &str) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let (tokenizer, context_length) = (Tokenizer::openai(), self.clip.config.context_length);
        let tokens = match self.reading.mends_prompts {
            true => tokenizer.encode(prompt, context_length),
            false => tokenizer.encode_unmended(prompt, context_length),
        };
        let (ids, ends) = self.clip.token_ids(&[&tokens]);
        unit(&self.clip.text_suffix(&ids, &ends, Depth::Input))
    }
}

impl Reward for ClipReward {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn score(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Tensor> {
        check(pixels, prompts)?;
        let products = self.image_embeddings(pixels) * self.text_embeddings(prompts);
        Ok(products.sum_dim_intlist([-1_i64].as_slice(), false, Kind::Float) * self.reading.scale)
    }

    fn differentiable(&self) -> bool {
        true
    }

    fn set_checkpointing(&mut self, on: bool) {
        self.clip.checkpointing = on;
    }

    fn embeddings(&self, pixels: &Tensor) -> Option<Tensor> {
        let pixels = pixels.to_device(self.clip.device);
        Some(tch::no_grad(|| self.image_embeddings(&pixels)))
    }

    fn weights(&self) -> Vec<Tensor> {
        // Not those of the text tower: prompts are embedded once.
        let visual = self.clip.parameters.iter().filter(|(name, _)| name.starts_with("visual."));
        visual.map(|(_, tensor)| tensor.shallow_clone()).collect()
    }
}

/// Opens a CLIP with exact GELU for a metric that is a ViT-H/14; what the shapes of a state dict leave open is known here.
///
/// # Errors
/// As [`Checkpoint::open`], and a model that is known to be another.
pub(crate) fn open_vit_h(name: RewardName, path: &str, published: &str) -> Result<Checkpoint> {
    // The widths of OpenAI's ViTs, all with QuickGELU.
    const OPENAI_WIDTHS: [usize; 2] = [768, 1024];
    let mut checkpoint = Checkpoint::open(path, OpenOptions::default())?;
    let config = &mut checkpoint.config;
    let is_state_dict = std::path::Path::new(path).is_file();
    let is_other = match is_state_dict {
        true => OPENAI_WIDTHS.contains(&config.vision.width),
        false => config.vision.activation != Activation::Gelu && !path.starts_with("random:"),
    };
    if is_other {
        return Err(Error::data(format!("{path}: {} is a ViT-H/14 with exact GELU, this is {config}", name.as_str()))
            .hint(format!("{} reads {published}", name.as_str())));
    }
    if is_state_dict {
        checkpoint.warnings.clear();
        (config.vision.activation, config.text.activation) = (Activation::Gelu, Activation::Gelu);
    }
    Ok(checkpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPTS: [&str; 3] = ["a cat", "a much longer prompt about a dog", "a cat"];

    fn reward(kind: Kind) -> ClipReward {
        ClipReward::cosine(RewardName::SocialReward, "random:tiny", Device::Cpu, kind).unwrap()
    }

    /// `[3, 3, 48, 40]`, each picture a wave of its own.
    fn pictures() -> Tensor {
        let waves = Tensor::arange(3 * 3 * 48 * 40, (Kind::Float, Device::Cpu)) * 0.013;
        (waves.sin() * 0.5 + 0.5).view([3, 3, 48, 40])
    }

    #[test]
    fn a_score_is_the_cosine_and_depends_on_its_own_row_only() {
        let reward = reward(Kind::Float);
        let scores = reward.score(&pictures(), &PROMPTS).unwrap();
        assert_eq!((scores.size(), scores.kind(), scores.requires_grad()), (vec![3], Kind::Float, false));
        assert_eq!(reward.texts.borrow().len(), 2);
        for (row, prompt) in (0..).zip(PROMPTS) {
            let alone = reward.score(&pictures().narrow(0, row, 1), &[prompt]).unwrap();
            assert!((alone.double_value(&[0]) - scores.double_value(&[row])).abs() < 1e-5, "{prompt}");
        }
        let embeddings = reward.image_embeddings(&pictures());
        let lengths = embeddings.norm_scalaropt_dim(2.0, [-1], false);
        assert!(lengths.allclose(&lengths.ones_like(), 0.0, 1e-6, false));
    }

    #[test]
    fn a_cached_prompt_has_the_bits_of_a_fresh_one() {
        let (first, second) = (reward(Kind::Float), reward(Kind::Float));
        let together = first.text_embeddings(&PROMPTS);
        assert_eq!(together.narrow(0, 1, 1), second.text_embeddings(&[PROMPTS[1]]));
        assert_eq!(first.text_embeddings(&[PROMPTS[1]]), second.text_embeddings(&[PROMPTS[1]]));
    }

    #[test]
    fn gradients_reach_the_pixels_with_and_without_checkpointing() {
        let mut reward = reward(Kind::Float);
        let mut gradient = |checkpointing| {
            reward.set_checkpointing(checkpointing);
            let pixels = pictures().set_requires_grad(true);
            reward.score(&pixels, &PROMPTS).unwrap().sum(Kind::Float).backward();
            pixels.grad()
        };
        let plain = gradient(false);
        for row in 0..3 {
            assert!(plain.get(row).abs().max().double_value(&[]) > 1e-6, "picture {row}");
        }
        assert!(gradient(true).allclose(&plain, 1e-5, 1e-9, false));
        assert!(reward.clip.parameters.values().all(|parameter| !parameter.grad().defined()));
    }

    /// Along the gradient `g` the score rises by |g|² a step.
    #[test]
    fn the_gradient_is_the_slope() {
        let reward = reward(Kind::Float);
        let pixels = (pictures() * 0.5 + 0.25).set_requires_grad(true);
        let score = |pixels: &Tensor| reward.score(pixels, &PROMPTS).unwrap().sum(Kind::Float);
        let before = score(&pixels);
        before.backward();
        let gradient = pixels.grad();
        let slope = gradient.square().sum(Kind::Float).double_value(&[]);
        let step = 1e-2 / slope.sqrt();
        let after = score(&(pixels.detach() + &gradient * step));
        let rise = (after.double_value(&[]) - before.double_value(&[])) / step;
        assert!((rise / slope - 1.0).abs() < 0.05, "{rise} against {slope}");
    }

    #[test]
    fn bf16_is_near_fp32_and_scores_in_fp32() {
        let scores = reward(Kind::BFloat16).score(&pictures(), &PROMPTS).unwrap();
        assert_eq!(scores.kind(), Kind::Float);
        assert!(scores.allclose(&reward(Kind::Float).score(&pictures(), &PROMPTS).unwrap(), 0.0, 2e-2, false));
    }

    #[test]
    fn shapes_are_checked_at_the_door() {
        let reward = reward(Kind::Float);
        let refusal = |pixels: &Tensor, prompts: &[&str]| reward.score(pixels, prompts).unwrap_err().to_string();
        assert_eq!(
            refusal(&pictures(), &["a cat"]),
            "pixels to score for 1 prompt(s): want [1, 3, H, W], got [3, 3, 48, 40]"
        );
        refusal(&pictures().narrow(1, 0, 1), &PROMPTS);
        refusal(&pictures().get(0), &["a cat"]);
        refusal(&pictures().narrow(0, 0, 0), &[]);
    }
}
