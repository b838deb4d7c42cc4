//! The folder of a training run: where `--resume` goes on, whatever was damaged.

use std::{path::Path, sync::Mutex};

use reward::{
    event::{Event, Observer},
    run::{checkpoints, checksums, metrics},
    train::{config::TrainConfig, resumed_step},
    weights::save::{ReadValues, named_tensors},
};

use crate::mutate::check;

/// Keeps warnings.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Observer for Warnings {
    fn event(&self, event: &Event) {
        if let Event::Warning(text) = event {
            self.0.lock().unwrap().push((*text).to_owned());
        }
    }
}

/// A run with checkpoints after these steps.
fn run(folder: &Path, steps: &[usize]) -> TrainConfig {
    let config = TrainConfig {
        training_file: vec!["t.parquet".to_owned()],
        training_mode: Some(reward::train::trainable::TrainingMode::All),
        save_folder: Some(folder.to_owned()),
        ..TrainConfig::default()
    };
    fs_err::write(folder.join("config.toml"), toml::to_string_pretty(&config).unwrap()).unwrap();
    for step in steps {
        checkpoints::write(&checkpoints::folder(folder, *step), |partial| {
            for name in ["model.safetensors", "optimizer.safetensors"] {
                let tensor = ("x".to_owned(), vec![2], Box::new(|| Ok(vec![0.5_f32, 1.5])) as ReadValues);
                named_tensors(&partial.join(name), vec![tensor])?;
            }
            let progress =
                format!("{{\"step\": {step}, \"best\": 0.75, \"threads\": 2, \"inputs\": {{}}, \"own\": null}}");
            Ok(fs_err::write(partial.join("progress.json"), progress)?)
        })
        .unwrap();
    }
    config
}

/// Every file of the newest checkpoint, with an older one and without.
#[test]
fn a_damaged_checkpoint_is_passed_over_or_named() {
    for file in ["progress.json", "model.safetensors", "optimizer.safetensors", checksums::FILE] {
        let folder = tempfile::tempdir().unwrap();
        let config = run(folder.path(), &[4, 8]);
        let path = checkpoints::folder(folder.path(), 8).join(file);
        let valid = fs_err::read(&path).unwrap();
        check(&path, &valid, || {
            let warnings = Warnings::default();
            let step = resumed_step(&config, &warnings)?;
            let said = warnings.0.into_inner().unwrap();
            match step {
                Some(8) => assert!(said.is_empty(), "{said:?}"),
                Some(4) => assert!(said.len() == 1 && said[0].contains(&format!("step-8/{file}")), "{said:?}"),
                other => panic!("{other:?}"),
            }
            Ok(())
        });
        fs_err::remove_dir_all(checkpoints::folder(folder.path(), 4)).unwrap();
        check(&path, &valid, || resumed_step(&config, &Warnings::default()));
    }
}

/// Checkpoints of earlier versions have no checksums.
#[test]
fn a_damaged_progress_is_named_without_checksums_too() {
    let folder = tempfile::tempdir().unwrap();
    let config = run(folder.path(), &[8]);
    let checkpoint = checkpoints::folder(folder.path(), 8);
    fs_err::remove_file(checkpoint.join(checksums::FILE)).unwrap();
    let path = checkpoint.join("progress.json");
    check(&path, &fs_err::read(&path).unwrap(), || resumed_step(&config, &Warnings::default()));
}

#[test]
fn damaged_settings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = run(folder.path(), &[8]);
    let path = folder.path().join("config.toml");
    check(&path, &fs_err::read(&path).unwrap(), || resumed_step(&config, &Warnings::default()));
}

/// Damaged metrics never stand in the way.
#[test]
fn damaged_metrics_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    let config = run(folder.path(), &[8]);
    let lines: String = (1..=9).map(|step| format!("{{\"step\":{step},\"loss\":0.25}}\n")).collect();
    let path = folder.path().join(metrics::FILE);
    check(&path, lines.as_bytes(), || {
        metrics::cut(folder.path(), 8, &Warnings::default())?;
        let text = fs_err::read_to_string(&path)?;
        assert!(text.lines().all(|line| line.starts_with('{')) && text.lines().count() <= 2000, "{text}");
        resumed_step(&config, &Warnings::default())
    });
}
