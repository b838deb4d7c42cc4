//! The same work on a CUDA device as on the CPU. Every test passes with a printed reason where there is no device.
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use serde_json::Value;

use crate::{
    diffusion::generate::pixels,
    evaluate::figures::{EVALUATE, two_sets},
    support::harness::Workspace,
    support::tensors::{floats, tensor},
};

/// Whether there is a device to test on.
fn device() -> bool {
    let answer = Workspace::new().run("doctor --json").json();
    let found = answer["libtorch"]["cuda_devices"].as_u64().unwrap() > 0;
    if !found {
        eprintln!("skipped: no CUDA device ({})", answer["libtorch"]["cuda"]);
    }
    found
}

#[track_caller]
fn close(found: &[f64], wanted: &[f64], tolerance: f64, name: &str) {
    assert_eq!(found.len(), wanted.len(), "{name}");
    for (step, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let difference = (found - wanted).abs() / wanted.abs().max(0.1);
        assert!(difference <= tolerance, "{name}, {step}: {found} for {wanted} ({difference:.1e})");
    }
}

#[test]
fn a_reward_trains_with_the_losses_of_the_cpu() {
    if !device() {
        return;
    }
    let work = Workspace::new();
    let upper = "visual_upper_layers_textual_upper_layers";
    for (mode, loss) in [("all", "triplet"), ("all", "info-nce"), (upper, "bradley-terry"), (upper, "triplet")] {
        let losses = |settings: &str| {
            let run = format!("{mode} {loss} {settings}").replace([' ', '-'], "_");
            let command = format!(
                "reward train --training-file toy/train.parquet --model random:tiny --batch-size 10 --learning-rate 1e-4 \
                 --n-epochs 2 --checkpoint-every 0 --training-mode {mode} --loss-name {loss} --save-folder {run} {settings}"
            );
            work.run(&command).succeeds();
            work.losses(&run)
        };
        let wanted = losses("--device cpu");
        close(&losses("--device cuda"), &wanted, 2e-3, &format!("{mode}, {loss}"));
        close(&losses("--device cuda --gradient-checkpointing"), &wanted, 2e-3, "with checkpointing");
        close(&losses("--device cuda --precision bf16"), &wanted, 0.05, &format!("{mode}, {loss}, bf16"));
    }
}

#[test]
fn pairs_and_image_sets_get_the_scores_of_the_cpu() {
    if !device() {
        return;
    }
    let work = two_sets();
    let gap = |device: &str| {
        let command = format!("reward validate toy/validation.parquet --model random:tiny --device {device} --json");
        work.run(&command).json()["mean_gap"].as_f64().unwrap()
    };
    assert!((gap("cuda") - gap("cpu")).abs() < 1e-3, "{} for {}", gap("cuda"), gap("cpu"));
    let means = |device: &str| -> Vec<f64> {
        let command = EVALUATE.replace("--device cpu", &format!("--device {device}"));
        let answer = work.run(&format!(
            "{command},saturation,contrast,edge-density,diversity,fid-clip --images tuned/set.csv --baseline base/set.csv \
             --output {device} --json"
        ));
        let answer = answer.json();
        let metrics = answer["sets"][0]["metrics"].as_object().unwrap();
        metrics.values().map(|metric| metric["mean"].as_f64().unwrap()).collect()
    };
    close(&means("cuda"), &means("cpu"), 5e-3, "means");
}

#[test]
fn images_are_those_of_the_cpu() {
    if !device() {
        return;
    }
    let work = Workspace::new();
    let generate = |settings: &str, output: &str| {
        work.run(&format!(
            "diffusion generate --model random:sd-tiny --prompt snow --steps 8 --height 64 --width 64 --output {output} \
             --save-final-latents {output}.safetensors {settings}"
        ))
        .succeeds();
        let file = work.bytes(&format!("{output}.safetensors"));
        let latents = floats(tensor(&file, "latents").1);
        (latents, pixels(&work, &format!("{output}/images/00000-0.png")).into_raw())
    };
    let (wanted, image) = generate("--device cpu", "cpu");
    for (settings, output, norm, levels) in [
        ("--device cuda --precision fp32", "fp32", 5e-3, 1.0),
        ("--device cuda", "bf16", 0.1, 6.0),
        ("--device cuda --scheduler dpmpp-2m --batch-size 3 --images-per-prompt 3", "more", f64::INFINITY, 256.0),
    ] {
        let (latents, found) = generate(settings, output);
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let apart = square(&mut latents.iter().zip(&wanted).map(|(a, b)| a - b)) / square(&mut wanted.iter().copied());
        assert!(apart < norm, "{output}: latents {apart} apart");
        assert!(latents.iter().all(|value| value.is_finite()));
        let difference: f64 = found.iter().zip(&image).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        assert!(difference / (image.len() as f64) < levels, "{output}: {difference} in {} values", image.len());
    }
}

#[test]
fn every_method_takes_the_steps_of_the_cpu() {
    if !device() {
        return;
    }
    let work = Workspace::new();
    work.write("prompts.txt", "a red fox\nan owl\na house by the sea\ntwo boats\n");
    let methods = [
        "draft-k --truncation-steps 2",
        "draft-lv --copies 2",
        "drtune --truncation-steps 2",
        "align-prop",
        "refl --shaping relu --margin 4",
        "draft-k --truncation-steps 1 --train full --learning-rate 1e-5",
    ];
    for (index, method) in methods.iter().enumerate() {
        let figures = |settings: &str, name: &str| -> (Vec<f64>, Vec<f64>) {
            let run = format!("{index}-{name}");
            work.run(&format!(
                "diffusion finetune --model random:sd-tiny --reward random:tiny --prompts prompts.txt --algorithm {method} \
                 --scale-images 4 --sample-steps 4 --height 32 --width 32 --batch-size 2 --train-steps 3 --anchor 0.1 \
                 --evaluate-every 0 --checkpoint-every 0 --output {run} {settings}"
            ))
            .succeeds();
            let lines = work.metrics(&run, "loss");
            let all = |key: &str| lines.iter().map(|line: &Value| line[key].as_f64().unwrap()).collect();
            (all("loss"), all("grad_norm"))
        };
        let (loss, gradient) = figures("--device cpu", "cpu");
        for (settings, name, tolerance) in [
            ("--device cuda --precision fp32 --gradient-checkpointing off", "fp32", 0.02),
            ("--device cuda --precision fp32 --gradient-checkpointing on", "checkpointed", 0.02),
            ("--device cuda", "bf16", 0.5),
        ] {
            let (found, norms) = figures(settings, name);
            close(&found, &loss, tolerance, &format!("{method}, {name}: loss"));
            close(&norms, &gradient, tolerance, &format!("{method}, {name}: gradient"));
        }
    }
}
