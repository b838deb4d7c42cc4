//! InfoNCE (van den Oord et al., 2018, <https://arxiv.org/abs/1807.03748>, eq. 4), symmetric as in CLIP (Radford et al., 2021,
//! figure 3). The images nobody remixed are further negatives of every prompt.

use tch::{Kind, Tensor};

use super::Embeddings;

/// The mean over the batch, a scalar. `scale`: `exp(logit_scale)`.
///
/// Prompts to images: row i's candidates are all positives and all negatives, its target is its own positive. Images to
/// prompts: positive j's candidates are all prompts. A positive of another row with the same prompt is no negative: it is
/// masked in both directions.
pub fn info_nce(embeddings: &Embeddings, scale: &Tensor) -> Tensor {
    let rows = embeddings.text.size()[0];
    let to_positives = embeddings.text.matmul(&embeddings.positive.tr()) * scale;
    let to_negatives = embeddings.text.matmul(&embeddings.negative.tr()) * scale;
    let same_prompt = embeddings.prompt.unsqueeze(0).eq_tensor(&embeddings.prompt.unsqueeze(1));
    let own = Tensor::eye(rows, (Kind::Bool, embeddings.text.device()));
    let to_positives = to_positives.masked_fill(&same_prompt.logical_and(&own.logical_not()), f64::NEG_INFINITY);
    let target = Tensor::arange(rows, (Kind::Int64, embeddings.text.device()));
    let prompts_to_images = Tensor::cat(&[&to_positives, &to_negatives], 1).cross_entropy_for_logits(&target);
    let images_to_prompts = to_positives.tr().cross_entropy_for_logits(&target);
    (prompts_to_images + images_to_prompts) * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_worked_with_a_false_negative_masked() {
        // Two rows of one prompt: each row sees its own positive (cos 1) and two negatives (cos 0) at scale ln 2:
        // −log(2 / (2 + 1 + 1)) = ln 2. Images to prompts: the only candidate is the own prompt: 0. Mean of both: ln 2 / 2.
        let row = |x: f32, y: f32| Tensor::from_slice(&[x, y, x, y]).view([2, 2]);
        let embeddings = Embeddings {
            text: row(1.0, 0.0),
            positive: row(1.0, 0.0),
            negative: row(0.0, 1.0),
            prompt: Tensor::from_slice(&[7_i64, 7]),
        };
        let loss = info_nce(&embeddings, &Tensor::from(2.0_f32.ln()));
        assert!((loss.double_value(&[]) - 2.0_f64.ln() / 2.0).abs() < 1e-6);
    }
}
