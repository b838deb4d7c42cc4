//! The heads of LAION's aesthetic predictor and of ImageReward: five linear layers with nothing but dropout between them,
//! which at inference are one affine map.

use tch::{Device, Kind, Tensor};

use crate::{Result, weights::file::TensorFile};

/// The layers' places among dropouts.
const LAYERS: [usize; 5] = [0, 2, 4, 6, 7];

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

#[cfg(test)]
mod tests {
    use safetensors::{Dtype, tensor::TensorView};

    use super::*;

    /// Layers 2 → 1 → 1 → 1 → 1 → 1, weights (1, 2), 3, 1, 1, 2, biases 1, 0, 0, 0.5, −1. They give
    /// ((x + 2 y + 1) · 3 + 0.5) · 2 − 1 = 6 x + 12 y + 6.
    #[test]
    fn five_layers_are_one_map() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.safetensors");
        let layers = [
            (0, vec![1.0, 2.0], 1.0),
            (2, vec![3.0], 0.0),
            (4, vec![1.0], 0.0),
            (6, vec![1.0], 0.5),
            (7, vec![2.0], -1.0),
        ];
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
        let stored: Vec<_> = layers
            .iter()
            .flat_map(|(layer, weight, bias)| {
                let weight_shape = vec![1, weight.len()];
                [
                    (format!("mlp.layers.{layer}.weight"), weight_shape, bytes(weight)),
                    (format!("mlp.layers.{layer}.bias"), vec![1], bytes(&[*bias])),
                ]
            })
            .collect();
        let views = stored
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        fs_err::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        file.check(&Affine::parameters(&file, "mlp.", 2), |_| false).unwrap();
        let head = Affine::read(&file, "mlp.", 2, Device::Cpu).unwrap();
        let x = Tensor::from_slice(&[0.0_f32, 0.0, 1.0, 0.0, 0.0, 1.0]).view([3, 2]);
        assert_eq!(Vec::<f32>::try_from(head.forward(&x)).unwrap(), [6.0, 12.0, 18.0]);
    }
}
