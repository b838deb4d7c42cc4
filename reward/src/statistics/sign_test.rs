//! Fisher's sign test: how surprising so many wins would be if either side were as likely to win.

use statrs::distribution::{Binomial, DiscreteCDF};

/// Two-sided p value, in `0..=1`, of `wins` against `losses` under an even chance; exact binomial, ties are left out. Without
/// a pair that was decided, 1. Pairs count as independent: several images of a prompt make it optimistic.
pub fn sign_test(wins: u64, losses: u64) -> f64 {
    // An even chance is a valid one for any number of trials.
    let Ok(chance) = Binomial::new(0.5, wins + losses) else { return 1.0 };
    (2.0 * chance.cdf(wins.min(losses))).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// python tests/golden/comparison_statistics.py (scipy.stats.binomtest)
    #[test]
    fn p_values_are_scipys() {
        for (wins, pairs, wanted) in [
            (7, 10, 0.34375),
            (0, 5, 0.0625),
            (3, 3, 0.25),
            (50, 100, 1.0),
            (61, 100, 0.035200200217704855),
            (231, 400, 0.0022482081044708107),
            (1200, 2300, 0.03896685268382023),
        ] {
            let p_value = sign_test(wins, pairs - wins);
            assert!((p_value - wanted).abs() < 1e-10, "{wins} of {pairs}: {p_value}");
            assert_eq!(p_value, sign_test(pairs - wins, wins));
        }
        assert_eq!(sign_test(0, 0), 1.0);
    }
}
