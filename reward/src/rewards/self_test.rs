//! A look at a reward before a run trusts it: four coloured and textured pictures, in one order, in the other, and one alone.
//!
//! A scorer may keep pictures and prompts apart wrongly (a queue that is answered by arrival, a batch that is sorted by length).
//! It then gives plausible numbers, and a run that follows them learns nothing.

use tch::{Device, Kind, Tensor};

use super::Reward;
use crate::{
    Error, Result,
    event::{Event, Observer},
};

/// Pixels of a side.
const SIDE: i64 = 64;
const PROMPTS: [&str; 4] = [
    "a red and white chequered tablecloth",
    "blue and yellow stripes",
    "a green hill under a grey sky",
    "coloured noise on an old television",
];
/// Scores may move by this share of their spread with what is scored beside them.
const QUIET: f64 = 1e-3;
/// A swap moves them by more than this share of their spread.
const SWAP: f64 = 5e-2;

/// Scores test pictures with `reward`, which computes on `device` in `kind`.
///
/// # Errors
/// The reward fails, gives something else than finite numbers, or the same number for all. Or scores of a deterministic reward
/// depend on the order or number of pictures. `observer` is warned of a reward that is not deterministic.
pub fn self_test(reward: &dyn Reward, device: Device, kind: Kind, observer: &dyn Observer) -> Result<()> {
    let pixels = pictures().to_device(device);
    let name = reward.name();
    let scores = |pixels: &Tensor, prompts: &[&str]| -> Result<Vec<f64>> {
        let scores = tch::no_grad(|| reward.score(pixels, prompts))?;
        if scores.size() != [prompts.len() as i64] {
            return Err(Error::data(format!(
                "reward `{name}`: want [{}] scores of test pictures, got {:?}",
                prompts.len(),
                scores.size()
            )));
        }
        let scores = Vec::try_from(scores.to_kind(Kind::Double).to_device(Device::Cpu))
            .map_err(|error| Error::data(format!("reward `{name}`: scores of test pictures")).caused_by(error))?;
        match scores.iter().position(|score: &f64| !score.is_finite()) {
            Some(index) => Err(Error::data(format!(
                "reward `{name}`: gives {} for the test picture `{}`, want a finite number",
                scores[index], prompts[index]
            ))),
            None => Ok(scores),
        }
    };
    let together = scores(&pixels, &PROMPTS)?;
    let (low, high) =
        together.iter().fold((f64::MAX, f64::MIN), |(low, high), score| (low.min(*score), high.max(*score)));
    if low == high {
        return Err(Error::data(format!("reward `{name}`: gives {low} for all four test pictures"))
            .hint("a reward that scores all images equally cannot be optimised"));
    }
    let mut reversed_prompts = PROMPTS;
    reversed_prompts.reverse();
    let mut reversed = scores(&pixels.flip([0]), &reversed_prompts)?;
    reversed.reverse();
    let alone = scores(&pixels.narrow(0, 0, 1), &PROMPTS[..1])?;
    let moved = distance(&together, &reversed).max(distance(&together[..1], &alone));
    let spread = high - low;
    // What a model computes moves by its rounding where another batch is computed in another order.
    let rounding = if kind == Kind::Float { 1e-5 } else { 1e-2 };
    let quiet = QUIET * spread + rounding * low.abs().max(high.abs());
    if moved <= quiet {
        return Ok(());
    }
    let share = format!("{moved:.2e}, {:.2} % of their spread", 100.0 * moved / spread);
    if distance(&together, &scores(&pixels, &PROMPTS)?) > quiet {
        let text = format!("reward `{name}` is not deterministic: scores of the same test pictures differ by {share}");
        observer.event(&Event::Warning(&text));
        return Ok(());
    }
    if moved <= quiet.max(SWAP * spread) {
        let text = format!(
            "reward `{name}`: scores of test pictures move by {share}, with the order or number of pictures scored together"
        );
        observer.event(&Event::Warning(&text));
        return Ok(());
    }
    Err(Error::data(format!(
        "reward `{name}`: scores depend on the order or number of pictures scored together: they move by {share}"
    ))
    .hint("the scorer swaps pictures, prompts or answers: each answer must belong to its own request"))
}

/// The largest difference of scores of the same pictures.
fn distance(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f64::max)
}

/// The pictures of [`PROMPTS`], `[4, 3, 64, 64]`, fp32 in 0..=1: a fixed function of the pixel's place.
fn pictures() -> Tensor {
    let noise = |x: i64, y: i64, channel: i64| {
        (x * 7919 + y * 104_729 + channel * 1_299_709 + x * y * 31).rem_euclid(251) as f32 / 250.0
    };
    let picture = |index: usize, x: i64, y: i64| -> [f32; 3] {
        let shade = noise(x, y, 3) * 0.1;
        match index {
            0 if (x.div_euclid(8) + y.div_euclid(8)).rem_euclid(2) == 0 => [0.8 + shade, 0.1, 0.1 + shade],
            0 => [0.9 + shade; 3],
            1 if (x + y).rem_euclid(16) < 8 => [0.1, 0.2 + shade, 0.8],
            1 => [0.9, 0.8 + shade, 0.1],
            2 if y > 32 + ((x - 32) * (x - 32)).div_euclid(64) => [0.1 + shade, 0.6 - 0.004 * y as f32 + shade, 0.1],
            2 => [0.6 + shade, 0.65 + shade, 0.7],
            _ => [0, 1, 2].map(|channel| noise(x, y, channel)),
        }
    };
    let mut values = Vec::new();
    for index in 0..PROMPTS.len() {
        for channel in 0..3 {
            values.extend((0..SIDE).flat_map(|y| (0..SIDE).map(move |x| picture(index, x, y)[channel])));
        }
    }
    Tensor::from_slice(&values).view([4, 3, SIDE, SIDE])
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Mutex};

    use super::*;

    /// A scorer whose numbers `of` makes from the brightness of a picture, the length of its prompt, its place and the call.
    struct Made<F>(F, Cell<usize>);

    impl<F: Fn(&[(f64, usize)], usize) -> Vec<f64>> Reward for Made<F> {
        fn name(&self) -> &str {
            "made"
        }

        fn score(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Tensor> {
            self.1.set(self.1.get() + 1);
            let brightness = pixels.mean_dim([1_i64, 2, 3].as_slice(), false, Kind::Double);
            let brightness = Vec::<f64>::try_from(brightness).unwrap();
            let rows: Vec<_> = brightness.into_iter().zip(prompts.iter().map(|prompt| prompt.len())).collect();
            Ok(Tensor::from_slice(&(self.0)(&rows, self.1.get())))
        }

        fn differentiable(&self) -> bool {
            false
        }
    }

    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);

    impl Observer for Warnings {
        fn event(&self, event: &Event) {
            if let Event::Warning(text) = event {
                self.0.lock().unwrap().push((*text).to_owned());
            }
        }
    }

    fn tested(of: impl Fn(&[(f64, usize)], usize) -> Vec<f64>) -> (Result<()>, Vec<String>) {
        let warnings = Warnings::default();
        let done = self_test(&Made(of, Cell::new(0)), Device::Cpu, Kind::Float, &warnings);
        (done, warnings.0.into_inner().unwrap())
    }

    fn each(of: impl Fn(f64, usize) -> f64) -> impl Fn(&[(f64, usize)], usize) -> Vec<f64> {
        move |rows, _| rows.iter().map(|(brightness, length)| of(*brightness, *length)).collect()
    }

    #[test]
    fn a_good_scorer_passes_in_silence() {
        let scorers: [fn(f64, usize) -> f64; 2] = [|brightness, _| brightness, |_, length| length as f64];
        for scorer in scorers {
            let (done, warnings) = tested(each(scorer));
            done.unwrap();
            assert_eq!(warnings, Vec::<String>::new());
        }
    }

    #[test]
    fn a_constant_or_non_finite_scorer_is_refused() {
        let message = |of: fn(f64, usize) -> f64| tested(each(of)).0.unwrap_err().to_string();
        assert_eq!(message(|_, _| 0.5), "reward `made`: gives 0.5 for all four test pictures");
        let nan = message(|_, length| if length == PROMPTS[1].len() { f64::NAN } else { 1.0 });
        assert_eq!(
            nan,
            format!("reward `made`: gives NaN for the test picture `{}`, want a finite number", PROMPTS[1])
        );
    }

    #[test]
    fn a_scorer_that_swaps_prompts_or_pictures_is_refused() {
        // Prompts in the order of their length: right only by chance.
        let by_length = |rows: &[(f64, usize)], _| {
            let mut lengths: Vec<usize> = rows.iter().map(|row| row.1).collect();
            lengths.sort_unstable();
            rows.iter().zip(lengths).map(|((brightness, _), length)| brightness * length as f64).collect()
        };
        // Right for four, wrong for one.
        let by_number = |rows: &[(f64, usize)], _| rows.iter().map(|row| row.0 + rows.len() as f64).collect();
        for (done, _) in [tested(by_length), tested(by_number)] {
            let error = done.unwrap_err();
            let start =
                "reward `made`: scores depend on the order or number of pictures scored together: they move by ";
            assert!(error.to_string().starts_with(start), "{error}");
            assert!(error.hint_text().unwrap().starts_with("the scorer swaps"));
        }
    }

    #[test]
    fn a_scorer_with_noise_is_only_warned_of() {
        let noisy =
            |rows: &[(f64, usize)], call| rows.iter().map(|row| row.0 + (call as f64 * 0.37).fract() * 0.1).collect();
        let (done, warnings) = tested(noisy);
        done.unwrap();
        assert!(warnings.len() == 1 && warnings[0].starts_with("reward `made` is not deterministic: "), "{warnings:?}");
        // Half precision, or statistics over the batch: less than any swap.
        let slight = |rows: &[(f64, usize)], _| rows.iter().map(|row| row.0 + rows.len() as f64 * 1e-3).collect();
        let (done, warnings) = tested(slight);
        done.unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains("move by 3.00e-3"), "{warnings:?}");
    }

    #[test]
    fn pictures_are_pixels_and_differ() {
        let pictures = pictures();
        assert_eq!(pictures.size(), [4, 3, 64, 64]);
        assert!(pictures.min().double_value(&[]) >= 0.0 && pictures.max().double_value(&[]) <= 1.0);
        assert!(
            pictures.std_dim([2_i64, 3].as_slice(), true, false).min().double_value(&[]) > 0.01,
            "all are textured"
        );
    }
}
