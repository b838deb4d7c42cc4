//! `evaluate` by slices, and of several sets: the checkpoints of a run.

use serde_json::Value;

use crate::{
    evaluate::figures::{EVALUATE, keys, two_sets, write_set},
    support::harness::Workspace,
};

/// The set of [`write_set`] as a folder, with a style that goes by the seed.
fn write_folder(work: &Workspace, name: &str, hue: u8) {
    write_set(work, name, hue);
    let table = work.text(&format!("{name}/set.csv"));
    let styled = |(place, line): (usize, &str)| {
        let style = ["style", "art", "<photo>"][if place == 0 { 0 } else { 1 + place % 2 }];
        format!("{line},{style}\n")
    };
    work.write(&format!("{name}/captions.csv"), table.lines().enumerate().map(styled).collect::<String>());
    fs_err::remove_file(work.path(&format!("{name}/set.csv"))).unwrap();
}

#[test]
fn slices_are_told_where_they_are_asked_for() {
    let work = two_sets();
    write_folder(&work, "styled", 120);
    let command = format!("{EVALUATE} --images styled --baseline base/set.csv");
    let run = work.run(&format!("{command} --slice-by style --json --report report.html"));
    let answer = run.json();
    assert_eq!(keys(&answer), ["sets", "comparisons", "slices"]);
    let slices = answer["slices"].as_array().unwrap();
    assert_eq!(slices.iter().map(|slice| slice["value"].as_str().unwrap()).collect::<Vec<_>>(), ["<photo>", "art"]);
    for slice in slices {
        assert_eq!(keys(slice), ["column", "value", "n_images", "metrics", "comparisons"]);
        assert_eq!((&slice["column"], &slice["n_images"]), (&"style".into(), &6.into()));
        let metric = &slice["metrics"]["social-reward"];
        let figure = |key: &str| metric[key].as_f64().unwrap();
        assert!(figure("interval_low") <= figure("mean") && figure("mean") <= figure("interval_high"));
        assert_eq!(keys(&slice["comparisons"][0]), keys(&answer["comparisons"][0]));
        assert_eq!(slice["comparisons"][0]["n_pairs"], 6);
    }
    let mean = |value: &Value| value["metrics"]["social-reward"]["mean"].as_f64().unwrap();
    assert!(((mean(&slices[0]) + mean(&slices[1])) / 2.0 - mean(&answer["sets"][0])).abs() < 1e-9);
    let html = work.text("report.html");
    for wanted in ["By style", "&lt;photo&gt;", "The figures by slice"] {
        assert!(html.contains(wanted), "{wanted}");
    }
    let text = work.run(&format!("{command} --slice-by style"));
    text.succeeds().check(text.stdout.contains("style = art: 6 images"), "a slice for people");
    let plain = work.run(&format!("{command} --json")).json();
    assert_eq!(keys(&plain), ["sets", "comparisons"]);

    let wrong = work.run(&format!("{command} --slice-by stile"));
    wrong.fails(1, &["styled/captions.csv has no column `stile` (it has: prompt, path, seed, style)"]).hints("`style`");
    work.write("config.toml", "images = 'styled'\nslice_by = 'seed'\nmetrics = ['social-reward=random:tiny']\n");
    let seeds = work.run("evaluate --device cpu --config config.toml --json").json();
    assert_eq!(seeds["slices"].as_array().unwrap().len(), 4);
}

#[test]
fn the_checkpoints_of_a_run_are_compared_in_order() {
    let work = Workspace::new();
    fs_err::create_dir_all(work.path("run/samples")).unwrap();
    for (step, hue) in [(10, 200), (0, 20), (2, 90)] {
        write_folder(&work, &format!("run/samples/step-{step}"), hue);
    }
    work.write("run/metrics.jsonl", "{\"step\":1,\"reward_mean\":0.1}\n{\"step\":2,\"reward_mean\":0.2}\n");
    let names = |answer: &Value| -> Vec<String> {
        answer["sets"].as_array().unwrap().iter().map(|set| set["name"].as_str().unwrap().to_owned()).collect()
    };
    let base = "--baseline run/samples/step-0 --slice-by style --report report.html";
    let run = work.run(&format!("{EVALUATE} --images run/samples {base} --json"));
    let answer = run.json();
    run.says("36 scores in run/samples/scores.parquet, 36 of them new").says("report with 24 pictures");
    assert_eq!(names(&answer), ["step-2", "step-10", "step-0"]);
    let comparisons = answer["comparisons"].as_array().unwrap();
    assert_eq!(comparisons.iter().map(|found| &found["set"]).collect::<Vec<_>>(), ["step-2", "step-10"]);
    assert_eq!(answer["slices"].as_array().unwrap().iter().filter(|slice| slice["set"] == "step-10").count(), 2);
    let html = work.text("report.html");
    for wanted in [
        "step-2 to step-10 against step-0",
        "Each set against step-0",
        "social-reward by set, step-2 to step-10",
        "All 12 pairs of step-10.",
        "Training: mean reward",
    ] {
        assert!(html.contains(wanted), "{wanted}");
    }
    // Alone and one by one, in the order given; the last one's folder has the table.
    let alone = work.run(&format!("{EVALUATE} --images run/samples --json"));
    assert_eq!(names(&alone.json()), ["step-0", "step-2", "step-10"]);
    alone.says(", 0 of them new");
    let [two, ten] = ["run/samples/step-2", "run/samples/step-10"];
    for given in [format!("--images {ten} {two}"), format!("--images {ten} --images {two}")] {
        let text = work.run(&format!("{EVALUATE} {given} --baseline run/samples/step-0"));
        text.succeeds().says("36 scores in run/samples/step-2/scores.parquet");
        text.check(text.stdout.contains("step-10 against step-0"), "the first").check(
            text.stdout.contains("step-2 against step-0") && text.stdout.contains("by prompt (step-2, baseline"),
            "the last",
        );
    }
    work.run(&format!("{EVALUATE} --images {two} --images {two}/captions.csv")).fails(2, &["named twice"]);
    let one = work.run(&format!("{EVALUATE} --images {ten} --baseline run/samples/step-0 --json")).json();
    assert!(one["comparisons"][0].get("set").is_none());
}
