//! What a user meets first: `--help`, the toy data, `doctor`.

use crate::support::{harness::Workspace, triplets};

#[test]
fn help_of_every_command_works_and_shows_examples() {
    let work = Workspace::new();
    for (command, example) in [
        ("", "reward"),
        ("reward", "validate"),
        ("reward train", "social-reward reward train --config configs/reward/paper.toml"),
        ("reward validate", "social-reward reward validate V.parquet --checkout-path"),
        ("reward score", "social-reward reward score --model OUT/best"),
        ("reward export", "social-reward reward export --model"),
        ("diffusion", "verify"),
        ("diffusion generate", "social-reward diffusion generate --model random:sd-tiny --prompt"),
        ("diffusion finetune", "social-reward diffusion finetune --config configs/finetune/social-reward-sd21.toml"),
        ("diffusion export", "social-reward diffusion export --lora pytorch_lora_weights.safetensors --format kohya"),
        ("diffusion verify", "social-reward diffusion verify --model stable-diffusion-2-1-base"),
        ("evaluate", "social-reward evaluate --images tuned/images.parquet --baseline base/images.parquet"),
        ("demo", "--data-only"),
        ("doctor", "--json"),
    ] {
        let help = work.run(&format!("{command} --help"));
        help.succeeds().check(help.stdout.contains(example), &format!("`{example}` in the help"));
        help.check(help.stdout.contains("Usage: social-reward"), "the usage").check(help.stderr.is_empty(), "no more");
    }
    let version = work.run("--version");
    version.succeeds().check(version.stdout.starts_with("social-reward "), "the version");
    work.run("").exits(2);
}

#[test]
fn the_toy_data_is_written_alone() {
    let work = Workspace::new();
    let written = work.run("demo --data-only data --triplets 20 --seed 5");
    written.succeeds().check(written.stdout == "data\n", "the folder on stdout").says("noise ceiling");
    for (split, rows) in [("train", 20), ("validation", 2), ("test", 5)] {
        let table = triplets::read(&work.path(&format!("data/{split}.parquet")));
        assert_eq!(table.len(), rows);
        for path in table.iter().flat_map(|row| &row[1..]) {
            assert!(work.path("data").join(path).is_file(), "{path}");
        }
    }
    work.run("demo --data-only none --triplets 0").fails(1, &["at least one triplet"]);
    work.run("demo --data-only toy/train.parquet/x").fails(1, &["toy/train.parquet/x"]);
}

#[test]
fn doctor_says_what_this_build_has() {
    let work = Workspace::new();
    let report = work.run("doctor --json").json();
    for key in ["version", "build", "libtorch", "jpeg_decoder", "cpu", "memory", "free_disk_bytes", "missing"] {
        assert!(report.get(key).is_some(), "{key} in {report}");
    }
    assert_eq!(report["libtorch"].is_object(), cfg!(feature = "torch"));
    let text = work.run("doctor");
    let version = report["version"].as_str().unwrap();
    text.succeeds().check(text.stdout.starts_with(&format!("social-reward {version}")), "the same version");
}
