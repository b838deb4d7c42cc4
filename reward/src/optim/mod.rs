//! Optimization: Adam, the learning rate, and the gradient step of both trainers.

mod adam;
mod rate;
mod update;

use tch::Tensor;

pub use adam::Adam;
pub use rate::Schedule;
pub use update::{Ema, Update, Updated, with_values};

/// The first of these tensors that holds a NaN or an infinity.
pub fn not_finite<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Option<&'a str> {
    let finite = |tensor: &Tensor| tch::no_grad(|| tensor.isfinite().all().int64_value(&[]) == 1);
    tensors.into_iter().find(|(_, tensor)| !finite(tensor)).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_that_is_not_finite_is_found() {
        let good = Tensor::from_slice(&[1.0_f32, -3e38]);
        let [nan, infinite] = [f32::NAN, f32::NEG_INFINITY].map(|value| Tensor::from_slice(&[0.0, value]));
        assert_eq!(not_finite([("a", &good), ("b", &good)]), None);
        assert_eq!(not_finite([("a", &good), ("b", &nan)]), Some("b"));
        assert_eq!(not_finite([("a", &infinite), ("b", &good)]), Some("a"));
    }
}
