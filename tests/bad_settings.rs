//! Command lines and configs that are wrong: exit code 2, before any data is read.

use crate::support::harness::Workspace;

const TRAIN: &str = "reward train --training-file toy/train.parquet --training-mode visual_last_layer \
    --model random:tiny --device cpu --save-folder out";

#[test]
fn unknown_names_are_met_with_the_nearest_known_one() {
    let work = Workspace::new();
    work.run(&TRAIN.replace("visual_last", "vsual_last"))
        .fails(2, &["vsual_last_layer", "--training-mode"])
        .hints("visual_last_layer");
    work.run(&format!("{TRAIN} --loss-name tripet")).fails(2, &["tripet", "--loss-name"]).hints("triplet");
    work.run(&format!("{TRAIN} --learning_rat 1")).fails(2, &["--learning-rat"]).hints("--learning-rate");
    work.run("reward trian").fails(2, &["trian"]).hints("train");
    work.run(&TRAIN.replace("cpu", "gpu")).fails(2, &["gpu", "--device"]);
    work.run(&format!("{TRAIN} --batch-size many")).fails(2, &["many", "--batch-size"]);
    work.run("reward score --model random:tinny --prompt fox golden/pixels/rgb.png")
        .fails(2, &["random:tinny"])
        .hints("random:tiny");
    assert!(!work.path("out/config.toml").exists());
}

#[cfg(feature = "torch")]
#[test]
fn values_out_of_range_and_missing_settings_are_named() {
    let work = Workspace::new();
    for (setting, value) in [
        ("batch-size", "0"),
        ("n-epochs", "0"),
        ("learning-rate", "-1e-3"),
        ("learning-rate", "nan"),
        ("margin", "-1"),
        ("gradient-accumulation", "0"),
        ("gradient-accumulation", "99"),
        ("clip-norm", "-1"),
        ("cache-gb", "0"),
        ("max-steps", "0"),
        ("max-pixels", "0"),
    ] {
        work.run(&format!("{TRAIN} --{setting} {value}")).fails(2, &[&setting.replace('-', "_"), "want"]);
    }
    for setting in ["--training-file toy/train.parquet", "--training-mode visual_last_layer", "--save-folder out"] {
        let flag = setting.split(' ').next().unwrap();
        work.run(&TRAIN.replace(setting, "")).fails(2, &[flag, "missing"]).hints(&flag[2..].replace('-', "_"));
    }
    assert!(!work.path("out").exists(), "decided before anything is touched");
}

#[cfg(feature = "torch")]
#[test]
fn a_config_file_is_held_to_the_same() {
    let work = Workspace::new();
    for (text, parts, hint) in [
        ("learning_rat = 1e-3", ["bad.toml", "learning_rat"], "learning_rate"),
        ("training_mode = 'visul'", ["bad.toml", "visul"], "visual"),
        ("loss_name = 'tripet'", ["bad.toml", "tripet"], "triplet"),
        ("preflight = 'ful'", ["bad.toml", "ful"], "full"),
    ] {
        work.write("bad.toml", text);
        work.run("reward train --config bad.toml --save-folder out").fails(2, &parts).hints(hint);
    }
    for (text, parts) in [
        ("batch_size = 0", ["batch_size", "want"]),
        ("batch_size = 'many'", ["bad.toml", "many"]),
        ("batch_size = -1", ["bad.toml", "-1"]),
        ("batch_size = ", ["bad.toml", ""]),
        ("device = 'gpu'", ["bad.toml", "gpu"]),
    ] {
        work.write("bad.toml", format!("training_file = ['toy/train.parquet']\ntraining_mode = 'all'\n{text}"));
        work.run("reward train --config bad.toml --save-folder out").fails(2, &parts);
    }
    work.run("reward train --config absent.toml").fails(2, &["absent.toml"]);
    assert!(!work.path("out").exists());
}

#[test]
fn validate_and_score_are_as_strict() {
    let work = Workspace::new();
    let validate = "reward validate toy/validation.parquet --model random:tiny --device cpu";
    let score = "reward score --model random:tiny --device cpu";
    work.run("reward validate").fails(2, &["parquet"]).hints("reward validate V.parquet");
    work.run(&format!("{validate} --batch-size 0")).fails(2, &["batch_size = 0"]);
    work.run(&format!("{validate} --slice-by colur")).fails(1, &["colur", "colour"]).hints("colour");
    work.run(score).fails(2, &["nothing to score"]).hints("--manifest");
    work.run("reward score --prompt fox golden/pixels/rgb.png").fails(2, &["--model"]);
    work.run(&format!("{score} --prompt fox")).fails(2, &[]);
    work.run(&format!("{score} --prompt fox golden/pixels/rgb.png --output s.xlsx")).fails(2, &["s.xlsx"]);
    for command in [validate, score] {
        work.write("bad.toml", "batch_sise = 3\n");
        work.run(&format!("{command} --config bad.toml")).fails(2, &["bad.toml", "batch_sise"]).hints("batch_size");
        work.write("bad.toml", "activation = 'relu'\n");
        work.run(
            &format!("{command} --prompt fox golden/pixels/rgb.png --config bad.toml")
                .replace(if command == validate { "--prompt fox golden/pixels/rgb.png" } else { "\0" }, ""),
        )
        .fails(2, &["relu"]);
    }
}
