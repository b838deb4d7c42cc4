//! How the learning rate moves over a run.

use crate::closed_set;

closed_set! {
    /// How the learning rate moves after the warm-up.
    pub enum Schedule: "schedule" {
        /// It does not (the original).
        Constant = "constant",
        /// Half a cosine from the full rate to 0 at the last step.
        Cosine = "cosine",
    }
}

impl Schedule {
    /// The factor in `0..=1` on the learning rate for step `step` (from 1) of `total`: linear over `warmup` steps first.
    pub fn factor(self, step: usize, total: usize, warmup: usize) -> f64 {
        if step <= warmup {
            return step as f64 / warmup as f64;
        }
        match self {
            Self::Constant => 1.0,
            Self::Cosine => {
                let progress = (step - warmup - 1) as f64 / (total - warmup).max(1) as f64;
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_is_linear_and_the_cosine_ends_near_zero() {
        assert_eq!(Schedule::Constant.factor(1, 10, 0), 1.0);
        assert_eq!(Schedule::Constant.factor(1, 10, 4), 0.25);
        assert_eq!(Schedule::Constant.factor(4, 10, 4), 1.0);
        assert_eq!(Schedule::Cosine.factor(5, 10, 4), 1.0);
        // (8 - 4 - 1) / 6 = 1/2 of the way: cos 90° = 0.
        assert!((Schedule::Cosine.factor(8, 10, 4) - 0.5).abs() < 1e-12);
        assert!(Schedule::Cosine.factor(10, 10, 4) < 0.07);
    }
}
