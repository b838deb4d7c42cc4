//! Runs that were killed or stopped go on to the bit; a folder belongs to one run.

use std::{thread::sleep, time::Duration};

use serde_json::Value;

use crate::support::harness::Workspace;

const SETTINGS: &str = "reward train --training-file toy/train.parquet --validation-file toy/validation.parquet \
    --training-mode all --model random:tiny --device cpu --batch-size 16 --learning-rate 1e-3 --schedule cosine \
    --warmup-steps 2 --checkpoint-every 2 --validate-every 3 --n-epochs 6";

/// The lines of `metrics.jsonl` less what depends on the clock.
fn metrics(work: &Workspace, run: &str) -> Vec<Value> {
    let mut lines = work.metrics(run, "step");
    for line in &mut lines {
        line.as_object_mut().unwrap().remove("triplets_per_second");
    }
    lines
}

/// An undisturbed run in `whole`.
fn whole(work: &Workspace) {
    work.run(&format!("{SETTINGS} --save-folder whole")).succeeds();
    assert_eq!(work.losses("whole").len(), 18);
}

#[track_caller]
fn same_as_whole(work: &Workspace, run: &str) {
    assert_eq!(metrics(work, run), metrics(work, "whole"));
    for model in ["final", "best", "checkpoints/step-18"] {
        let weights = |run: &str| work.bytes(&format!("{run}/{model}/model.safetensors"));
        assert!(weights(run) == weights("whole"), "{model} differs");
    }
    let state = |run: &str| work.bytes(&format!("{run}/checkpoints/step-18/optimizer.safetensors"));
    assert!(state(run) == state("whole"), "optimizer state differs");
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let work = Workspace::new();
    whole(&work);
    let resume = format!("{SETTINGS} --save-folder killed --resume");
    for (checkpoint, milliseconds) in [(2, 0), (6, 90)] {
        let running = work.start_until(&resume, &format!("killed/checkpoints/step-{checkpoint}"));
        sleep(Duration::from_millis(milliseconds));
        running.signal("KILL").dies_of(9);
        assert!(!work.path("killed/final").exists(), "the kill came too late");
    }
    // What a kill in the middle of writing leaves: half a line, half a checkpoint, half a model.
    let cut = work.text("killed/metrics.jsonl") + "{\"step\":9,\"epo";
    work.write("killed/metrics.jsonl", cut);
    for folder in ["killed/checkpoints/.step-8.partial", "killed/.best.partial"] {
        fs_err::create_dir_all(work.path(folder)).unwrap();
        work.write(&format!("{folder}/model.safetensors"), "half");
    }
    work.run(&resume).succeeds();
    same_as_whole(&work, "killed");
    assert_eq!(work.checkpoints("killed"), work.checkpoints("whole"));

    // A run that is done stays as it is.
    work.run(&resume).succeeds();
    same_as_whole(&work, "killed");

    // One bit of the newest checkpoint, and a line of the metrics: the run goes on from the checkpoint before.
    let mut state = work.bytes("killed/checkpoints/step-18/optimizer.safetensors");
    let middle = state.len().div_euclid(2);
    state[middle] ^= 1;
    work.write("killed/checkpoints/step-18/optimizer.safetensors", state);
    work.write(
        "killed/metrics.jsonl",
        [b"{\"step\": 1, \xff}\n".as_slice(), &work.bytes("killed/metrics.jsonl")].concat(),
    );
    let resumed = work.run(&resume);
    resumed.succeeds().says("step-18/optimizer.safetensors is damaged").says("from step 17").says("1 damaged line");
    same_as_whole(&work, "killed");
    assert!(work.path("killed/checkpoints/step-18.damaged").is_dir());

    // A run does not begin again in silence.
    fs_err::remove_dir_all(work.path("killed/checkpoints")).unwrap();
    work.run(&resume).fails(2, &["killed", "no checkpoints/"]).hints("--save-folder");
    assert!(work.bytes("killed/final/model.safetensors") == work.bytes("whole/final/model.safetensors"));
}

#[test]
fn a_stopped_run_saves_and_resumes_to_the_same_bytes() {
    let work = Workspace::new();
    whole(&work);
    let resume = format!("{SETTINGS} --save-folder stopped --resume");
    for (signal, code, checkpoint) in [("INT", 130, 2), ("TERM", 143, 6)] {
        let running = work.start_until(&resume, &format!("stopped/checkpoints/step-{checkpoint}"));
        let stopped = running.signal(signal);
        stopped.exits(code).says("--resume").check(stopped.stdout.is_empty(), "no data");
        assert!(!work.path("stopped/final").exists(), "the signal came too late");
        let newest = work.checkpoints("stopped").pop().unwrap();
        assert_eq!(work.losses("stopped").len(), newest, "all steps that were done are saved\n{stopped}");
    }
    work.run(&resume).succeeds();
    same_as_whole(&work, "stopped");
}

#[test]
fn a_folder_belongs_to_one_run() {
    let work = Workspace::new();
    let command = format!("{SETTINGS} --save-folder run");
    let running = work.start_until(&command, "run/checkpoints/step-2");
    work.run(&command).fails(1, &["run", "another run is working here"]).hints("--save-folder");
    work.run(&format!("{command} --resume")).fails(1, &["another run is working here"]);
    running.signal("KILL").dies_of(9);

    let before = work.bytes("run/metrics.jsonl");
    work.run(&command).fails(2, &["run holds another run"]).hints("--resume");
    let changed = work.run(&format!("{command} --resume --margin 0.1 --seed 4"));
    changed.fails(2, &["margin", "seed"]).hints("run/config.toml");
    work.run(&format!("{command} --resume").replace("epochs 6", "epochs 7")).fails(2, &["n_epochs"]);
    assert_eq!(work.bytes("run/metrics.jsonl"), before, "a refused run changes nothing");
    // Of data the content counts, not the path.
    let other = format!("{command} --resume").replace("toy/train", "toy/validation");
    work.run(&other).fails(1, &["training_file toy/validation.parquet", "other rows"]).hints("--save-folder");
    assert_eq!(work.bytes("run/metrics.jsonl"), before, "a refused run changes nothing");
    let same = command.replace("toy/train", "./toy/../toy/train");
    work.run(&format!("{same} --resume --num-workers 1 --cache off --keep-checkpoints 1")).succeeds();
    assert_eq!(work.checkpoints("run"), [18]);
}
