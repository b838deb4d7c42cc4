//! `evaluate`: figures, the cache, the report, and sets that are wrong.

use parquet::{file::reader::SerializedFileReader, record::RowAccessor};
use serde_json::Value;

use crate::support::{harness::Workspace, image_sets};

pub(crate) const EVALUATE: &str = "evaluate --device cpu --metrics social-reward=random:tiny";
/// What needs no libtorch is measured in both builds.
const METRICS: &str = if cfg!(feature = "torch") { ",saturation,diversity,fid-clip,kid-clip" } else { ",diversity" };

/// Four images for each of three prompts.
pub(crate) fn write_set(work: &Workspace, name: &str, hue: u8) {
    let prompts = ["a red fox", "an <owl> & \"friends\"", "snow, at night"];
    image_sets::write_set(work, name, hue, &prompts.map(|prompt| (prompt, &[[48, 40]; 4][..])));
}

pub(crate) fn two_sets() -> Workspace {
    let work = Workspace::new();
    write_set(&work, "tuned", 200);
    write_set(&work, "base", 20);
    work
}

pub(crate) fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn two_sets_are_compared_and_the_second_run_computes_nothing() {
    let work = two_sets();
    let command = format!("{EVALUATE}{METRICS} --images tuned/set.csv --baseline base/set.csv");
    let first = work.run(&format!("{command} --json --report report.html"));
    let answer = first.json();
    assert_eq!(keys(&answer), ["sets", "comparisons"]);
    let sets = answer["sets"].as_array().unwrap();
    assert_eq!(sets.len(), 2);
    for set in sets {
        assert_eq!(keys(set), ["name", "n_images", "n_prompts", "metrics"]);
        assert_eq!((&set["n_images"], &set["n_prompts"]), (&12.into(), &3.into()));
        for (name, metric) in set["metrics"].as_object().unwrap() {
            let wanted = ["mean", "std", "interval_low", "interval_high", "convention", "checkpoint_sha256"];
            assert_eq!(keys(metric), wanted, "{name}");
            if name.ends_with("-clip") {
                let (of_equal, of_far) = if name == "kid-clip" { (-1.0, 8.0) } else { (0.0, 4.0) };
                assert!((of_equal..of_far).contains(&metric["mean"].as_f64().unwrap()) && metric["std"].is_null());
                continue;
            }
            let figure = |key: &str| metric[key].as_f64().unwrap();
            assert!(figure("interval_low") <= figure("mean") && figure("mean") <= figure("interval_high"), "{name}");
            assert_eq!(metric["checkpoint_sha256"].as_str().map(str::len), (name != "saturation").then_some(64));
        }
    }
    let comparisons = answer["comparisons"].as_array().unwrap();
    let names: Vec<_> = comparisons.iter().map(|comparison| comparison["metric"].as_str().unwrap()).collect();
    let torch = ["social-reward", "saturation", "diversity", "diversity-set"];
    let portable = ["social-reward", "diversity", "diversity-set"];
    assert_eq!(names, if cfg!(feature = "torch") { &torch[..] } else { &portable[..] });
    for comparison in comparisons {
        assert_eq!(
            keys(comparison),
            [
                "metric",
                "n_pairs",
                "win_rate",
                "ties",
                "interval_low",
                "interval_high",
                "mean_difference",
                "mean_difference_low",
                "mean_difference_high",
                "p_value"
            ]
        );
        assert_eq!(comparison["n_pairs"], 12);
    }
    let (mean, other) = (&sets[0]["metrics"]["social-reward"]["mean"], &sets[1]["metrics"]["social-reward"]["mean"]);
    let difference = mean.as_f64().unwrap() - other.as_f64().unwrap();
    assert!((comparisons[0]["mean_difference"].as_f64().unwrap() - difference).abs() < 1e-9);

    let columns = names.len();
    first.says(&format!("{} scores in tuned/scores.parquet", 24 * columns));
    let table = fs_err::File::open(work.path("tuned/scores.parquet")).unwrap().into_parts().0;
    let rows: Vec<_> = SerializedFileReader::new(table).unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 24 * columns);
    let names: Vec<_> = rows[0].get_column_iter().map(|(name, _)| name.as_str()).collect();
    for name in ["prompt", "path", "seed", "metric", "score", "image_sha256", "checkpoint_sha256"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(rows.iter().all(|row| row.get_string(7).unwrap().len() == 64));

    let second = work.run(&format!("{command} --json"));
    second.says(", 0 of them new").check(second.stdout == first.stdout, "the same answer from the cache");
    let loaded = "CLIP, 64 px";
    first.says(loaded).check(!second.stderr.contains(loaded), "no CLIP loaded for what is known");
    let text = work.run(&command);
    text.succeeds().check(text.stdout.contains("tuned/set.csv against base/set.csv"), "a table for people");
    text.check(text.stdout.contains("agreement of social-reward and"), "agreement of the metrics");

    // Another picture, and only its own score is computed again.
    let image = work.bytes("base/0-0.png");
    fs_err::write(work.path("tuned/0-0.png"), image).unwrap();
    let plain = format!("{EVALUATE} --images tuned/set.csv --baseline base/set.csv --json");
    let changed = work.run(&plain);
    changed.says("24 scores in tuned/scores.parquet, 0 of them new");
    assert_eq!(changed.json()["comparisons"][0]["ties"], 1);
}

#[test]
fn the_report_is_one_file_with_everything_escaped() {
    let work = two_sets();
    work.write("tuned/metrics.jsonl", "{\"step\":1,\"reward_mean\":0.1}\n{\"step\":2,\"reward_mean\":0.2}\n");
    let command = format!("{EVALUATE} --images tuned/set.csv --baseline base/set.csv --report report.html");
    work.run(&command).succeeds().says("report with 24 pictures: report.html");
    let html = work.text("report.html");
    assert_eq!(html.matches("<article").count(), 12);
    assert_eq!(html.matches("src=\"data:image/jpeg;base64,").count(), html.matches("<img").count());
    for wanted in [
        "tuned/set.csv against base/set.csv",
        "an &lt;owl&gt; &amp; &quot;friends&quot;",
        "prefers-color-scheme: dark",
        "Win rate with 95 % interval",
        "Training: mean reward",
        "SHA-256 of the weights",
        "random:tiny",
        "name=\"viewport\"",
    ] {
        assert!(html.contains(wanted), "{wanted}");
    }
    for unwanted in ["{{", "<owl>", "http:", "https:", "<link rel=\"stylesheet\"", "NaN"] {
        assert!(!html.contains(unwanted), "{unwanted}");
    }
    work.run(&format!("{EVALUATE} --images base/set.csv --report alone.html")).succeeds();
    assert_eq!(work.text("alone.html").matches("<img").count(), 12);
}

#[test]
fn a_folder_with_captions_is_a_set() {
    let work = Workspace::new();
    write_set(&work, "pictures", 90);
    fs_err::remove_file(work.path("pictures/set.csv")).unwrap();
    let names: Vec<String> = (0..3).flat_map(|prompt| (0..4).map(move |seed| format!("{prompt}-{seed}"))).collect();
    for name in &names {
        work.write(&format!("pictures/{name}.txt"), format!("prompt {}\n", &name[..1]));
    }
    let answer = work.run(&format!("{EVALUATE} --images pictures --output scores --json")).json();
    assert_eq!(answer["sets"][0]["name"], "pictures");
    assert_eq!(answer["sets"][0]["n_prompts"], 3);
    assert_eq!(answer["comparisons"], Value::Array(Vec::new()));
    assert!(work.path("scores/scores.parquet").is_file() && !work.path("pictures/scores.parquet").exists());
    fs_err::remove_file(work.path("pictures/1-1.txt")).unwrap();
    work.run(&format!("{EVALUATE} --images pictures")).fails(1, &["pictures/1-1.png", "1-1.txt"]).hints("captions.csv");
}

#[test]
fn what_is_asked_wrongly_is_refused_before_anything_is_read() {
    let work = Workspace::new();
    let run = |arguments: &str| work.run(&format!("evaluate --device cpu {arguments}"));
    run("--metrics saturation").fails(2, &["--images"]);
    run("--images none.csv").fails(2, &["no metric"]).hints("--metrics");
    run("--images none.csv --metrics social-rewards=x").fails(2, &["social-rewards"]).hints("social-reward`?");
    run("--images none.csv --metrics social-reward")
        .fails(2, &["social-reward", "weights"])
        .hints("social-reward=PATH");
    run("--images none.csv --metrics diversity").fails(2, &["diversity", "CLIP"]).hints("--clip");
    run("--images none.csv --metrics social-reward=a --clip b").fails(2, &["--clip"]);
    run("--images none.csv --metrics social-reward=a,social-reward=a").fails(2, &["twice"]);
    run("--images none.csv --metrics social-reward=a --batch-size 0").fails(2, &["batch_size"]);
    run("--images none.csv --metrics fid-clip --clip a").fails(2, &["fid-clip", "another set"]).hints("--baseline");
    if cfg!(not(feature = "torch")) {
        run("--images none.csv --metrics contrast").fails(2, &["contrast", "portable"]);
    }
}

#[test]
fn sets_that_are_wrong_are_named() {
    let work = two_sets();
    let run = |arguments: &str| work.run(&format!("{EVALUATE} {arguments}"));
    run("--images none.csv").fails(1, &["none.csv does not exist"]);
    fs_err::create_dir(work.path("empty")).unwrap();
    run("--images empty").fails(1, &["empty", "no images"]).hints("captions.csv");
    work.write("empty/set.csv", "prompt,path,seed\n");
    run("--images empty/set.csv").fails(1, &["no rows", "empty/set.csv"]);
    work.write("tuned/gone.csv", "prompt,path\na,0-0.png\nb,gone.png\n");
    run("--images tuned/gone.csv").fails(1, &["gone.csv", "row 1", "gone.png"]);
    work.write("tuned/twice.csv", "prompt,path,seed\na,0-0.png,1\nb,0-1.png,1\na,0-2.png,1\n");
    run("--images tuned/twice.csv").fails(1, &["twice.csv", "rows 0 and 2", "seed 1"]);
    work.write("tuned/seeds.csv", "prompt,path,seed\na,0-0.png,one\n");
    run("--images tuned/seeds.csv").fails(1, &["seeds.csv line 2", "seed", "one"]);
    work.write("base/other.csv", "prompt,path,seed\nelse,0-0.png,0\nelse,0-1.png,1\n");
    let alone = run("--images tuned/set.csv --baseline base/other.csv");
    alone
        .fails(1, &["no image pairs", "12 of 12", "\"a red fox\" seed 0", "2 of 2", "\"else\" seed 1"])
        .hints("--seed");
    work.write("base/part.csv", "prompt,path,seed\na red fox,0-0.png,0\nelse,0-1.png,1\n");
    let part = run("--images tuned/set.csv --baseline base/part.csv --json");
    part.says("11 of 12 image(s) of set have no partner: \"a red fox\" seed 1,").says("1 of 2 image(s) of part");
    assert_eq!(part.json()["comparisons"][0]["n_pairs"], 1);
    work.write("tuned/text.csv", "prompt,path\na,set.csv\n");
    run("--images tuned/text.csv").fails(1, &["set.csv", "wanted an image"]);
    work.run("evaluate --images tuned/set.csv --metrics social-reward=none.pth").fails(1, &["none.pth"]);
    work.run("evaluate --images tuned/set.csv --metrics social-reward=golden/pixels/rgb.png").fails(1, &["rgb.png"]);
}

/// Metrics with weights of their own kinds, by their own preprocessing; the shared hash names the checkpoint.
#[cfg(feature = "torch")]
#[test]
fn every_kind_of_learned_metric_scores_a_set() {
    let work = two_sets();
    let metrics = "clip-score=random:tiny,pick-score=random:tiny,hps-v2=random:tiny,hps-v2.1=random:tiny,\
                   image-reward=golden/image_reward";
    let command = format!("evaluate --device cpu --images tuned/set.csv --metrics {metrics} --json");
    let first = work.run(&command);
    let answer = first.says("loading hps-v2=random:tiny").says("loading image-reward=golden/image_reward").json();
    let second = work.run(&command);
    second.check(second.json() == answer && !second.stderr.contains("loading"), "the same, and no weights are read");
    let found = &answer["sets"][0]["metrics"];
    assert_eq!(keys(found), ["clip-score", "pick-score", "hps-v2", "hps-v2.1", "image-reward"]);
    for (name, metric) in found.as_object().unwrap() {
        assert!(metric["std"].as_f64().unwrap() > 0.0, "{name}");
        assert_eq!(metric["checkpoint_sha256"].as_str().unwrap().len(), 64, "{name}");
    }
    assert_eq!(found["hps-v2"]["mean"], found["hps-v2.1"]["mean"]);
    assert_eq!(found["pick-score"]["convention"], "exp(logit_scale) × cosine (QuickGELU)");
    let head = "golden/metrics/aesthetic.pth";
    work.run(&format!("evaluate --device cpu --images tuned/set.csv --metrics aesthetic={head}"))
        .fails(2, &["aesthetic", "CLIP"])
        .hints("--clip");
    work.run(&format!("evaluate --device cpu --images tuned/set.csv --metrics aesthetic={head} --clip random:tiny"))
        .fails(1, &["aesthetic.pth", "layers.0.weight"]);
}
