//! Statistics: pair accuracy, intervals, slices; one set of images against another.

pub mod agreement;
pub mod best_of;
pub mod comparison;
pub mod intervals;
pub mod pairwise;
pub mod sign_test;
pub mod slices;
pub mod table;

/// The arithmetic mean; `NaN` of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sample's standard deviation (divided by n − 1); 0 of fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let centre = mean(values);
    (values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_by_hand() {
        assert_eq!((mean(&[1.0, 3.0]), deviation(&[1.0, 3.0]), deviation(&[5.0])), (2.0, 2.0_f64.sqrt(), 0.0));
    }
}
