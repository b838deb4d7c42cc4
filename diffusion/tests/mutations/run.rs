//! The folder of a fine-tuning run: where `--resume` goes on, whatever was damaged.

use std::path::Path;

use diffusion::finetune::{FinetuneConfig, resumed_step};
use reward::{
    event::Silent,
    run::{RunFolder, checkpoints},
    weights::save::{ReadValues, named_tensors},
};

use crate::mutate::check;

/// A run with checkpoints after these steps.
fn run(folder: &Path, steps: &[usize]) -> FinetuneConfig {
    let config = FinetuneConfig {
        algorithm: Some("draft-k".parse().unwrap()),
        model: Some("random:sd-tiny".to_owned()),
        reward: vec!["random:tiny".parse().unwrap()],
        prompts: Some("prompts.txt".into()),
        output: Some(folder.to_owned()),
        ema_decay: Some(0.5),
        ..FinetuneConfig::default()
    };
    RunFolder::claim(folder, "output").unwrap().write_config(&config).unwrap();
    for step in steps {
        checkpoints::write(&checkpoints::folder(folder, *step), |partial| {
            for name in ["trained.safetensors", "ema.safetensors", "optimizer.safetensors"] {
                let tensor = ("x".to_owned(), vec![2], Box::new(|| Ok(vec![0.5_f32, 1.5])) as ReadValues);
                named_tensors(&partial.join(name), vec![tensor])?;
            }
            let progress = format!(
                "{{\"step\": {step}, \"best\": 0.5, \"threads\": 2, \"inputs\": {{}}, \"own\": {{\"micro\": 2, \"checkpointing\": false, \"scales\": {{}}}}}}"
            );
            Ok(fs_err::write(partial.join("progress.json"), progress)?)
        })
        .unwrap();
    }
    config
}

#[test]
fn a_damaged_checkpoint_is_passed_over_or_named() {
    for file in ["progress.json", "ema.safetensors", "checksums.json"] {
        let folder = tempfile::tempdir().unwrap();
        let config = run(folder.path(), &[4, 8]);
        let path = checkpoints::folder(folder.path(), 8).join(file);
        let valid = fs_err::read(&path).unwrap();
        check(&path, &valid, || {
            assert!(matches!(resumed_step(&config, &Silent)?, Some(4 | 8)));
            Ok(())
        });
        fs_err::remove_dir_all(checkpoints::folder(folder.path(), 4)).unwrap();
        check(&path, &valid, || resumed_step(&config, &Silent));
    }
}

#[test]
fn damaged_settings_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = run(folder.path(), &[8]);
    let path = folder.path().join("config.toml");
    check(&path, &fs_err::read(&path).unwrap(), || resumed_step(&config, &Silent));
}
