//! `demo`: the whole pipeline, small; what it prints, what it leaves, and stopping it.

use crate::support::harness::Workspace;

/// A two-hundredth of everything.
const SMALL: &str = "demo --triplets 30 --output small";

#[test]
fn the_whole_pipeline_ends_with_the_report() {
    let work = Workspace::new();
    let demo = work.run(SMALL);
    demo.succeeds().check(demo.stdout.ends_with("small/report.html\n"), "the report's path in the last line");
    for part in ["accuracy", "social-reward", "true popularity", "colour as asked", "shape as asked", "by chance"] {
        demo.check(demo.stdout.contains(part), part);
    }
    for stage in 1..=6 {
        demo.says(&format!("[{stage}/6, after"));
    }
    let report = work.text("small/report.html");
    for part in ["tuned against base", " ring", "data:image/", "Training: gain of held-out images"] {
        demo.check(report.contains(part), part);
    }
    for file in [
        "clip/final/config.json",
        "liked/final/config.json",
        "reward/best/model.safetensors",
        "text-to-image/model/model_index.json",
        "base/images.parquet",
        "finetune/lora/pytorch_lora_weights.safetensors",
        "finetune/tuned/images.parquet",
        "finetune/tuned/scores.parquet",
    ] {
        assert!(work.path("small").join(file).is_file(), "{file}");
    }
    let truth = work.run("demo --output small --truth small/finetune/tuned");
    truth
        .succeeds()
        .check(truth.stdout.starts_with("The truth") && demo.stdout.contains(truth.stdout.trim_end()), "as the demo");
    work.run("demo --output small --truth small/nothing").fails(1, &["small/nothing"]);
    work.run("demo --output none --truth small/finetune/tuned").fails(1, &["none/base"]).hints("--output DIR");
    // A second one takes the place of the first.
    let again = work.run(SMALL);
    again.succeeds().check(again.stdout == demo.stdout, "the same figures");
}

#[test]
fn a_folder_of_other_files_is_left_alone() {
    let work = Workspace::new();
    fs_err::create_dir_all(work.path("mine/base")).unwrap();
    work.run("demo --output mine").fails(2, &["mine", "none of a demo"]).hints("--output");
    assert!(work.path("mine/base").is_dir() && !work.path("mine/data").exists());
}

#[test]
fn a_stopped_demo_says_so() {
    let work = Workspace::new();
    let stopped = work.start_until(SMALL, "small/text-to-image/config.toml").signal("INT");
    stopped.exits(130).check(!stopped.stdout.contains("report.html"), "no report");
}
