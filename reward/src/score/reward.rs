//! What fine-tuning maximises: a score of pixels in memory, with a gradient where there is one.

use std::{cell::RefCell, collections::HashMap};

use tch::{Device, Kind, Tensor};

use super::spec::RewardName;
use crate::{
    Error, Result,
    clip::{
        in_graph::preprocess,
        model::{Clip, Depth, unit},
        tokenizer::Tokenizer,
    },
    weights::{Checkpoint, OpenOptions},
};

/// What fine-tuning maximises and evaluation reports.
pub trait Reward {
    /// Its name in settings, files and reports.
    fn name(&self) -> &str;

    /// Scores pictures for prompts, one prompt a picture; higher is better.
    ///
    /// `pixels`: `[B, 3, H, W]`, fp32 in 0..=1, on the reward's device; gives `[B]`, fp32, as the model has it, neither
    /// weighted nor standardised.
    ///
    /// # Errors
    /// Another shape, or another number of prompts.
    ///
    /// # Panics
    /// Where libtorch does, for example out of memory.
    fn score(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Tensor>;

    /// Whether gradients reach `pixels` through [`Self::score`].
    fn differentiable(&self) -> bool;

    /// Whether activations are recomputed in the backward pass instead of kept. A reward that keeps none ignores it.
    fn set_checkpointing(&mut self, _on: bool) {}

    /// Unit embeddings of pictures, `[B, E]`, by which they can be told apart; nothing where the reward has none.
    fn embeddings(&self, _pixels: &Tensor) -> Option<Tensor> {
        None
    }

    /// Handles on the weights by which [`Self::score`] sees pictures.
    fn weights(&self) -> Vec<Tensor> {
        Vec::new()
    }
}

/// The Social Reward: the cosine of image and prompt under a frozen CLIP.
pub struct SocialReward {
    clip: Clip,
    /// The unit embedding `[1, E]` of every prompt scored so far.
    texts: RefCell<HashMap<String, Tensor>>,
}

impl SocialReward {
    /// Loads what [`Checkpoint::open`] opens. `kind`: of weights and activations; preprocessing, norms and the cosine are
    /// fp32.
    ///
    /// # Errors
    /// The weights cannot be read, or the tokenizer does not fit.
    pub fn load(path: &str, device: Device, kind: Kind) -> Result<Self> {
        let checkpoint = Checkpoint::open(path, OpenOptions::default())?;
        checkpoint.check_vocabulary()?;
        Ok(Self::new(Clip::load(&checkpoint, device, kind, |_| false)?))
    }

    /// Of a CLIP that is loaded already, with OpenAI's vocabulary if prompts are to be scored.
    pub fn new(clip: Clip) -> Self {
        Self { clip, texts: RefCell::default() }
    }

    /// Unit image embeddings, in the graph of `pixels`.
    ///
    /// `pixels`: `[B, 3, H, W]`, in 0..=1, on the reward's device; gives `[B, E]`, fp32.
    pub fn image_embeddings(&self, pixels: &Tensor) -> Tensor {
        let seen = preprocess(pixels, self.clip.config.image_size as i64);
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
        let tokens = Tokenizer::openai().encode(prompt, self.clip.config.context_length);
        let (ids, ends) = self.clip.token_ids(&[&tokens]);
        unit(&self.clip.text_suffix(&ids, &ends, Depth::Input))
    }
}

impl Reward for SocialReward {
    fn name(&self) -> &str {
        RewardName::SocialReward.as_str()
    }

    fn score(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Tensor> {
        check(pixels, prompts)?;
        let products = self.image_embeddings(pixels) * self.text_embeddings(prompts);
        Ok(products.sum_dim_intlist([-1_i64].as_slice(), false, Kind::Float))
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

/// The door of every [`Reward::score`].
fn check(pixels: &Tensor, prompts: &[&str]) -> Result<()> {
    match pixels.size()[..] {
        [batch, 3, height, width] if batch.min(height).min(width) > 0 && batch == prompts.len() as i64 => Ok(()),
        ref found => Err(Error::data(format!(
            "pixels to score for {} prompt(s): want [{0}, 3, H, W], got {found:?}",
            prompts.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPTS: [&str; 3] = ["a cat", "a much longer prompt about a dog", "a cat"];

    fn reward(kind: Kind) -> SocialReward {
        SocialReward::load("random:tiny", Device::Cpu, kind).unwrap()
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
