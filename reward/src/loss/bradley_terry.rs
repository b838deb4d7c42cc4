//! Bradley-Terry: the probability that the remixed image wins is `σ(exp(logit_scale) (cos_p − cos_n))` (Bradley & Terry,
//! 1952; as reward models use it: Ouyang et al., 2022, <https://arxiv.org/abs/2203.02155>, eq. 1).

use tch::{Kind, Tensor};

use super::Embeddings;

/// The mean over the batch, a scalar. `scale`: `exp(logit_scale)`.
pub fn bradley_terry(embeddings: &Embeddings, scale: &Tensor) -> Tensor {
    let difference = &embeddings.positive - &embeddings.negative;
    let gap = (&embeddings.text * difference).sum_dim_intlist([-1_i64].as_slice(), false, Kind::Float);
    -(gap * scale).log_sigmoid().mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_worked() {
        // cos_p = 1, cos_n = 0, scale = ln 3: −log σ(ln 3) = −log(3/4).
        let row = |x: f32, y: f32| Tensor::from_slice(&[x, y]).view([1, 2]);
        let embeddings = Embeddings {
            text: row(1.0, 0.0),
            positive: row(1.0, 0.0),
            negative: row(0.0, 1.0),
            prompt: Tensor::from_slice(&[0_i64]),
        };
        let loss = bradley_terry(&embeddings, &Tensor::from(3.0_f32.ln()));
        assert!((loss.double_value(&[]) - (4.0_f64 / 3.0).ln()).abs() < 1e-6);
    }
}
