//! What the demo is to show, on one fixed seed (`make figures`, a quarter of an hour) or on three (`make figures-all`), so only
//! where it is asked for.
#![allow(clippy::print_stderr, reason = "the figures are worth a look also where they are good enough")]

use std::time::Instant;

use crate::support::harness::Workspace;

const SEEDS: [u64; 3] = [0, 1, 2];
/// The harness gives each program one thread, as its tests run beside one another.
const ALONE: &str = "unset OMP_NUM_THREADS;";

/// The numbers of the line that begins with `name`.
#[track_caller]
fn numbers(text: &str, name: &str) -> Vec<f64> {
    let line = text.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    let words = line.split(|c: char| !(c.is_ascii_digit() || ".+-".contains(c)));
    words.filter_map(|word| word.parse().ok()).collect()
}

/// The lower bound of how much true popularity rose.
fn gain(table: &str) -> f64 {
    numbers(table, "true popularity rose by")[1]
}

#[test]
#[ignore = "a quarter of an hour: `make figures`"]
fn the_demo_shows_what_it_is_to_show() {
    shows(&SEEDS[2..]);
}

#[test]
#[ignore = "three quarters of an hour: `make figures-all`"]
fn every_seed_shows_it() {
    shows(&SEEDS);
}

/// Runs demos and, after several, a second method on the last one's model.
fn shows(seeds: &[u64]) {
    let work = Workspace::new();
    let mut missed = Vec::new();
    for seed in seeds {
        let start = Instant::now();
        let demo = work.run_after(ALONE, &format!("demo --seed {seed} --output demo-{seed}"));
        demo.succeeds();
        let seconds = start.elapsed().as_secs();
        let table = &demo.stdout[demo.stdout.find("The truth").unwrap()..];
        let accuracy = numbers(&demo.stdout, "accuracy");
        let (accuracy, low) = (accuracy[0], accuracy[4]);
        let ceiling = numbers(&demo.stderr, "requests that no preference")[0];
        let (colour, shape) = (numbers(table, "colour as asked"), numbers(table, "shape as asked"));
        eprintln!("seed {seed}, {seconds} s: reward {accuracy}, at least {low}, the noise allows {ceiling}\n{table}");
        let mut want = |holds: bool, what: &str| {
            if !holds {
                missed.push(format!("seed {seed}: {what}"));
            }
        };
        want((0.80..=0.95).contains(&ceiling), "a ceiling of 0.80 to 0.95");
        want(low > 0.5, "a reward better than chance");
        want(accuracy >= ceiling - 0.05, "a reward within five points of the ceiling");
        want(gain(table) > 0.0, "a rise of true popularity beyond its interval");
        want(colour[1] >= 0.80, "the base model's colour in 80 %, by the lower bound");
        want(shape[1] >= 0.60, "the base model's shape in 60 %, by the lower bound");
        want(colour[3] >= colour[0] - 0.05, "a tuned colour not five points less");
        want(shape[3] >= shape[0] - 0.05, "a tuned shape not five points less");
    }
    if seeds.len() > 1 {
        let table = second_method(&work);
        eprintln!("seed {}, DRaFT-LV: {table}", SEEDS[2]);
        if gain(&table) <= 0.0 {
            missed.push("a second method's rise of true popularity beyond its interval".to_owned());
        }
    }
    assert!(missed.is_empty(), "missed:\n{}", missed.join("\n"));
}

/// The truth about DRaFT-LV on the last seed's model, with the demo's settings.
fn second_method(work: &Workspace) -> String {
    let settings = include_str!("../../configs/demo/finetune.toml");
    work.write("draft-lv.toml", settings.replace("draft-k", "draft-lv").replace("truncation_steps = 1\n", ""));
    work.write("images.toml", include_str!("../../configs/demo/images.toml"));
    let seed = SEEDS[2];
    let demo = format!("demo-{seed}");
    let model = format!("--seed {seed} --model {demo}/text-to-image/model");
    let held_out = format!("{demo}/data/held-out.txt");
    work.run_after(
        ALONE,
        &format!(
            "diffusion finetune --config draft-lv.toml {model} --reward social-reward={demo}/reward/best \
             --reward clip-score={demo}/clip/final --prompts {demo}/data/prompts.txt --held-out-prompts {held_out} --output second"
        ),
    )
    .succeeds();
    work.run_after(
        ALONE,
        &format!(
            "diffusion generate --config images.toml {model} --lora second/lora --prompts {held_out} --output second/images"
        ),
    )
    .succeeds();
    work.run(&format!("demo --output {demo} --truth second/images")).succeeds().stdout.clone()
}
