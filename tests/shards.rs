//! Work without gradients, dealt over processes by `--shard` or by a launcher: what comes out is what one process makes.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    diffusion::generate::TINY,
    ranks::all_succeed,
    support::harness::{Finished, Workspace},
};

const METRICS: &str =
    "--metrics social-reward=random:tiny,saturation,diversity,kid-clip --batch-size 4 --device cpu --json";

/// Every file of a folder by its name, but for hidden ones.
fn files(work: &Workspace, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs_err::read_dir(work.path(folder)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if work.path(&format!("{folder}/{name}")).is_file() && !name.starts_with('.') {
            found.insert(name.clone(), work.bytes(&format!("{folder}/{name}")));
        }
    }
    found
}

/// Whether two documents say the same but for the last bits of embeddings, which depend on the batch.
fn within(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Number(found), Value::Number(wanted)) => {
            let (found, wanted) = (found.as_f64().unwrap(), wanted.as_f64().unwrap());
            (found - wanted).abs() <= 1e-5 * wanted.abs().max(0.1)
        }
        (Value::Object(found), Value::Object(wanted)) => {
            found.len() == wanted.len() && wanted.iter().all(|(key, value)| within(&found[key], value))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| within(found, wanted))
        }
        _ => found == wanted,
    }
}

/// Makes ten images in `folder` with the flags `more`.
fn generate(folder: &str, more: &str) -> String {
    format!("{TINY} --prompts p.txt --images-per-prompt 5 --batch-size 2 --contact-sheet {more} --output {folder}")
}

fn workspace() -> Workspace {
    let work = Workspace::new();
    work.write("p.txt", "a red fox\nan owl\n");
    work
}

#[test]
fn images_are_made_by_parts() {
    let work = workspace();
    work.run(&generate("whole", "--save-final-latents whole.safetensors")).succeeds();
    let alike = |folder: &str, more: &str| {
        assert_eq!(files(&work, &format!("{folder}/images")), files(&work, "whole/images"), "{folder}");
        for name in ["images.parquet", "contact-sheet.png"] {
            assert_eq!(work.bytes(&format!("{folder}/{name}")), work.bytes(&format!("whole/{name}")), "{folder}");
        }
        assert!(
            work.run(&generate(folder, more)).succeeds().says("done: 10 image(s)").stdout.contains("images.parquet")
        );
    };
    let part =
        |shard: &str| work.run(&generate("parts", &format!("--shard {shard} --save-final-latents parts.safetensors")));
    part("1/3").succeeds().says("part 1/3 is done: 4 image(s)").check(!work.path("parts/images.parquet").exists(), "");
    assert_eq!(files(&work, "parts/images").len(), 4);
    part("0/3").succeeds().says("part 0/3 is done: 4 image(s)");
    // A batch, as the last bits of latents depend on it.
    for name in ["00000-4", "00001-0"] {
        fs_err::remove_file(work.path(&format!("parts/images/{name}.png"))).unwrap();
    }
    part("2/3").succeeds().says("part 2/3 is done: 2 image(s)");
    part("1/3").succeeds().says("2 of 4 images are there already").says("done: 10 image(s)");
    assert!(work.bytes("parts.safetensors") == work.bytes("whole.safetensors"));
    alike("parts", "--save-final-latents parts.safetensors");
    let ranks = work.run_ranks(3, &generate("ranks", ""));
    all_succeed(&ranks);
    alike("ranks", "");
    part("3/3").fails(2, &["--shard", "3/3"]);
    work.run(&generate("parts", "--seed 1 --shard 0/3")).fails(2, &["another run", "seed"]);
}

#[test]
fn images_are_judged_by_parts() {
    let work = workspace();
    for (folder, scale) in [("base", 1), ("tuned", 3)] {
        work.run(&generate(folder, &format!("--guidance-scale {scale}"))).succeeds();
    }
    let evaluate = |output: &str, more: &str| {
        format!("evaluate --images tuned --baseline base {METRICS} --output {output} --report {output}.html {more}")
    };
    let whole = work.run(&evaluate("whole", "")).succeeds().json();
    let alike = |last: &Finished, folder: &str| {
        last.succeeds().check(within(&last.json(), &whole), "what one process says");
        let names: Vec<String> = files(&work, folder).into_keys().collect();
        assert_eq!(names, ["scores.parquet", "set-distances.json"]);
        assert!(!work.path(&format!("{folder}/scores.parquet.parts")).exists());
        assert!(work.path(&format!("{folder}.html")).exists());
        work.run(&evaluate(folder, "")).succeeds().says(", 0 of them new");
    };
    let part = |shard: &str| work.run(&evaluate("parts", &format!("--shard {shard}")));
    for shard in ["2/3", "0/3"] {
        let done = part(shard);
        done.succeeds().says(&format!("part {shard} is scored")).check(done.stdout.is_empty(), "not all is known");
        assert!(!work.path("parts/scores.parquet").exists());
    }
    part("0/3").succeeds().says("part 0/3 is scored, 0 scores of it new");
    alike(part("1/3").says("part 1/3 is scored, 16 scores of it new"), "parts");
    // Without --shard, one process does what is left, of which a part has begun.
    work.run(&evaluate("left", "--shard 1/3")).succeeds();
    alike(work.run(&evaluate("left", "")).says("of them new"), "left");
    let ranks = work.run_ranks(3, &evaluate("ranks", ""));
    all_succeed(&ranks);
    let last: Vec<&Finished> = ranks.iter().filter(|rank| !rank.stdout.is_empty()).collect();
    assert_eq!(last.len(), 1, "one rank reports");
    alike(last[0], "ranks");
    let no_part = work.run("evaluate --images tuned --metrics diversity --clip random:tiny --shard 0/2");
    no_part.fails(2, &["--shard 0/2", "nothing to share"]).hints("leave --shard out");
}

#[test]
fn a_reward_is_validated_by_ranks() {
    let work = Workspace::new();
    let command = "reward validate toy/validation.parquet --model random:tiny --device cpu --batch-size 3 --json";
    let whole = work.run(command).succeeds().stdout.clone();
    for size in [2, 3] {
        let ranks = work.run_ranks(size, command);
        for (rank, ended) in ranks.iter().enumerate() {
            ended.succeeds().check(ended.stdout == if rank == 0 { &*whole } else { "" }, "rank 0 reports");
        }
    }
    let other = command.replace("validation", "train");
    let ended = work.start_ranks(&[command, &other]).into_iter().map(crate::support::harness::Running::wait);
    let ended: Vec<Finished> = ended.collect();
    ended[0].fails(1, &["rank 1", "other settings"]);
    ended[1].fails(1, &["other settings", "validation_file"]);
}
