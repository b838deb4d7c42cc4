//! What only changes where and how fast something is computed leaves the losses alone.

use crate::support::harness::Workspace;

const UPPER: &str = "visual_upper_layers_textual_upper_layers";

/// Trains and gives the loss of each step.
fn losses(work: &Workspace, run: &str, settings: &str) -> Vec<f64> {
    let command = format!(
        "reward train --training-file toy/train.parquet --model random:tiny --device cpu --batch-size 10 \
         --learning-rate 1e-4 --checkpoint-every 0 --save-folder {run} {settings}"
    );
    work.run(&command).succeeds();
    fs_err::remove_dir_all(work.path(&format!("{run}/checkpoints"))).unwrap();
    work.losses(run)
}

#[track_caller]
fn same(found: &[f64], wanted: &[f64], name: &str) {
    assert_eq!(found.len(), wanted.len(), "{name}");
    for (step, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let difference = (found / wanted - 1.0).abs();
        assert!(difference <= 1e-6, "{name}, step {}: {found} for {wanted} ({difference:.1e})", step + 1);
    }
}

#[test]
fn with_and_without_the_cache() {
    let work = Workspace::new();
    let settings = format!("--training-mode {UPPER} --n-epochs 2");
    let wanted = losses(&work, "off", &format!("{settings} --cache off"));
    assert_eq!(wanted.len(), 8);
    assert!(wanted[0] != wanted[4], "the second epoch has learned something");
    for (run, cache) in
        [("ram", "ram"), ("cold", "activations"), ("warm", "activations"), ("little", "ram --cache-gb 0.001")]
    {
        same(&losses(&work, run, &format!("{settings} --cache {cache}")), &wanted, run);
    }
    let entries = || fs_err::read_dir(work.path("activations")).unwrap().count();
    let before = entries();
    assert!(before > 80, "80 images and the prompts, not {before}");
    // Another base is another prefix: nothing of the old one may be used.
    let other = format!("{settings} --seed 9");
    let wanted = losses(&work, "other", &format!("{other} --cache off"));
    same(&losses(&work, "other-disk", &format!("{other} --cache activations")), &wanted, "another base");
    assert!(entries() > before);
}

#[test]
fn at_any_number_of_workers() {
    let work = Workspace::new();
    let settings = "--training-mode visual_last_layer --n-epochs 1";
    let wanted = losses(&work, "0", &format!("{settings} --num-workers 0"));
    for workers in ["1", "4"] {
        same(&losses(&work, workers, &format!("{settings} --num-workers {workers}")), &wanted, workers);
    }
}

#[test]
fn at_any_split_into_micro_batches() {
    let work = Workspace::new();
    for loss in ["triplet", "bradley-terry", "info-nce"] {
        let settings = format!("--training-mode {UPPER} --n-epochs 1 --loss-name {loss}");
        let wanted = losses(&work, loss, &settings);
        // 10 rows split into 5 + 5, and into 3 + 3 + 3 + 1.
        for split in [2, 4] {
            let found =
                losses(&work, &format!("{loss}-{split}"), &format!("{settings} --gradient-accumulation {split}"));
            same(&found, &wanted, &format!("{loss} in {split}"));
        }
    }
}
