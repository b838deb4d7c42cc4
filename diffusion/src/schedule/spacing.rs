//! Which training steps a sampler visits (Lin et al., 2023, arXiv 2305.08891, table 2), to the digit as diffusers spreads them.

use super::config::SchedulerConfig;
use crate::{Error, Result};

/// Refuses a number of steps that cannot be spread, before anything is spread.
pub(super) fn check(config: &SchedulerConfig, steps: usize) -> Result<()> {
    let train = config.num_train_timesteps;
    if steps == 0 || steps > train {
        return Err(Error::usage(format!(
            "{steps} sampling steps, want 1 to {train} (the model's `num_train_timesteps`)"
        )));
    }
    Ok(())
}

/// Refuses timesteps the model was not trained for.
pub(super) fn within(config: &SchedulerConfig, timesteps: Vec<f64>) -> Result<Vec<f64>> {
    let (steps, last) = (timesteps.len(), config.num_train_timesteps - 1);
    match timesteps.iter().find(|timestep| **timestep < 0.0 || **timestep > last as f64) {
        Some(timestep) => Err(Error::usage(format!(
            "{steps} sampling steps with `steps_offset` {} begin at timestep {timestep}, beyond the model's last, {last}",
            config.steps_offset
        ))
        .hint("fewer steps")),
        None => Ok(timesteps),
    }
}

/// `steps` multiples of `ratio` from `offset` up, the highest first.
pub(super) fn leading(steps: usize, ratio: usize, offset: usize) -> Vec<f64> {
    (0..steps).rev().map(|step| (step * ratio + offset) as f64).collect()
}

/// From `last` − 1 down in steps of `train / steps`, rounded; for `last` = `train` exactly `steps` of them.
///
/// numpy's `arange`, which diffusers takes, returns one more for some numbers of steps (61, 103, …), whose timestep is −1.
pub(super) fn trailing(train: usize, last: usize, steps: usize) -> Vec<f64> {
    let (train, last) = (train as f64, last as f64);
    let ratio = train / steps as f64;
    let count = if last < train { (last / ratio).ceil() } else { steps as f64 };
    let down = (last - ratio) - last;
    (0..count as usize).map(|step| (last + step as f64 * down).round_ties_even() - 1.0).collect()
}

/// `count` values evenly from `last` down to 0, not rounded.
pub(super) fn linspace(last: usize, count: usize) -> Vec<f64> {
    if count == 1 {
        return vec![0.0];
    }
    let step = last as f64 / (count - 1) as f64;
    (0..count).rev().map(|at| if at == count - 1 { last as f64 } else { at as f64 * step }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_of_a_thousand() {
        assert_eq!(leading(10, 100, 1)[..2], [901.0, 801.0]);
        assert_eq!(trailing(1000, 1000, 10)[8..], [199.0, 99.0]);
        assert_eq!(trailing(1000, 1000, 3), [999.0, 666.0, 332.0]);
        assert_eq!(linspace(999, 4), [999.0, 666.0, 333.0, 0.0]);
    }

    /// diffusers 0.42.1 takes 62 steps here, the last at timestep −1.
    #[test]
    fn trailing_never_takes_a_step_too_many() {
        for steps in 1..=1000 {
            let timesteps = trailing(1000, 1000, steps);
            assert_eq!(timesteps.len(), steps);
            assert!(timesteps.iter().all(|timestep| (0.0..1000.0).contains(timestep)), "{steps}");
        }
    }
}
