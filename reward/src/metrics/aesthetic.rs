//! LAION's aesthetic predictor v2 (<https://github.com/christophschuhmann/improved-aesthetic-predictor>): how much people
//! like the looks of a picture, about 1 to 10, whatever the prompt.
//!
//! `sac+logos+ava1-l14-linearMSE.pth` is five linear layers with nothing but dropout between them: one affine map of the
//! unit image embedding of OpenAI's CLIP ViT-L/14, folded when it is loaded.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::clip_reward::ClipReward;
use crate::{
    Error, Result,
    score::{
        reward::{Reward, check},
        spec::RewardName,
    },
    weights::{Checkpoint, OpenOptions, file::TensorFile},
};

/// Its layers' places among dropouts.
const LAYERS: [usize; 5] = [0, 2, 4, 6, 7];

/// `w · unit(image) + b`.
pub struct Aesthetic {
    clip: ClipReward,
    head: Affine,
    files: Vec<PathBuf>,
}

/// Stacked linear layers as the one map they are.
#[derive(Debug)]
pub(super) struct Affine {
    /// `[1, in]`, fp32.
    weight: Tensor,
    /// `[1]`, fp32.
    bias: Tensor,
}

impl Affine {
    /// Folds the layers `PREFIXlayers.{0,2,4,6,7}` of `file` in fp64. `width`: what they read.
    ///
    /// # Errors
    /// A layer cannot be read. The file's shapes have been checked against [`Self::parameters`].
    pub(super) fn read(file: &TensorFile, prefix: &str, width: usize, device: Device) -> Result<Self> {
        let double = (Kind::Double, Device::Cpu);
        let (mut weight, mut bias) = (Tensor::eye(width as i64, double), Tensor::zeros([width as i64], double));
        let read = |(name, shape): &(String, Vec<usize>)| -> Result<Tensor> {
            let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
            Ok(Tensor::from_slice(&file.read(name)?).to_kind(Kind::Double).view(shape.as_slice()))
        };
        for [layer, offset] in Self::parameters(file, prefix, width).as_chunks().0 {
            let layer = read(layer)?;
            (weight, bias) = (layer.matmul(&weight), layer.mv(&bias) + read(offset)?);
        }
        let fp32 = |tensor: Tensor| tensor.to_kind(Kind::Float).to_device(device);
        Ok(Self { weight: fp32(weight), bias: fp32(bias) })
    }

    /// Every parameter with its shape: hidden widths are the file's, ends and joints are given.
    pub(super) fn parameters(file: &TensorFile, prefix: &str, width: usize) -> Vec<(String, Vec<usize>)> {
        let mut input = width;
        let mut all = Vec::new();
        for layer in LAYERS {
            let name = |part: &str| format!("{prefix}layers.{layer}.{part}");
            let rows = file.shapes().get(&name("weight")).and_then(|shape| shape.first().copied());
            let output = if layer == LAYERS[4] { 1 } else { rows.unwrap_or(1) };
            all.extend([(name("weight"), vec![output, input]), (name("bias"), vec![output])]);
            input = output;
        }
        all
    }

    /// `x`: `[B, in]`, fp32; gives `[B]`.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias)).squeeze_dim(-1)
    }
}

impl Aesthetic {
    /// Loads the head of `path` on the CLIP that [`Checkpoint::open`] opens from `clip`. `kind`: of the CLIP's weights and
    /// activations; the head is fp32.
    ///
    /// # Errors
    /// Weights cannot be read, or the head does not fit the CLIP.
    pub fn load(path: &str, clip: &str, device: Device, kind: Kind) -> Result<Self> {
        let checkpoint = Checkpoint::open(clip, OpenOptions::default())?;
        let width = checkpoint.config.embed_dim;
        let file = TensorFile::open(Path::new(path))?;
        file.check(&Affine::parameters(&file, "", width), |_| false).map_err(|error| {
            error.hint(format!(
                "want LAION's sac+logos+ava1-l14-linearMSE.pth, for a CLIP ViT-L/14 of 768 channels; --clip gives one of {width}"
            ))
        })?;
        let head = Affine::read(&file, "", width, device)?;
        let files = [vec![file.path().to_owned()], checkpoint.files()].concat();
        Ok(Self { clip: ClipReward::new(RewardName::Aesthetic, &checkpoint, device, kind)?, head, files })
    }
}

impl Reward for Aesthetic {
    fn name(&self) -> &str {
        RewardName::Aesthetic.as_str()
    }

    /// Prompts are counted, not read.
    fn score(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Tensor> {
        check(pixels, prompts)?;
        Ok(self.head.forward(&self.clip.image_embeddings(pixels)))
    }

    fn differentiable(&self) -> bool {
        true
    }

    fn set_checkpointing(&mut self, on: bool) {
        self.clip.set_checkpointing(on);
    }

    fn embeddings(&self, pixels: &Tensor) -> Option<Tensor> {
        self.clip.embeddings(pixels)
    }

    fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn weights(&self) -> Vec<Tensor> {
        self.clip.weights()
    }
}

/// What loads it without the CLIP it stands on.
pub(crate) fn no_clip(path: &str) -> Error {
    Error::usage(format!("aesthetic={path}: the head reads embeddings of OpenAI's CLIP ViT-L/14, which is not given"))
        .hint("name it with --clip PATH, for example --clip openai/clip-vit-large-patch14")
}
