//! The commands end to end: what they print and the files they leave.

#[cfg(feature = "torch")]
use std::collections::BTreeMap;

use parquet::{file::reader::SerializedFileReader, record::RowAccessor};
use serde_json::Value;

use crate::support::harness::Workspace;

#[cfg(feature = "torch")]
const UPPER: &str = "visual_upper_layers_textual_upper_layers";

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The seed's two command lines, its script names replaced by ours; a small model and the CPU are asked for besides.
#[cfg(feature = "torch")]
#[test]
fn the_seeds_command_lines_run_as_they_are() {
    let work = Workspace::new();
    let trained = work.run(&format!(
        "reward train --training_file toy/train.parquet --training_mode {UPPER} --batch_size 16 --n_epochs 2 \
         --save_folder ./clip_model --loss_name triplet \
         --model random:tiny --device cpu --validation_file toy/validation.parquet"
    ));
    trained.succeeds().check(trained.stdout.is_empty(), "no data on stdout").says("done: ./clip_model/final");

    let steps = work.metrics("clip_model", "loss");
    assert_eq!(steps.len(), 6, "40 triplets in batches of 16, 16 and 8, twice");
    for (index, line) in steps.iter().enumerate() {
        assert_eq!(line["step"], index as u64 + 1);
        assert_eq!(line["epoch"], index as u64 / 3 + 1);
        assert_eq!(line["learning_rate"], 3e-5);
        for key in ["loss", "grad_norm", "triplets_per_second"] {
            assert!(line[key].as_f64().unwrap() > 0.0, "{key} in {line}");
        }
    }
    let validations = work.metrics("clip_model", "validation_accuracy");
    assert_eq!(validations.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 3, 6]);
    assert!(validations.iter().all(|line| line.get("loss").is_none()));

    let config: toml::Table = work.text("clip_model/config.toml").parse().unwrap();
    assert_eq!(config["training_mode"].as_str(), Some(UPPER));
    assert_eq!(config["batch_size"].as_integer(), Some(16));
    assert_eq!(config["margin"].as_float(), Some(0.3));
    assert_eq!(work.checkpoints("clip_model"), [3, 6]);
    for model in ["final", "best", "checkpoints/step-3"] {
        for file in ["config.json", "model.safetensors", "preprocessor_config.json", "vocab.json", "merges.txt"] {
            assert!(!work.bytes(&format!("clip_model/{model}/{file}")).is_empty(), "{model}/{file}");
        }
    }
    let events: Vec<_> = fs_err::read_dir(work.path("clip_model/tensorboard")).unwrap().collect();
    assert_eq!(events.len(), 1);
    assert!(events[0].as_ref().unwrap().metadata().unwrap().len() > 500);

    work.run("reward export --model clip_model/best --format openai --output classifier_checkpoint.safetensors")
        .succeeds();
    let validated = work.run(
        "reward validate 'toy/validation.parquet' --checkout_path 'classifier_checkpoint.safetensors' --device 'cpu' \
         --batch_size 1024 --num_workers 9 --json",
    );
    let best = validations.iter().map(|line| line["validation_accuracy"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(validated.json()["accuracy"].as_f64().unwrap(), best);
}

#[test]
fn validate_prints_the_figures_and_nothing_else() {
    let work = Workspace::new();
    let command = "reward validate toy/test.parquet --model random:tiny --device cpu --slice-by shape";
    let figures = work.run(&format!("{command} --json")).json();
    assert_eq!(
        keys(&figures),
        [
            "pairs",
            "accuracy",
            "accuracy_ties_as_wins",
            "ties",
            "interval_low",
            "interval_high",
            "bootstrap_low",
            "bootstrap_high",
            "mean_gap",
            "auc",
            "skipped",
            "slices"
        ]
    );
    assert_eq!(figures["pairs"], 10);
    let slices = figures["slices"].as_array().unwrap();
    assert!(slices.iter().any(|slice| slice["column"] == "shape"));
    for slice in slices {
        assert_eq!(keys(slice), ["column", "value", "pairs", "accuracy", "interval_low", "interval_high"]);
    }
    let text = work.run(command);
    let accuracy = format!("accuracy      {:.4}", figures["accuracy"].as_f64().unwrap());
    text.succeeds().check(text.stdout.starts_with(&accuracy), &accuracy);
}

#[test]
fn scores_read_the_same_in_every_form() {
    let work = Workspace::new();
    work.write(
        "rows.csv",
        "prompt,path\n\"a red fox, \"\"twice\"\"\",golden/pixels/./photo.jpg\nfox,./golden/pixels/rgb.png\n",
    );
    let command = "reward score --model random:tiny --device cpu --manifest rows.csv";
    let answer = work.run(&format!("{command} --json")).json();
    let rows = answer.as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| row["path"].as_str().unwrap()).collect::<Vec<_>>(),
        ["golden/pixels/./photo.jpg", "./golden/pixels/rgb.png"]
    );
    assert_eq!(rows[0]["prompt"], "a red fox, \"twice\"");
    assert!(rows.iter().all(|row| keys(row) == ["path", "prompt", "score"]));
    let scores: Vec<f32> = rows.iter().map(|row| row["score"].as_f64().unwrap() as f32).collect();
    assert!(scores.iter().all(|score| score.abs() <= 1.0) && scores[0] != scores[1], "{scores:?}");

    for form in ["parquet", "csv", "jsonl"] {
        let written = work.run(&format!("{command} --output scores.{form}"));
        written.succeeds().check(written.stdout.is_empty(), "the scores in the file alone");
    }
    let parquet = fs_err::File::open(work.path("scores.parquet")).unwrap().into_parts().0;
    let parquet = SerializedFileReader::new(parquet).unwrap().into_iter().map(Result::unwrap);
    let parquet: Vec<_> = parquet.map(|row| (row.get_string(0).unwrap().clone(), row.get_float(2).unwrap())).collect();
    let mut csv = csv::Reader::from_path(work.path("scores.csv")).unwrap();
    assert_eq!(csv.headers().unwrap(), ["path", "prompt", "score"].as_slice());
    let csv: Vec<_> =
        csv.records().map(Result::unwrap).map(|row| (row[0].to_owned(), row[2].parse().unwrap())).collect();
    let lines = work.text("scores.jsonl");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wanted: Vec<_> =
        rows.iter().zip(&scores).map(|(row, score)| (row["path"].as_str().unwrap().to_owned(), *score)).collect();
    assert_eq!(parquet, wanted);
    assert_eq!(csv, wanted);
    assert_eq!(lines, *rows);

    let typed = work.run("reward score --model random:tiny --device cpu --prompt fox ./golden/pixels/rgb.png");
    // The last bits of a product may change with the number of images in a batch.
    let line = typed.stdout.strip_suffix("\t./golden/pixels/rgb.png\n").and_then(|score| score.parse::<f32>().ok());
    let near = line.is_some_and(|score| (score - scores[1]).abs() < 1e-5);
    typed.succeeds().check(near, "score, tab, path");
}

#[test]
fn an_exported_model_scores_the_same() {
    let work = Workspace::new();
    let scores = |model: &str| -> Vec<f64> {
        let command = format!("reward score --model {model} --device cpu --prompt 'a red fox' --json");
        let answer = work.run(&format!("{command} golden/pixels/photo.jpg golden/pixels/grey.jpg")).json();
        answer.as_array().unwrap().iter().map(|row| row["score"].as_f64().unwrap()).collect()
    };
    let before = scores("random:tiny --seed 3");
    assert_ne!(before, scores("random:tiny"));
    for (format, output) in [("hf", "folder"), ("openai", "openai.safetensors"), ("open_clip", "open_clip.safetensors")]
    {
        let exported =
            work.run(&format!("reward export --model random:tiny --seed 3 --format {format} --output {output}"));
        exported.succeeds().check(exported.stdout == format!("{output}\n"), "the output on stdout");
        assert_eq!(scores(output), before, "{format}");
    }
    let again = "reward export --model openai.safetensors --format hf --output again";
    work.run(again).succeeds();
    assert_eq!(work.bytes("again/model.safetensors"), work.bytes("folder/model.safetensors"));
    work.run("reward export --model openai.safetensors --format openai --output x.pth")
        .fails(2, &["x.pth"])
        .hints(".pth");
}

#[cfg(feature = "torch")]
#[test]
fn a_config_file_does_what_flags_do_and_a_flag_beats_it() {
    let work = Workspace::new();
    let settings = BTreeMap::from([
        ("training_file", "['toy/train.parquet']"),
        ("training_mode", "'visual_last_layer'"),
        ("model", "'random:tiny'"),
        ("device", "'cpu'"),
        ("batch_size", "8"),
        ("learning_rate", "1e-3"),
        ("margin", "0.5"),
        ("schedule", "'cosine'"),
        ("warmup_steps", "2"),
        ("clip_norm", "0.5"),
        ("max_steps", "4"),
        ("strict", "false"),
        ("seed", "7"),
    ]);
    let file: String = settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    work.write("run.toml", file);
    let flag = |(key, value): (&&str, &&str)| match *key {
        "strict" => "--strict=false ".to_owned(),
        "training_file" => "--training-file toy/train.parquet ".to_owned(),
        _ => format!("--{} {value} ", key.replace('_', "-")),
    };
    let flags: String = settings.iter().map(flag).collect();
    work.run(&format!("reward train {flags} --save-folder flags")).succeeds();
    work.run("reward train --config run.toml --save-folder file").succeeds();
    assert!(work.bytes("flags/final/model.safetensors") == work.bytes("file/final/model.safetensors"));
    let saved = |run: &str| work.text(&format!("{run}/config.toml")).parse::<toml::Table>().unwrap();
    work.run("reward train --config run.toml --save-folder flags-win --seed 8 --max-steps 2").succeeds();
    assert_eq!(saved("flags-win")["seed"].as_integer(), Some(8));
    assert_eq!(saved("flags-win")["margin"].as_float(), Some(0.5));
    assert_eq!(work.losses("flags-win").len(), 2);
    assert_ne!(work.losses("flags-win"), work.losses("file")[..2]);
    // What a run leaves is itself a config.
    work.run("reward train --config file/config.toml --save-folder again").succeeds();
    assert!(work.bytes("again/final/model.safetensors") == work.bytes("file/final/model.safetensors"));

    work.write("validate.toml", "model = 'random:tiny'\nbatch_size = 4\ndevice = 'cpu'\n");
    work.run("reward validate toy/validation.parquet --config validate.toml --json").json();
    work.write("score.toml", "model = 'random:tiny'\nmanifest = 'golden/tables/manifest.csv'\ndevice = 'cpu'\n");
    let scored = work.run("reward score --config score.toml --json").json();
    assert_eq!(scored.as_array().unwrap().len(), 3);
}
