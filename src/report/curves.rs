//! Reward and drift of the training run that a set of images came from.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::chart::{Series, lines};

/// What is drawn of a `metrics.jsonl`, in this order.
const CURVES: [(&str, &str); 6] = [
    ("reward_mean", "Training: mean reward"),
    ("held_out_reward", "Training: reward of held-out images"),
    ("gain", "Training: gain of held-out images over the base model's"),
    ("epsilon_drift", "Training: drift of the predicted noise from the base model's"),
    ("validation_accuracy", "Training: validation accuracy"),
    ("loss", "Training: loss"),
];

/// The run's folder: that of the images, the one around it, or the one around that, as of `samples/step-N/`.
fn run_file(folder: &Path, name: &str) -> Option<PathBuf> {
    let around = folder.ancestors().skip(1).take(2).filter(|around| !around.as_os_str().is_empty());
    std::iter::once(folder).chain(around).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Figures of the curves that `metrics.jsonl` has; lines that are no JSON are passed over, as the last of a running run may be.
pub(super) fn of_run(folder: &Path) -> String {
    let text = run_file(folder, "metrics.jsonl").and_then(|path| fs_err::read_to_string(path).ok()).unwrap_or_default();
    let steps: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let figure = |(key, title): (&str, &str)| {
        let points = steps.iter().filter_map(|line| Some((line["step"].as_f64()?, line[key].as_f64()?))).collect();
        lines(title, "step", &[Series { name: key, class: "set", points }])
    };
    CURVES.map(figure).concat()
}

/// The settings in `config.toml` beside `metrics.jsonl`.
pub(super) fn settings_of_run(folder: &Path) -> Vec<(String, String)> {
    let config = run_file(folder, "metrics.jsonl").map(|path| path.with_file_name("config.toml"));
    let text = config.and_then(|path| reward::text::read(&path, "settings").ok()).unwrap_or_default();
    let settings: toml::Table = text.parse().unwrap_or_default();
    settings.into_iter().map(|(name, value)| (name, value.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_in_the_folder_or_around_it_is_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        fs_err::create_dir(&images).unwrap();
        assert_eq!((of_run(&images), settings_of_run(&images)), (String::new(), vec![]));
        let lines = "{\"step\":1,\"reward_mean\":0.1}\n{\"step\":2,\"reward_mean\":0.3}\n{\"step\":";
        fs_err::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        fs_err::write(folder.path().join("config.toml"), "seed = 3\n").unwrap();
        assert!(of_run(&images).contains("Training: mean reward, from 0.1000 to 0.3000"));
        assert_eq!(settings_of_run(&images.join("step-1")), [("seed".to_owned(), "3".to_owned())]);
    }
}
