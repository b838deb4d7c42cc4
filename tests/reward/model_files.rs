//! What a CLIP's own files say: activation and preprocessing, in every command that reads one.

use serde_json::Value;

use crate::{evaluate::figures::two_sets, support::harness::Workspace};

const SCORE: &str = "reward score --prompt fox golden/pixels/rgb.png --device cpu --json --model";

/// Changes a key of a JSON file.
fn set(work: &Workspace, file: &str, key: &str, value: Value) {
    let mut settings: Value = serde_json::from_slice(&work.bytes(file)).unwrap();
    settings[key] = value;
    work.write(file, settings.to_string());
}

fn score(work: &Workspace, model: &str) -> f64 {
    let scored = work.run(&format!("{SCORE} {model}"));
    scored.succeeds();
    scored.json()[0]["score"].as_f64().unwrap()
}

#[test]
fn preprocessing_is_shown_used_and_exported() {
    let work = Workspace::new();
    work.run("reward export --model random:tiny --format hf --output hf").succeeds();
    let openais = score(&work, "hf");
    set(&work, "hf/preprocessor_config.json", "image_mean", vec![0.5; 3].into());
    let other = work.run(&format!("{SCORE} hf"));
    other.says("pictures cropped (bicubic), mean 0.5 0.5 0.5, std 0.26862955");
    let half = other.json()[0]["score"].as_f64().unwrap();
    assert!((half - openais).abs() > 1e-4, "{half}, {openais}");
    work.run("reward export --model hf --format openai --output alone.safetensors").says("mean 0.5 0.5 0.5");
    work.run("reward export --model alone.safetensors --format hf --output again").says("mean 0.5 0.5 0.5");
    for model in ["alone.safetensors", "again", "again/model.safetensors"] {
        assert_eq!(score(&work, model), half, "{model}");
    }
    set(&work, "hf/preprocessor_config.json", "size", 65.into());
    let error = work.run(&format!("{SCORE} hf"));
    error.fails(1, &["hf/preprocessor_config.json: `size` is 65, but the model's image_size is 64"]);
    work.write("hf/merges.txt", "");
    set(&work, "hf/preprocessor_config.json", "size", 64.into());
    work.run(&format!("{SCORE} hf")).fails(1, &["hf/merges.txt: 0 merges, want 48894"]).hints("another tokenizer");
}

#[test]
fn an_activation_that_is_not_stated_is_warned_of_and_one_that_is_overridden_is_said() {
    let work = Workspace::new();
    let clip = "golden/metrics/clip.pt";
    work.run(&format!("{SCORE} {clip}"))
        .succeeds()
        .says("clip.pt does not say which activation it has")
        .says("--activation gelu");
    let quick = score(&work, &format!("{clip} --activation quick-gelu"));
    let exact = work.run(&format!("{SCORE} {clip} --activation gelu"));
    exact.check(!exact.stderr.contains("warning"), "no warning");
    assert!((exact.json()[0]["score"].as_f64().unwrap() - quick).abs() > 1e-5);
    work.run("reward export --model random:tiny --format hf --output hf").succeeds();
    work.run(&format!("{SCORE} hf --activation gelu"))
        .says("--activation gelu is used, though hf/config.json says quick-gelu");
}

/// Scores of one activation are not those of the other, also where they are kept.
#[test]
fn evaluate_takes_an_activation() {
    let work = two_sets();
    let evaluate = |more: &str| work.run(&format!("evaluate --device cpu --images tuned/set.csv --json {more}"));
    let mean = |more: &str| {
        let answer = evaluate(&format!("--metrics clip-score=golden/metrics/clip.pt,diversity {more}"));
        let sets = answer.succeeds().json();
        ["clip-score", "diversity-set"].map(|metric| sets["sets"][0]["metrics"][metric]["mean"].as_f64().unwrap())
    };
    let quick = mean("");
    let exact = mean("--activation gelu");
    for (quick, exact) in quick.iter().zip(exact) {
        assert!((quick - exact).abs() > 1e-6, "{quick}, {exact}");
    }
    assert_eq!(mean("--activation quick-gelu"), quick);
    evaluate("--metrics clip-score=golden/metrics/clip.pt --activation quick-gelu").says(" 0 of them new");
    let unused = if cfg!(feature = "torch") { "saturation" } else { return };
    evaluate(&format!("--metrics {unused} --activation gelu"))
        .fails(2, &["--activation is given, but no metric uses it"]);
}

#[cfg(feature = "torch")]
#[test]
fn a_trained_model_keeps_the_preprocessing_of_its_base() {
    let work = Workspace::new();
    work.run("reward export --model random:tiny --format hf --output hf").succeeds();
    set(&work, "hf/preprocessor_config.json", "resample", 2.into());
    set(&work, "hf/preprocessor_config.json", "size", serde_json::json!({"height": 64, "width": 64}));
    let train = "reward train --training-file toy/train.parquet --training-mode visual_last_layer --device cpu";
    let trained = work.run(&format!("{train} --batch-size 4 --max-steps 1 --model hf --save-folder out"));
    trained.succeeds().says("pictures squashed (bilinear)");
    for folder in ["out/final", "out/checkpoints/step-1"] {
        let settings: Value =
            serde_json::from_slice(&work.bytes(&format!("{folder}/preprocessor_config.json"))).unwrap();
        assert_eq!(
            (&settings["resample"], &settings["size"]),
            (&2.into(), &serde_json::json!({"height": 64, "width": 64}))
        );
    }
}
