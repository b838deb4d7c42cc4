//! Losses of preferences and likes. They compare squared errors of the denoising loss with a reference model's. What the model
//! denoises better than the reference, it has become likelier to make.

use reward::closed_set;
use tch::{Kind, Tensor};

closed_set! {
    /// How a preference becomes a loss.
    pub enum PreferenceLoss: "preference loss" {
        /// −log σ(inside) (Diffusion-DPO).
        Sigmoid = "sigmoid",
        /// relu(1 − inside).
        Hinge = "hinge",
        /// (x − 1 / (2 β))² for x = inside · 2 / β, which has no β (Azar et al., 2023, <https://arxiv.org/abs/2310.12036>).
        Ipo = "ipo",
    }
}

closed_set! {
    /// How a like becomes a loss.
    pub enum Utility: "utility" {
        /// 1 − σ(x) (Diffusion-KTO).
        Sigmoid = "sigmoid",
        /// −log σ(x): what is far on the wrong side counts more.
        LogSigmoid = "log-sigmoid",
    }
}

/// Argument of the logarithm's sigmoid, `[P]`: −β/2 · ((w − l) − (w − l of the reference)) for squared errors of winner and
/// loser. See "Diffusion Model Alignment Using Direct Preference Optimization", Wallace et al., 2023,
/// <https://arxiv.org/abs/2311.12908>, equation 14. Above 0 the model prefers the winner more than the reference does.
pub fn inside(model: &[Tensor; 2], reference: &[Tensor; 2], beta: f64) -> Tensor {
    let [model, reference] = [model, reference].map(|[winner, loser]| winner - loser);
    (model - reference) * (-0.5 * beta)
}

/// The loss of each pair, `[P]`, from what [`inside`] gives.
pub fn of_pairs(inside: &Tensor, loss: PreferenceLoss, beta: f64) -> Tensor {
    match loss {
        PreferenceLoss::Sigmoid => -inside.log_sigmoid(),
        PreferenceLoss::Hinge => (-inside + 1.0).relu(),
        PreferenceLoss::Ipo => (inside * (2.0 / beta) - 0.5 / beta).square(),
    }
}

/// The gain of each image over the reference, `[B]`: its squared error less the model's own.
pub fn gain(model: &Tensor, reference: &Tensor) -> Tensor {
    reference - model
}

/// The point that likes are measured from: the mean gain of a whole batch, 0 at least ("Diffusion-KTO", Li et al., 2024,
/// <https://arxiv.org/abs/2404.04465>, section 4).
pub fn reference_point(gains: &Tensor) -> f64 {
    gains.mean(Kind::Double).double_value(&[]).max(0.0)
}

/// The loss of each image, `[B]`: of β · (gain − point), or of its negative where nobody liked it. `signs`: 1 or −1, `[B]`.
pub fn of_likes(gains: &Tensor, point: f64, signs: &Tensor, utility: Utility, beta: f64) -> Tensor {
    let x = (gains - point) * signs * beta;
    match utility {
        Utility::Sigmoid => 1.0 - x.sigmoid(),
        Utility::LogSigmoid => -x.log_sigmoid(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
    }

    /// The model's errors 1 and 3, the reference's 2 and 3: the difference has fallen by 1, so β/2 is inside.
    #[test]
    fn pairs_by_hand() {
        let pair = |winner: f64, loser: f64| [Tensor::from_slice(&[winner]), Tensor::from_slice(&[loser])];
        let x = inside(&pair(1.0, 3.0), &pair(2.0, 3.0), 4.0);
        assert_eq!(values(&x), [2.0]);
        let loss = |loss| values(&of_pairs(&x, loss, 4.0))[0];
        assert!((loss(PreferenceLoss::Sigmoid) - (1.0 + (-2.0_f64).exp()).ln()).abs() < 1e-12);
        assert_eq!(loss(PreferenceLoss::Hinge), 0.0);
        assert_eq!(loss(PreferenceLoss::Ipo), 0.875 * 0.875);
        // Before the first step the model is the reference.
        let same = inside(&pair(1.0, 3.0), &pair(1.0, 3.0), 5000.0);
        assert_eq!(values(&of_pairs(&same, PreferenceLoss::Sigmoid, 5000.0)), [2.0_f64.ln()]);
        // And as β goes to 0, nothing is told apart.
        let hardly = inside(&pair(1.0, 3.0), &pair(2.0, 3.0), 1e-12);
        assert!((values(&of_pairs(&hardly, PreferenceLoss::Sigmoid, 1e-12))[0] - 2.0_f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn likes_by_hand() {
        let gains = gain(&Tensor::from_slice(&[1.0, 2.0]), &Tensor::from_slice(&[4.0, 1.0]));
        assert_eq!(values(&gains), [3.0, -1.0]);
        let point = reference_point(&gains);
        assert_eq!(point, 1.0);
        let signs = Tensor::from_slice(&[1.0, -1.0]);
        let sigmoid = 1.0 / (1.0 + (-1.0_f64).exp());
        for loss in values(&of_likes(&gains, point, &signs, Utility::Sigmoid, 0.5)) {
            assert!((loss - (1.0 - sigmoid)).abs() < 1e-12);
        }
        for loss in values(&of_likes(&gains, point, &signs, Utility::LogSigmoid, 0.5)) {
            assert!((loss + sigmoid.ln()).abs() < 1e-12);
        }
        assert!(
            values(&of_likes(&gains, point, &signs, Utility::Sigmoid, 1e-12))
                .iter()
                .all(|loss| (loss - 0.5).abs() < 1e-11)
        );
        assert_eq!(reference_point(&-&gains), 0.0, "never below the reference");
        assert_eq!(values(&of_likes(&(&gains * 0.0), 0.0, &signs, Utility::Sigmoid, 5000.0)), [0.5, 0.5]);
    }
}
